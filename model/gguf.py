"""Writes a model folder as one GGUF file, which llama.cpp and programs built on it open.

``python -m model.gguf models/chat chat.gguf --dtype q8_0``. llama.cpp's own converter knows a
tokenizer by a hash of what it makes of one text, and so refuses any that was trained anew.

Architecture ``llama`` (or ``qwen3`` with ``qk_norm``), tokenizer ``gpt2`` with llama.cpp's rule for
words that cuts as the folder's tokenizer does. llama.cpp knows no normaliser, by which our template
keeps control tokens out of contents, so the file's template writes ``<|`` of a content as ``< |``:
what a person types is still never a control token, but the model reads it with that space.
"""

import argparse
import errno
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

try:
    import gguf
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType
    from gguf.quants import QuantError, quantize
except ModuleNotFoundError:
    if __name__ != "__main__":
        raise
    sys.exit("error: this needs the package gguf: pip install -e '.[gguf]'")

from model.cli import Failure, cannot_open, run, unwritable
from model.config import ModelConfig
from model.hugging_face import to_hugging_face
from model.loading import load
from model.template import CHAT_TEMPLATE, CONTROL_TOKENS, ESCAPES
from model.tokenizer import ChatTokenizer

DTYPES = {
    "f32": (GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}

# The template with another escape: it needs no normaliser to be taken out again.
_OURS = "".join(f" | replace({plain!r}, {escaped!r})" for plain, escaped in ESCAPES)
GGUF_TEMPLATE = CHAT_TEMPLATE.replace(_OURS, " | replace('<|', '< |')")

# llama.cpp's rule -> the expressions that tokenizers of that kind split by, and whether a whole
# word that is a token goes before merges.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST: ("qwen2", False),
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST: ("llama-bpe", True),
}


