"""A GGUF file made from a model folder computes and reads text in llama.cpp as we do."""

import json
import random
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from model.cli import Failure
from model.template import CHAT_TEMPLATE, CONTROL_TOKENS
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from tests.model.tiny import (
    _FRAGMENTS,
    ATTENTION,
    CORPUS,
    chat_config,
    edit_json,
    greedy_ids,
    lively_transformer,
    write_folder,
)

gguf = pytest.importorskip("gguf")
xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp, which comes as a wheel for Linux")

from model.gguf import GGUF_TEMPLATE, main, word_rule, write_gguf  # noqa: E402 - needs gguf

# llama.cpp adds in another order, and exponentials are its own.
TOLERANCE = 2e-3


class Served:
    """llama.cpp's server with one file."""

    def __init__(self, file: Path) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.port = 256, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.warmup, params.verbosity = False, -1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(params)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._server.listening_address}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            content: dict[str, Any] = json.loads(reply.read())
            return content

    def ids(self, text: str, control: bool = False) -> list[int]:
        reply = self.post("tokenize", content=text, add_special=False, parse_special=control)
        return list(reply["tokens"])

    def complete(self, ids: list[int], count: int, top: int) -> dict[str, Any]:
        return self.post(
            "completion",
            prompt=ids,
            n_predict=count,
            temperature=0,
            n_probs=top,
            return_tokens=True,
            cache_prompt=False,
        )


@contextmanager
def served(
    folder: Path, tokenizer_folder: Path, dtype: str = "f32", **changes: Any
) -> Iterator[tuple[Served, Transformer, ChatTokenizer]]:
    tokenizer = ChatTokenizer.load(tokenizer_folder)
    shape = {"d_model": 64, "d_ff": 96, "seq_len": 256, **changes}
    model = lively_transformer(**vars(chat_config(tokenizer, **shape)))
    write_folder(folder / "chat", model, tokenizer_folder)
    write_gguf(folder / "chat", folder / "chat.gguf", dtype)
    yield Served(folder / "chat.gguf"), model, tokenizer


def first_step(model: Transformer, tokenizer: ChatTokenizer) -> tuple[list[int], torch.Tensor]:
    """A chat, and our log-probabilities after it; the server gives none of half a character."""
    for text in CORPUS:
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.encode_chat(chat, add_generation_prompt=True)
        with torch.no_grad():
            expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        if tokenizer.decode([int(expected.argmax())]).strip("\ufffd"):
            return ids, expected
    raise AssertionError


def worst(server: Served, model: Transformer, tokenizer: ChatTokenizer) -> float:
    """The largest difference of a log-probability after a chat."""
    ids, expected = first_step(model, tokenizer)
    assert expected.std() > 0.3
    reply = server.complete(ids, 1, model.config.vocab_size)
    found = {
        each["id"]: each["logprob"] for each in reply["completion_probabilities"][0]["top_logprobs"]
    }
    assert set(found) == set(range(model.config.vocab_size))
    return max(abs(float(expected[number]) - value) for number, value in found.items())


@pytest.mark.parametrize("kv_heads", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("qk_norm", [False, True], ids=["llama", "qwen3"])
@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
def test_llama_cpp_computes_our_probabilities_and_greedy_reply(
    tmp_path: Path, tokenizer_folder: Path, kv_heads: int, qk_norm: bool, tie_embeddings: bool
) -> None:
    shape = {"kv_heads": kv_heads, "qk_norm": qk_norm, "tie_embeddings": tie_embeddings}
    with served(tmp_path, tokenizer_folder, rope_theta=500.0, **shape) as (
        server,
        model,
        tokenizer,
    ):
        assert worst(server, model, tokenizer) < TOLERANCE
        ids, _ = first_step(model, tokenizer)
        ours = greedy_ids(model, tokenizer, ids, 24)
        found = server.complete(ids, 24, 0)["tokens"]
        assert [number for number in found if number != tokenizer.end_id] == ours


def test_heads_wider_than_their_share_and_another_epsilon(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    with served(tmp_path, tokenizer_folder, head_dim=24, norm_eps=1e-3, vocab_size=384) as (
        server,
        model,
        tokenizer,
    ):
        assert worst(server, model, tokenizer) < TOLERANCE


@pytest.mark.parametrize(
    ("dtype", "bits", "within"), [("f16", 16, 0.02), ("bf16", 16, 0.1), ("q8_0", 8.5, 0.15)]
)
def test_smaller_dtypes_are_smaller_and_near(
    tmp_path: Path, tokenizer_folder: Path, dtype: str, bits: float, within: float
) -> None:
    with served(tmp_path, tokenizer_folder, dtype) as (server, model, tokenizer):
        assert worst(server, model, tokenizer) < within
        matrices = [weight for weight in model.parameters() if weight.ndim == 2]
        stored = {
            tensor.name: tensor.n_bytes
            for tensor in gguf.GGUFReader(tmp_path / "chat.gguf").tensors
            if len(tensor.shape) == 2
        }
        assert sum(stored.values()) == sum(weight.numel() for weight in matrices) * bits / 8


# --- text


def hostile(count: int) -> Iterator[str]:
    """Texts of fragments that break tokenizers, and of characters of all planes."""
    choose = random.Random(1)
    for _ in range(count):
        parts = choose.choices(_FRAGMENTS, k=choose.randint(1, 8))
        parts += [chr(choose.randrange(0x20, 0x3000)) for _ in range(3)]
        parts += choose.choices(["12345", "DON'T", "we'Ll", "a", " ", "\n", "x_1", "."], k=4)
        choose.shuffle(parts)
        yield "".join(parts)


@pytest.fixture(scope="module")
def ours(
    tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, Transformer, ChatTokenizer]]:
    with served(tmp_path_factory.mktemp("gguf"), tokenizer_folder) as all_three:
        yield all_three


def test_text_has_our_ids(ours: tuple[Served, Transformer, ChatTokenizer]) -> None:
    server, _, tokenizer = ours
    for text in [*CORPUS, *hostile(300)]:
        assert server.ids(text) == tokenizer.encode(text), text


def test_a_chat_has_our_ids(ours: tuple[Served, Transformer, ChatTokenizer]) -> None:
    server, _, tokenizer = ours
    chat = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": " héllo {{ x }}\n\n"},
        {"role": "assistant", "content": "I'm fine"},
        {"role": "user", "content": "ok | < > |>"},
    ]
    rendered = server.post("apply-template", messages=chat)["prompt"]
    ids = tokenizer.encode_chat(chat, add_generation_prompt=True)
    # The server puts <|bos|> before the prompt, and takes the template's own away.
    assert server.ids(rendered, control=True) == ids[1:]
    reply = server.post("v1/chat/completions", messages=chat, max_tokens=4, temperature=0)
    assert reply["usage"]["prompt_tokens"] == len(ids)


