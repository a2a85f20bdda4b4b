"""Small worlds for tests: settings, conversations, token streams, networks and runs of stages.

What a stage makes is made here by the stage's own code.
"""

import copy
import functools
import importlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
import yaml
from hypothesis import strategies as st

from model.config import ModelConfig
from model.transformer import Transformer
from stages.conversations import SPLITS, Message, Role, Split, to_line
from stages.corpus import Manifest, TokenStream
from stages.errors import run
from stages.files import sha256_file, write_json
from stages.params import read_yaml
from stages.shards.encode import Encoded, ShardWriter
from stages.train.params import TrainParams

# Products here are so small that threads would only wait for one another.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent

T = TypeVar("T")

TINY: dict[str, dict[str, Any]] = {
    "tokenizer": {"path": "stages/tokenizer/learn.py", "vocab_size": 300, "max_chars": 10**8},
    "shards": {"tokens_per_shard": 700},
    "model": {
        "d_model": 16,
        "num_layers": 2,
        "num_heads": 2,
        "kv_heads": 1,
        "d_ff": 32,
        "dropout": 0.1,
        "seq_len": 32,
        "rope_theta": 10_000.0,
        "qk_norm": False,
        "tie_embeddings": True,
    },
    "train": {
        "epochs": 1.0,
        "max_steps": 6,
        "batch_size": 2,
        "grad_accum_steps": 2,
        "micro_batch_size": None,
        "optimizer": "adamw",
        "muon_lr": 1e-2,
        "lr": 1e-2,
        "min_lr": 0.0,
        "warmup_steps": 2,
        "schedule": "cosine",
        "decay_fraction": 0.5,
        "weight_decay": 0.1,
        "betas": [0.9, 0.95],
        "grad_clip": 1.0,
        "mixed_precision": False,
        "bf16_weights": False,
        "activation_checkpointing": "none",
        "compile": False,
        "document_mask": False,
        "init_from": "model/init.py",
        "loss_on": "all",
        "eval_interval": 2,
        "eval_tokens": 200,
    },
    "evaluate": {
        "prompts": ["Hello *there*!", "What is in <b>the box</b>?"],
        "openings": 2,
        "max_new_tokens": 8,
        "temperature": 0.8,
        "top_p": 0.95,
        "seed": 1,
    },
    "wandb": {
        "enabled": False,
        "project_name": "tests",
        "run_name": None,
        "mode": "offline",
    },
    "runtime": {
        "device": "cpu",
        "processes": 1,
        "parallel": "ddp",
        "threads": 1,
        "num_workers": None,
        "checkpoint_dir": ".checkpoints",
        "checkpoint_minutes": 120.0,
        "checkpoint_steps": None,
        "keep_checkpoints": 3,
    },
}


def joined(lists: Iterable[Sequence[T]]) -> list[T]:
    """One list after another."""
    return list(chain.from_iterable(lists))


@functools.cache
def _repository_params() -> dict[str, Any]:
    return read_yaml(ROOT / "params.yaml")


