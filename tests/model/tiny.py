"""Small models, hostile texts and other things that several tests of this room need."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import nn

from model.config import ModelConfig
from model.engine import Engine, Sampling
from model.saving import save_model
from model.template import CONTROL_TOKENS, MARKER, ROLE_TOKENS
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer

T = TypeVar("T", bound=nn.Module)

ROOT = Path(__file__).resolve().parents[2]

# kv_heads of a model with four query heads.
ATTENTION = {"multi-head": 4, "grouped-query": 2, "multi-query": 1}

CORPUS = [
    "hello there, how are you today?",
    "I'm fine, thanks for asking; how are you?",
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Grüße aus Köln! Ça va très bien, merci. こんにちは、世界。",
    "what is the answer to everything? the answer is forty-two.",
    "  two  spaces\tand a tab\nand a line",
] * 3

# What people might type to break out of the template, and text that sloppy tokenizers lose.
_FRAGMENTS = [
    *CONTROL_TOKENS,
    *("<|us", "er|>", "<|", "|>", "<", "|", "=", "<<|user|>|>", "<|user|", "<s>", "</s>"),
    *(MARKER, MARKER + "=", MARKER + "|", f"<{MARKER}|user|>", "<" + MARKER, MARKER * 2),
    *("\0", " ", "  ", "\t", "\r", "\r\n", "\n\n", "\x0b", "\x1f", "\x85", "\u00a0", "\u2028"),
    *("\u200b", "\u200d", "\u3000", "\ufeff", "\ufffd", "\uffff", "\U0010ffff", "\ue000"),
    *("👩‍👩‍👧‍👦", "🇩🇪", "❤️", "é", "e\u0301", "\u0301", "ﬁ", "İ", "ß", "한", "ﷺ", "שלום"),
    *("{{ bos }}", "{% endfor %}", "{# #}", "'", '"', "\\n", "\\ufdd0", "Ġ", "it's don't"),
]
hostile_text = st.lists(
    st.one_of(
        st.sampled_from(_FRAGMENTS),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    ),
    max_size=8,
).map("".join)
conversations = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(list(ROLE_TOKENS)), "content": hostile_text}),
    min_size=1,
    max_size=4,
)


def tiny_config(**changes: Any) -> ModelConfig:
    """A model of some ten thousand weights; ``changes`` are fields of the config."""
    values = {
        "vocab_size": 97,
        "d_model": 32,
        "num_layers": 2,
        "num_heads": 4,
        "kv_heads": 2,
        "d_ff": 48,
        "seq_len": 32,
    }
    return ModelConfig(**{**values, **changes})


def lively(model: T, seed: int = 0) -> T:
    """``model`` with large random weights, in evaluation mode.

    At initialisation all norms are one and logits nearly flat, which would hide a mix-up.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5, generator=generator)
            else:
                weight.normal_(std=weight.shape[1] ** -0.5, generator=generator)
    return model.eval()


def lively_transformer(seed: int = 0, **changes: Any) -> Transformer:
    """A lively model of ``tiny_config(**changes)``."""
    return lively(Transformer(tiny_config(**changes)), seed)


def chat_config(tokenizer: ChatTokenizer, **changes: Any) -> ModelConfig:
    """A tiny config for ``tokenizer``."""
    ids = {"bos_id": tokenizer.bos_id, "end_id": tokenizer.end_id, "pad_id": tokenizer.pad_id}
    return tiny_config(**{"vocab_size": tokenizer.vocab_size, **ids, **changes})


def random_ids(batch: int, length: int, vocab_size: int = 97, seed: int = 0) -> torch.Tensor:
    """Random token ids of shape (batch, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (batch, length), generator=generator)


def write_folder(folder: Path, model: Transformer, tokenizer_folder: Path) -> Path:
    """A model folder, written as training writes it."""
    sha256 = ChatTokenizer.load(tokenizer_folder).sha256
    save_model(folder, model.config, model.state_dict(), tokenizer_folder, sha256)
    return folder


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites a JSON file after ``edit`` has changed its content."""
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def run_python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints for ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def greedy_ids(
    model: Transformer,
    tokenizer: ChatTokenizer,
    prompt: Sequence[int],
    count: int,
    end: Collection[int] | None = None,
) -> list[int]:
    """The most probable ids after ``prompt``, up to ``end`` (the end of the turn) or ``count``."""
    engine = Engine(model, tokenizer, slots=1, weights="fp32", native=False)
    (reply,) = engine.replies([prompt], Sampling(max_new_tokens=count, temperature=0), end)
    return list(reply.token_ids)
