"""Training goes on from a folder that transformers wrote, with the tokenizer it came with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model.config import DRAWN
from model.loading import load
from model.tokenizer import ChatTokenizer
from stages.corpus import SHARDS, TokenStream, read_manifest
from stages.scoring import IGNORED, score
from tests.builders import (
    call_stage,
    chats,
    error_lines,
    exit_code,
    tiny_params,
    write_conversations,
    write_params,
)
from tests.model.tiny import lively
from tests.tokenizer.test_adopt import gpt2, llama3, qwen

FOLDER = "theirs"
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
# The same in params.yaml; seq_len is free.
OURS = {
    "model.d_model": 16,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.kv_heads": 1,
    "model.d_ff": 24,
    "model.seq_len": 32,
    "model.dropout": 0.0,
    "data.name": "local",
    "data.path": "params.yaml",  # any file that is there
    "tokenizer.path": FOLDER,
    "train.init_from": FOLDER,
    "train.max_steps": 5,
    "train.eval_tokens": 10_000,
}


def plain_llama(words: int) -> PreTrainedModel:
    """Tied, a row a token."""
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=words, tie_word_embeddings=True, rope_parameters=rope, **SHAPE)
    )


def padded_qwen3(words: int) -> PreTrainedModel:
    """As Qwen's: rows to spare, heads wider than d_model / num_heads, another epsilon and base."""
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=(words // 128 + 1) * 128,
            head_dim=12,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
            rope_parameters=rope,
            **SHAPE,
        )
    )


def phi() -> Tokenizer:
    """One that already has a token of the name of a control token."""
    backend = gpt2()
    backend.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    return backend


Kind = tuple[Callable[[int], PreTrainedModel], Callable[[], Tokenizer], dict[str, Any]]
KINDS: dict[str, Kind] = {
    "llama": (plain_llama, llama3, {"model.tie_embeddings": True}),
    "llama-phi": (plain_llama, phi, {"model.tie_embeddings": True}),
    "qwen3": (
        padded_qwen3,
        qwen,
        {"model.tie_embeddings": False, "model.qk_norm": True, "model.rope_theta": 1_000_000.0},
    ),
}


def write_theirs(root: Path, kind: str) -> tuple[PreTrainedModel, int]:
    """A folder as it comes from the hub; the model in it, and how many ids its tokenizer has."""
    make, tokenizer, _ = KINDS[kind]
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), eos_token="<|endoftext|>")
    wrapped.save_pretrained(root / FOLDER)
    words = len(wrapped)
    model = lively(make(words))
    halves = model.to(torch.bfloat16) if kind == "qwen3" else model
    halves.save_pretrained(root / FOLDER, max_shard_size="20KB")
    return AutoModelForCausalLM.from_pretrained(root / FOLDER, dtype=torch.float32), words


@pytest.fixture(scope="module", params=KINDS)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreTrainedModel, int]:
    """The stages from tokenizer to train, begun from a folder of transformers'."""
    root = tmp_path_factory.mktemp("continued")
    theirs, words = write_theirs(root, request.param)
    write_params(root, tiny_params({**OURS, **KINDS[request.param][2]}))
    write_conversations(root, {"train": chats(40, 1), "validation": chats(8, 2)})
    for stage in ("check", "tokenizer", "shards", "preflight", "train"):
        call_stage(stage, root)
    return root, theirs, words


def resized(theirs: PreTrainedModel, words: int, vocab_size: int) -> PreTrainedModel:
    """What the training begins with, made by transformers: padding cut, means for new ids."""
    theirs.resize_token_embeddings(words)
    before = theirs.get_input_embeddings().weight.mean(0), theirs.lm_head.weight.mean(0)
    theirs.resize_token_embeddings(vocab_size, mean_resizing=False)
    with torch.no_grad():
        theirs.get_input_embeddings().weight[words:] = before[0]
        theirs.lm_head.weight[words:] = before[1]
    return theirs.eval()


def test_the_first_loss_is_that_of_transformers(
    trained: tuple[Path, PreTrainedModel, int],
) -> None:
    root, theirs, words = trained
    ours, tokenizer = load(root / "models/chat")
    stream = TokenStream(
        read_manifest(root / SHARDS, root / "data/tokenizer"), "validation", root / SHARDS
    )
    begun = resized(theirs, words, tokenizer.vocab_size)

    def nats(inputs: Tensor, labels: Tensor, documents: Tensor | None) -> Tensor:
        logits = begun(inputs).logits.flatten(0, 1)
        each = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="none")
        return each.view(labels.shape)

    expected = score(ours, stream, 10_000, nats).loss
    metrics = json.loads((root / "metrics/train.json").read_text(encoding="utf-8"))
    assert metrics["initial_val_loss"] == pytest.approx(expected, abs=2e-4)
    assert metrics["best_val_loss"] < metrics["initial_val_loss"]


def test_the_folder_that_it_leaves_opens_in_transformers(
    trained: tuple[Path, PreTrainedModel, int],
) -> None:
    root, theirs, _ = trained
    ours, tokenizer = load(root / "models/chat")
    opened = AutoModelForCausalLM.from_pretrained(root / "models/chat")
    assert type(opened) is type(theirs)
    for key in ("head_dim", "rms_norm_eps"):
        assert getattr(opened.config, key) == getattr(theirs.config, key)
    messages = [{"role": "user", "content": "yes <|user|> <|endoftext|> e\u0301"}]
    ids = AutoTokenizer.from_pretrained(root / "models/chat").apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert ids == tokenizer.encode_chat(messages, add_generation_prompt=True)
    with torch.no_grad():
        expected = opened(torch.tensor([ids])).logits
        torch.testing.assert_close(ours(torch.tensor([ids])), expected, atol=1e-4, rtol=0)