def tiny_params(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The whole of params.yaml with the values of TINY and ``{"section.key": value}`` changes.

    A key that TINY does not know yet has its value from the repository.
    """
    values = copy.deepcopy(_repository_params())
    values["seed"] = 1
    for section, keys in TINY.items():
        values[section] = values[section] | keys
    for key, value in (changes or {}).items():
        section, _, name = key.partition(".")
        if name:
            assert name in values[section], key
            values[section] = values[section] | {name: value}
        else:
            values[section] = value
    return values


def train_params(**changes: Any) -> TrainParams:
    """The ``train`` section of TINY with changes."""
    return TrainParams(**tiny_params({f"train.{k}": v for k, v in changes.items()})["train"])


WORDS = [
    *("the", "a", "my", "your", "cat", "dog", "house", "tea", "rain", "sun", "likes", "sees"),
    *("wants", "has", "and", "but", "then", "we", "you", "they", "naïve", "東京", "🙂", "don't"),
    *("it's", "42", "<|user|>", "<|end|>", "yes", "no"),
]


def chats(count: int, seed: int) -> list[list[Message]]:
    """``count`` conversations of a few short messages."""
    choose = random.Random(seed)
    result: list[list[Message]] = []
    for _ in range(count):
        messages: list[Message] = []
        if choose.random() < 0.2:
            messages.append({"role": "system", "content": "be kind"})
        for turn in range(choose.randint(2, 5)):
            role: Role = "assistant" if turn % 2 else "user"
            words = choose.choices(WORDS, k=choose.randint(1, 12))
            messages.append({"role": role, "content": " ".join(words)})
        result.append(messages)
    return result


def write_conversations(root: Path, splits: Mapping[Split, Sequence[list[Message]]]) -> None:
    """Writes ``data/conversations`` as the download stage does."""
    folder = root / "data/conversations"
    folder.mkdir(parents=True, exist_ok=True)
    sums: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        lines = b"".join(to_line(messages) for messages in splits[split])
        path.write_bytes(lines)
        sums[split] = {
            "conversations": len(splits[split]),
            "characters": sum(len(m["content"]) for chat in splits[split] for m in chat),
            "sha256": sha256_file(path),
        }
    write_json(folder / "manifest.json", {"splits": sums})


def write_params(root: Path, values: Mapping[str, Any]) -> None:
    """Writes ``params.yaml``."""
    root.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False)
    (root / "params.yaml").write_text(text, encoding="utf-8")


@contextmanager
def torch_settings_kept() -> Iterator[None]:
    """Puts torch's threads and determinism back to what they were."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def call_stage(name: str, root: Path) -> None:
    """Runs a stage's ``main`` in ``root``, in this process: its failures are exceptions."""
    with chdir(root), torch_settings_kept():
        importlib.import_module(f"stages.{name}.__main__").main()


def exit_code(name: str, root: Path) -> object:
    """As ``python -m stages.<name>`` in ``root``, but in this process: its exit code."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with chdir(root), torch_settings_kept(), patch.object(sys, "argv", [name]):
            run(name, importlib.import_module(f"stages.{name}.__main__").main)
    except SystemExit as error:
        return error.code
    finally:
        signal.signal(signal.SIGTERM, before)


def build_data(
    root: Path,
    changes: Mapping[str, Any] | None = None,
    splits: Mapping[Split, Sequence[list[Message]]] | None = None,
) -> Path:
    """Makes params, conversations, tokenizer and shards in ``root`` and returns it."""
    write_params(root, tiny_params(changes))
    write_conversations(root, splits or {"train": chats(60, 1), "validation": chats(12, 2)})
    call_stage("tokenizer", root)
    call_stage("shards", root)
    return root


def stage_environment(root: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment for a stage that runs in ``root``: nothing of a surrounding DVC or W&B."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "WANDB_", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(ROOT), "HOME": str(root), **(extra or {})}


def start_stage(
    name: str,
    root: Path,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    stderr: int | IO[str] = subprocess.PIPE,
) -> subprocess.Popen[str]:
    """Starts ``python -m stages.<name>`` in ``root``."""
    # Where the tests run in the background SIGINT may be ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, *options, "-m", f"stages.{name}"],
            cwd=root,
            env=stage_environment(root, environment),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def finish(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str]:
    """Waits for a stage and returns its exit code and stderr."""
    try:
        _, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, errors


def run_stage(
    name: str,
    root: Path,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    seconds: float = 300,
) -> tuple[int, str]:
    """Runs ``python -m stages.<name>`` in ``root`` and returns its exit code and stderr."""
    return finish(start_stage(name, root, options, environment), seconds)


def error_lines(stderr: str) -> list[str]:
    """The lines of stderr that report a failure; a traceback counts."""
    return [line for line in stderr.splitlines() if line.startswith(("error:", "Traceback"))]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


CONTROL_IDS = {"pad": 0, "bos": 1, "end": 2, "system": 3, "user": 4, "assistant": 5, "text": 6}
FIRST_WORD = len(CONTROL_IDS)
STREAM_VOCAB = 24

Turn = tuple[str, list[int]]


def render(turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
    """A document's ids, and which of them the assistant is to produce."""
    ids, spoken = [CONTROL_IDS["bos"]], [False]
    for role, words in turns:
        ids += [CONTROL_IDS[role], *words, CONTROL_IDS["end"]]
        spoken += [False] + [role == "assistant"] * (len(words) + 1)
    return ids, spoken


def documents(longest: int = 6, most: int = 6) -> st.SearchStrategy[list[list[Turn]]]:
    """Some documents of turns; a turn has up to ``longest`` words."""
    words = st.lists(st.integers(FIRST_WORD, STREAM_VOCAB - 1), max_size=longest)
    turn = st.tuples(st.sampled_from(["system", "user", "assistant", "text"]), words)
    return st.lists(st.lists(turn, min_size=1, max_size=5), min_size=1, max_size=most)


def random_documents(count: int, seed: int) -> list[list[Turn]]:
    """``count`` documents of alternating user and assistant."""
    choose = random.Random(seed)
    return [
        [
            (
                "assistant" if turn % 2 else "user",
                [choose.randrange(FIRST_WORD, STREAM_VOCAB) for _ in range(choose.randint(0, 9))],
            )
            for turn in range(choose.randint(1, 6))
        ]
        for _ in range(count)
    ]


def make_stream(
    folder: Path,
    arrays: Sequence[Sequence[int]],
    tokens_per_shard: int = 10**9,
    control_ids: Mapping[str, int] = CONTROL_IDS,
) -> TokenStream:
    """A stream of these arrays of ids, written as shards."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder, "train", np.dtype("<u2"), tokens_per_shard)
    lengths = [len(ids) for ids in arrays if len(ids)]
    starts = np.cumsum([0, *lengths[:-1]]) if lengths else np.zeros(0, np.int64)
    nothing = {"documents": 0, "bytes": 0, "assistant_bytes": 0, "text_documents": 0}
    counts = nothing | {"documents": len(arrays)}
    writer.write(Encoded(np.array(joined(arrays), np.uint32), starts, counts, 0))
    split = writer.close()
    manifest: Manifest = {
        "dtype": "uint16",
        "vocab_size": STREAM_VOCAB,
        "tokenizer_sha256": "",
        "validation_sha256": "",
        "control_ids": dict(control_ids),
        "splits": {"train": split, "validation": split},
    }
    return TokenStream(manifest, "train", folder)


def document_stream(
    folder: Path, turns: Sequence[Sequence[Turn]], tokens_per_shard: int = 10**9
) -> TokenStream:
    """A stream of rendered documents."""
    return make_stream(folder, [render(document)[0] for document in turns], tokens_per_shard)


def tiny_model(seed: int = 0, **changes: Any) -> Transformer:
    """A network without dropout, its weights large enough that no token is like another."""
    values: dict[str, Any] = {
        "vocab_size": STREAM_VOCAB,
        "d_model": 16,
        "num_layers": 2,
        "num_heads": 2,
        "kv_heads": 1,
        "d_ff": 24,
        "seq_len": 16,
        "bos_id": CONTROL_IDS["bos"],
        "end_id": CONTROL_IDS["end"],
        "pad_id": CONTROL_IDS["pad"],
        **changes,
    }
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(**values))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(std=0.3)
    return model