def write_gguf(folder: str | Path, file: str | Path, dtype: str = "f32") -> None:
    """Writes the model of ``folder`` and its tokenizer to ``file``.

    ``dtype`` is that of the matrices: f32, f16, bf16 or q8_0 (8 bits and a scale for each 32
    weights); the norms stay float32. Raises FileNotFoundError and ValueError as ``load``, and
    ValueError for a tokenizer that cuts words by a rule of its own, and for a width that q8_0
    can't divide.
    """
    kind, file_type = DTYPES[dtype]
    model, tokenizer = load(folder)
    config, file = model.config, Path(file)
    rule = word_rule(tokenizer)
    tensors = list(_tensors(to_hugging_face(model.state_dict(), config), config, kind))
    part = file.with_name(f"{file.name}.part")
    writer = GGUFWriter(part, "qwen3" if config.qk_norm else "llama")
    try:
        writer.add_name(Path(folder).resolve().name)
        writer.add_file_type(file_type)
        _add_shape(writer, config)
        _add_tokenizer(writer, tokenizer, config.vocab_size, rule)
        for name, values, stored in tensors:
            writer.add_tensor(name, values, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _add_shape(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _add_tokenizer(
    writer: GGUFWriter, tokenizer: ChatTokenizer, vocab_size: int, rule: str
) -> None:
    words, kinds, merges = vocabulary(tokenizer, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.end_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    # Every document of training begins with <|bos|>; a template's own is not doubled.
    writer.add_add_bos_token(True)
    writer.add_chat_template(GGUF_TEMPLATE)


def word_rule(tokenizer: ChatTokenizer) -> str:
    """llama.cpp's name of the rule by which ``tokenizer`` cuts words. Raises ValueError."""
    content = json.loads(tokenizer.backend.to_str())
    whole_words = bool(content["model"].get("ignore_merges"))
    step = content["pre_tokenizer"]
    match step.get("pretokenizers", [step]):
        case [{"type": "ByteLevel", "use_regex": True}] if not whole_words:
            return "gpt-2"
        case [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"} as last] if (
            last["use_regex"] and not whole_words
        ):
            return "smollm"
        case [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False},
        ] if regex in _SPLITS and _SPLITS[regex][1] == whole_words:
            return _SPLITS[regex][0]
    raise ValueError(
        "no rule of llama.cpp cuts words as this tokenizer does: known are those of GPT-2 (also "
        "Parley's own), SmolLM, Llama 3 and Qwen2"
    )


def vocabulary(
    tokenizer: ChatTokenizer, vocab_size: int
) -> tuple[list[str], list[TokenType], list[str]]:
    """Tokens by their ids, the kind of each, and the merges, as GGUF states them.

    Ids without a token, and tokens that no text is encoded as (the special tokens of an adopted
    tokenizer), are UNUSED, under names that llama.cpp does not take for special ones.
    """
    content = json.loads(tokenizer.backend.to_str())["model"]
    merges = [m.split(" ") if isinstance(m, str) else m for m in content["merges"]]
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    made = alphabet | {first + second for first, second in merges}
    added = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values()}
    words = [f"[unused {number}]" for number in range(vocab_size)]
    kinds = [TokenType.UNUSED] * vocab_size
    for word, number in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if word in CONTROL_TOKENS:
            words[number], kinds[number] = word, TokenType.CONTROL
        elif word in added:
            words[number], kinds[number] = word, TokenType.USER_DEFINED
        elif word in made or (content.get("ignore_merges") and alphabet.issuperset(word)):
            words[number], kinds[number] = word, TokenType.NORMAL
    return words, kinds, [" ".join(merge) for merge in merges]


_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _tensors(
    weights: dict[str, Any], config: ModelConfig, kind: GGMLQuantizationType
) -> Iterator[tuple[str, NDArray[Any], GGMLQuantizationType]]:
    """Name, bytes and dtype of each tensor of the file."""
    for name, weight in weights.items():
        values: NDArray[Any] = weight.numpy()
        stem, _, end = name.rpartition(".")
        place, prefix = stem, ""
        if stem.startswith("model.layers."):
            _, _, layer, place = stem.split(".", 3)
            prefix = f"blk.{layer}."
        if not config.qk_norm and place in ("self_attn.q_proj", "self_attn.k_proj"):
            values = _in_pairs(values, config.head_dim)
        stored = kind if values.ndim == 2 else GGMLQuantizationType.F32
        try:
            yield f"{prefix}{_NAMES[place]}.{end}", quantize(values, stored), stored
        except QuantError as error:
            raise ValueError(
                f"q8_0 needs rows of a multiple of 32 weights, {name} has {values.shape[1]}: "
                f"use f16 ({error})"
            ) from None


def _in_pairs(weight: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Rows of a head in the order of llama.cpp's ``llama``: what is turned together is together.

    We (and Hugging Face) turn row i with row i + head_dim / 2, ``llama`` neighbours.
    """
    heads = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2).reshape(weight.shape))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.gguf", description="Write a model folder as a GGUF file."
    )
    parser.add_argument("folder", help="a model folder, such as models/chat")
    parser.add_argument("file", help="the GGUF file to write")
    parser.add_argument("--dtype", choices=DTYPES, default="f32", help="of the matrices")
    arguments = parser.parse_args()
    file = Path(arguments.file)
    if not file.parent.is_dir():
        raise Failure(f"there is no folder '{file.parent}' to write {file.name} into")
    try:
        write_gguf(arguments.folder, file, arguments.dtype)
    except (FileNotFoundError, ValueError) as error:
        raise cannot_open(arguments.folder, error) from None
    except OSError as error:
        if error.errno is None:  # numpy wrote less than it should
            raise OSError(errno.ENOSPC, f"not written whole ({error})", str(file)) from None
        raise unwritable(file, error) from None
    size = Path(arguments.file).stat().st_size
    print(f"{arguments.file}: {size / 2**20:,.1f} MiB, {arguments.dtype}")


if __name__ == "__main__":
    run("gguf", main)
