"""Training can begin with the weights of a model folder, if they mean the same here."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import DRAWN
from model.reading import load_model
from model.saving import save_model
from model.transformer import Transformer
from stages.corpus import SHARDS, TokenStream, read_manifest
from stages.files import rounded
from stages.scoring import score
from stages.train.start import start_sum, start_weights
from tests.builders import (
    build_data,
    call_stage,
    error_lines,
    exit_code,
    tiny_params,
    write_params,
)
from tests.train.worlds import outputs, prepare, saves

BEGINNING = "beginning"


@pytest.fixture(scope="module")
def world(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and, in ``beginning``, a model that was trained on it."""
    root = prepare(data, tmp_path_factory.mktemp("start") / "root", {"train.max_steps": 10})
    call_stage("train", root)
    (root / "models/chat").rename(root / BEGINNING)
    for name in ("models", "metrics", ".checkpoints"):
        shutil.rmtree(root / name)
    return root


@pytest.fixture
def root(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "root"))


def train_on(root: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Trains from the folder; what train.json says."""
    write_params(root, tiny_params({"train.init_from": BEGINNING, **(changes or {})}))
    call_stage("train", root)
    read: dict[str, Any] = json.loads((root / "metrics/train.json").read_text(encoding="utf-8"))
    return read


def test_the_first_validation_is_that_of_the_folders_model(root: Path) -> None:
    manifest = read_manifest(root / SHARDS, root / "data/tokenizer")
    stream = TokenStream(manifest, "validation", root / SHARDS)
    expected = score(load_model(root / BEGINNING), stream, 200).loss
    metrics = train_on(root)
    assert metrics["initial_val_loss"] == rounded(expected)
    assert metrics["best_val_loss"] < metrics["initial_val_loss"]


def test_a_training_that_learns_nothing_ends_with_the_folders_weights(root: Path) -> None:
    train_on(root, {"train.max_steps": 1, "train.lr": 1e-30})
    weights = [load_file(root / name / "model.safetensors") for name in (BEGINNING, "models/chat")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_two_trainings_from_a_folder_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(root, tmp_path / "again"))
    train_on(root)
    train_on(again)
    assert outputs(root) == outputs(again)


def test_settings_that_change_no_weight_may_differ(root: Path) -> None:
    changes = {"model.seq_len": 16, "model.dropout": 0.0, "train.document_mask": True}
    assert train_on(root, changes)["steps"] == 6


def test_the_module_that_draws_is_the_default_and_changes_nothing() -> None:
    class Untouchable:
        def load_state_dict(self, state: object) -> None:
            raise AssertionError

    model: Any = Untouchable()
    start_weights(model, DRAWN)
    assert start_sum(DRAWN) == DRAWN
    assert tiny_params()["train"]["init_from"] == DRAWN


def change(folder: Path) -> None:
    """Moves one weight of a model folder by a little."""
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_changed_folder_is_another_beginning(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = start_sum(str(root / BEGINNING))
    train_on(root)
    (first,) = (root / ".checkpoints").iterdir()
    change(root / BEGINNING)
    assert start_sum(str(root / BEGINNING)) != before
    capsys.readouterr()
    train_on(root)
    assert "resumed" not in capsys.readouterr().err
    assert len({save.parent for save in saves(root)} | {first}) == 2


def no_folder(root: Path) -> None:
    shutil.rmtree(root / BEGINNING)


def no_config(root: Path) -> None:
    (root / BEGINNING / "config.json").unlink()


def no_weights(root: Path) -> None:
    (root / BEGINNING / "model.safetensors").unlink()


def damaged_config(root: Path) -> None:
    (root / BEGINNING / "config.json").write_text("{", encoding="utf-8")


def other_tokenizer(root: Path) -> None:
    path = root / BEGINNING / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    # Two ids change places.
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def leave(root: Path) -> None: ...


@pytest.mark.parametrize(
    ("spoil", "changes", "message"),
    [
        (no_folder, {}, "train.init_from: 'beginning' is no folder"),
        (no_config, {}, "train.init_from: 'beginning' is no model folder: no config.json"),
        (no_weights, {}, "train.init_from: 'beginning' is no model folder: no model.safetensors"),
        (damaged_config, {}, "train.init_from: 'beginning' is no model folder:"),
        (other_tokenizer, {}, "train.init_from: the tokenizer of 'beginning' is not"),
        (leave, {"model.d_model": 32}, "the section model: -S model.d_model=16 "),
        (leave, {"model.num_layers": 1}, "the section model: -S model.num_layers=2 "),
        (leave, {"model.kv_heads": 2}, "the section model: -S model.kv_heads=1 "),
        (leave, {"model.d_ff": 48}, "the section model: -S model.d_ff=32 "),
        (leave, {"model.rope_theta": 500.0}, "the section model: -S model.rope_theta=10000.0 "),
        (leave, {"model.qk_norm": True}, "the section model: -S model.qk_norm=false "),
        (leave, {"model.tie_embeddings": False}, "model: -S model.tie_embeddings=true "),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line_before_training(
    root: Path,
    capfd: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    changes: dict[str, Any],
    message: str,
) -> None:
    spoil(root)
    write_params(root, tiny_params({"train.init_from": BEGINNING, **changes}))
    assert exit_code("preflight", root) == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert message in line
    assert line.endswith("(exit code 2)")


@pytest.mark.parametrize(("key", "value"), [("head_dim", 16), ("norm_eps", 1e-3)])
def test_what_no_key_says_is_taken_from_the_folder(root: Path, key: str, value: Any) -> None:
    write_beginning(root, **{key: value})
    metrics = train_on(root)
    assert getattr(load_model(root / "models/chat").config, key) == value
    manifest = read_manifest(root / SHARDS, root / "data/tokenizer")
    stream = TokenStream(manifest, "validation", root / SHARDS)
    expected = score(load_model(root / BEGINNING), stream, 200).loss
    assert metrics["initial_val_loss"] == rounded(expected)


def test_rows_that_no_token_has_are_left_out(root: Path) -> None:
    opened = write_beginning(root, vocab_size=320)
    train_on(root, {"train.max_steps": 1, "train.lr": 1e-30})
    model = load_model(root / "models/chat")
    assert model.config.vocab_size == 300
    assert torch.equal(model.embedding.weight, opened.embedding.weight[:300])


def write_beginning(root: Path, **changes: Any) -> Transformer:
    """Puts another model into the folder, with the same tokenizer."""
    config = replace(load_model(root / BEGINNING).config, **{"head_dim": 0, **changes})
    shutil.rmtree(root / BEGINNING)
    model = Transformer(config)
    save_model(root / BEGINNING, config, model.state_dict(), root / "data/tokenizer", "")
    return model


def test_a_folder_that_fits_passes(root: Path) -> None:
    write_params(root, tiny_params({"train.init_from": BEGINNING}))
    assert exit_code("preflight", root) == 0


def test_shards_of_another_vocabulary_are_another_tokenizer(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = build_data(tmp_path / "other", {"tokenizer.vocab_size": 310})
    shutil.copytree(root / BEGINNING, other / BEGINNING)
    changes = {"train.init_from": BEGINNING, "tokenizer.vocab_size": 310}
    write_params(other, tiny_params(changes))
    capfd.readouterr()
    assert exit_code("preflight", other) == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert "train.init_from: the tokenizer of 'beginning' is not" in line


def test_a_network_is_filled_whole(world: Path) -> None:
    folder = world / BEGINNING
    opened = load_model(folder)
    model = Transformer(opened.config)
    start_weights(model, str(folder))
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(model.parameters(), opened.parameters(), strict=True)
    )
    assert model.head.weight is model.embedding.weight