def test_known_tokens_keep_ids_and_control_tokens_come_after(
    trained: tuple[Path, PreTrainedModel, int],
) -> None:
    root, _, words = trained
    own = AutoTokenizer.from_pretrained(root / FOLDER)
    tokenizer = ChatTokenizer.load(root / "models/chat")
    plain = "and my house"
    expected = own(plain, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode(" " + plain if own.decode(expected)[0] == " " else plain) == expected
    before = own.convert_tokens_to_ids("<|end|>")
    if before is not None and before < words:
        assert tokenizer.end_id == before
    assert tokenizer.role_ids["user"] >= words


def test_it_goes_on_from_what_it_left(
    trained: tuple[Path, PreTrainedModel, int], tmp_path: Path
) -> None:
    """The folder of a first training is the beginning of a second, with the same two keys."""
    before, _, _ = trained
    root = tmp_path / "again"
    shutil.copytree(before / "models/chat", root / FOLDER)
    shutil.copytree(before / "data", root / "data")
    shutil.copyfile(before / "params.yaml", root / "params.yaml")
    for stage in ("check", "tokenizer", "shards", "preflight", "train"):
        call_stage(stage, root)
    first, second = (
        ChatTokenizer.load(folder / "data/tokenizer").backend.get_vocab()
        for folder in (before, root)
    )
    assert first == second
    losses = [
        json.loads((folder / "metrics/train.json").read_text(encoding="utf-8"))
        for folder in (before, root)
    ]
    assert losses[1]["initial_val_loss"] == pytest.approx(losses[0]["best_val_loss"], abs=1e-4)


def other_ids(root: Path) -> None:
    path = root / FOLDER / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def other_merges(root: Path) -> None:
    path = root / FOLDER / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["model"]["merges"].pop()
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def other_words(root: Path) -> None:
    path = root / FOLDER / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["pre_tokenizer"]["use_regex"] = False
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def no_tokenizer(root: Path) -> None:
    (root / FOLDER / "tokenizer.json").unlink()


def older_file(root: Path) -> None:
    """As files were written before tokenizers had these keys."""
    path = root / FOLDER / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    del tokenizer["pre_tokenizer"]["use_regex"], tokenizer["model"]["ignore_merges"]
    tokenizer["model"]["merges"] = [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def too_few_rows(root: Path) -> None:
    shutil.rmtree(root / FOLDER)
    model = lively(plain_llama(300))
    model.save_pretrained(root / FOLDER)
    PreTrainedTokenizerFast(tokenizer_object=phi()).save_pretrained(root / FOLDER)


@pytest.fixture(scope="module")
def shards_of_theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    write_theirs(root, "llama-phi")
    write_params(root, tiny_params({**OURS, **KINDS["llama-phi"][2]}))
    write_conversations(root, {"train": chats(40, 1), "validation": chats(8, 2)})
    for stage in ("tokenizer", "shards"):
        call_stage(stage, root)
    return root


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_ids, "is not that of data/tokenizer (id "),
        (other_merges, "is not that of data/tokenizer (its merges are others)"),
        (other_words, "is not that of data/tokenizer (it cuts text into other words)"),
        (no_tokenizer, "is no model folder: no tokenizer.json in 'theirs'"),
        (too_few_rows, "the tokenizer of 'theirs' has 360 ids, its model 300"),
    ],
)
def test_a_tokenizer_that_is_not_the_folders_own_is_one_line(
    shards_of_theirs: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    root = Path(shutil.copytree(shards_of_theirs, tmp_path / "root"))
    spoil(root)
    assert exit_code("preflight", root) == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert "train.init_from: " in line
    assert message in line


def test_a_file_of_older_form_is_the_folders_own(shards_of_theirs: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(shards_of_theirs, tmp_path / "root"))
    older_file(root)
    assert exit_code("preflight", root) == 0


def test_a_learnt_tokenizer_is_not_the_folders(
    shards_of_theirs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(shards_of_theirs, tmp_path / "root"))
    learnt = {**OURS, "tokenizer.path": "stages/tokenizer/learn.py"}
    write_params(root, tiny_params(learnt))
    call_stage("tokenizer", root)
    call_stage("shards", root)
    capfd.readouterr()
    assert exit_code("preflight", root) == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert "set tokenizer.path to 'theirs'" in line


def test_every_key_that_differs_is_named_before_anything_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_theirs(tmp_path, "qwen3")
    write_params(tmp_path, tiny_params({**OURS, "model.num_layers": 3, "model.d_ff": 32}))
    assert exit_code("check", tmp_path) == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert (
        "train.init_from: 'theirs' has another shape than the section model: "
        "-S model.num_layers=2 -S model.d_ff=24 -S model.rope_theta=1000000.0 "
        "-S model.qk_norm=true -S model.tie_embeddings=false"
    ) in line


@pytest.mark.parametrize(
    ("key", "named"), [("tokenizer.path", "is no folder"), ("train.init_from", "is no folder")]
)
def test_a_folder_that_is_not_there_is_named_before_anything_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], key: str, named: str
) -> None:
    (tmp_path / FOLDER).mkdir()
    gpt2().save(str(tmp_path / FOLDER / "tokenizer.json"))
    write_params(tmp_path, tiny_params({**OURS, "train.init_from": DRAWN, key: "nowhere"}))
    assert exit_code("check", tmp_path) == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert f"{key}: 'nowhere' {named}" in line