def test_nobody_can_type_a_control_token(ours: tuple[Served, Transformer, ChatTokenizer]) -> None:
    """``<|`` becomes ``< |``; nothing else changes."""
    server, _, tokenizer = ours
    for text in [*CONTROL_TOKENS, "<<|end|>|end|>", "<|<|user|>", "a<|b|>", *hostile(200)]:
        chat = [{"role": "user", "content": text}]
        rendered = server.post("apply-template", messages=chat)["prompt"]
        expected = [{"role": "user", "content": text.replace("<|", "< |")}]
        assert (
            server.ids(rendered, control=True)
            == tokenizer.encode_chat(expected, add_generation_prompt=True)[1:]
        )


def test_the_files_template_is_ours_but_for_the_escape() -> None:
    assert "ufdd0" in CHAT_TEMPLATE
    assert "ufdd0" not in GGUF_TEMPLATE
    assert GGUF_TEMPLATE.count("replace") == 1


def learnt(pre_tokenizer: Any, whole_words: bool = False) -> Tokenizer:
    """A tokenizer from elsewhere, with special tokens of its own."""
    backend = Tokenizer(models.BPE(ignore_merges=whole_words))
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<|endoftext|>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("    ", normalized=False)])
    return backend


def split(regex: str) -> Any:
    words = pre_tokenizers.Split(Regex(regex), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, letters])


COMMON = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
FOREIGN = {
    "gpt-2": lambda: learnt(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": lambda: learnt(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    ),
    "llama-bpe": lambda: learnt(split(WORDS + r"\p{N}{1,3}" + COMMON), whole_words=True),
    "qwen2": lambda: learnt(split(WORDS + r"\p{N}" + COMMON)),
}


@pytest.mark.parametrize("rule", FOREIGN)
def test_an_adopted_tokenizer_has_its_ids_too(tmp_path: Path, rule: str) -> None:
    from stages.tokenizer.adopt import adopt

    own = tmp_path / "tokenizer"
    own.mkdir()
    FOREIGN[rule]().save(str(own / "tokenizer.json"))
    adopted = adopt(own)
    adopted.save(own)
    assert word_rule(adopted) == rule
    with served(tmp_path, own) as (server, model, tokenizer):
        assert worst(server, model, tokenizer) < TOLERANCE
        for text in [*CORPUS, "</s><|endoftext|> a      b", *hostile(150)]:
            # As the template's contents are read: control tokens are looked for.
            text = text.replace("<|", "< |")
            assert server.ids(text, control=True) == tokenizer.encode(text), text


# --- refusals and files


def write_model(folder: Path, tokenizer_folder: Path, **changes: Any) -> Path:
    tokenizer = ChatTokenizer.load(tokenizer_folder)
    model = lively_transformer(**vars(chat_config(tokenizer, **changes)))
    return write_folder(folder, model, tokenizer_folder)


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["gguf", *map(str, arguments)])
    main()


def test_the_command_writes_the_same_bytes_each_time(
    tmp_path: Path,
    tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_model(tmp_path / "chat", tokenizer_folder, d_ff=64)
    convert(monkeypatch, folder, tmp_path / "a.gguf", "--dtype", "q8_0")
    assert capsys.readouterr().out.endswith("a.gguf: 0.0 MiB, q8_0\n")
    write_gguf(folder, tmp_path / "b.gguf", "q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "chat"]


def test_what_cannot_be_written_is_one_line_and_leaves_no_file(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = write_model(tmp_path / "narrow", tokenizer_folder, d_model=24)
    with pytest.raises(Failure, match=r"^q8_0 needs rows of a multiple of 32 weights"):
        convert(monkeypatch, narrow, tmp_path / "a.gguf", "--dtype", "q8_0")
    with pytest.raises(Failure, match=r"^no config\.json in '.*nowhere'; `dvc repro` trains"):
        convert(monkeypatch, tmp_path / "nowhere", tmp_path / "a.gguf")

    def cut_otherwise(content: dict[str, Any]) -> None:
        content["pre_tokenizer"]["use_regex"] = False

    edit_json(narrow / "tokenizer.json", cut_otherwise)
    edit_json(narrow / "config.json", lambda config: config.pop("tokenizer_sha256"))
    with pytest.raises(Failure, match=r"^no rule of llama\.cpp cuts words as this"):
        convert(monkeypatch, narrow, tmp_path / "a.gguf")
    with pytest.raises(Failure, match=r"^there is no folder '.*none' to write a\.gguf into"):
        convert(monkeypatch, narrow, tmp_path / "none" / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["narrow"]
