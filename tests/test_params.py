"""params.yaml: read as YAML 1.2, validated in one place, every mistake one line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.check.__main__ import SECTIONS, check
from stages.errors import SettingsError
from stages.params import read_yaml
from tests.closure import ROOT
from tests.conftest import environment


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(ROOT)
    return read_yaml()


def put(values: dict[str, Any], key: str, value: object) -> None:
    *path, last = key.split(".")
    for part in path:
        values = values[part]
    values[last] = value


def parse(text: str, folder: Path) -> Any:
    path = folder / "params.yaml"
    path.write_text(f"value: {text}\n", encoding="utf-8")
    return read_yaml(path)["value"]


def test_committed_params_are_valid(values: dict[str, Any]) -> None:
    check(values)


def test_every_section_of_the_file_has_a_schema_and_back(values: dict[str, Any]) -> None:
    assert list(values) == list(SECTIONS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1e-05", 1e-5),
        ("3E4", 3e4),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("12", 12),
        ("0x10", 16),
        ("0o17", 15),
        ("010", 10),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("null", None),
        ("~", None),
        ("", None),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ('"1e-4"', "1e-4"),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text: str, value: object, tmp_path: Path) -> None:
    found = parse(text, tmp_path)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\na: 2\n", "params.yaml:2: key 'a' is given twice"),
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: \x00\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_one_error(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=message):
        read_yaml(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.lrr", 1, "unknown key 'train.lrr': did you mean 'train.lr'"),
        ("train.learning_rate", 1, "did you mean 'train.lr'"),
        ("modl", {}, "unknown key 'modl': did you mean 'model'"),
        ("model.n_layers", 3, "did you mean 'model.num_layers'"),
        ("train.lr", "fast", "train.lr: input should be a valid number, not 'fast'"),
        ("train.lr", True, "train.lr"),
        ("train.lr", float("nan"), "train.lr"),
        ("train.lr", -1.0, "train.lr: input should be greater than 0"),
        ("train.min_lr", 1.0, "train.min_lr: 1.0 is above lr"),
        ("train.betas", [0.9], "train.betas: list should have at least 2 items, not [0.9]"),
        ("train.betas", [0.9, 1.0], "train.betas.1"),
        ("train.schedule", "cosin", "train.schedule"),
        ("train.mixed_precision", "no", "train.mixed_precision"),
        ("train.max_steps", 10.0, "train.max_steps"),
        ("train.batch_size", 0, "train.batch_size"),
        ("model.num_heads", 3, "model.d_model: 128 is not divisible by num_heads 3"),
        ("model.kv_heads", 3, "model.num_heads: 2 is not divisible by kv_heads 3"),
        ("model.d_model", 130, "odd"),
        ("model.dropout", 1.0, "model.dropout"),
        ("tokenizer.vocab_size", 100, "tokenizer.vocab_size: 100 is below 263"),
        ("data.val_fraction", 0, "data.val_fraction"),
        ("data.val_fraction", 1, "data.val_fraction"),
        ("data.name", "local", "data.path: set it to your own file"),
        ("data.name", "chitcat", "data.name: no source 'chitcat': did you mean 'chitchat'?"),
        ("data.name", "Local", "data.name: no source 'Local': did you mean 'local'?"),
        ("data.name", "a/b/c", "data.name: 'a/b/c' is neither chitchat, local nor an id of the"),
        ("data.name", "a b/c", "data.name: 'a b/c' is neither"),
        ("data.path", "no/such/file", "data.path: 'no/such/file' does not exist"),
        ("data.path", "tests", "data.path: 'tests' is not used unless data.name is local"),
        (
            "data.config",
            "en",
            "data.config: 'en': it is used for data sets of the Hugging Face hub",
        ),
        ("train.init_from", "no/such", "train.init_from: 'no/such' is no folder: name a model"),
        ("data.split", "test", "data.split: 'test': chitchat has no splits: set it back to train"),
        (
            "data.revision",
            "v2",
            "data.revision: 'v2': it is used for data sets of the Hugging Face",
        ),
        ("data.filter", {"language": {"is": "English"}}, "data.filter"),
        ("evaluate.prompts", "hi", "evaluate.prompts"),
        ("wandb.mode", "of", "wandb.mode"),
        ("wandb.project_name", "a/b", "wandb.project_name: W&B takes names of at most 128"),
        ("wandb.project_name", "a" * 129, "wandb.project_name: W&B takes names of at most 128"),
        ("runtime.device", "gpu", "runtime.device"),
        ("seed", "one", "seed"),
        ("seed", -1, "seed"),
        ("data", None, "data: should be a section with keys, not None"),
        ("train", 5, "train: should be a section with keys, not 5"),
    ],
)
def test_a_mistake_names_its_key(
    key: str, value: object, message: str, values: dict[str, Any]
) -> None:
    put(values, key, value)
    with pytest.raises(SettingsError) as caught:
        check(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("local", {"path": "tests"}, ""),
        ("local", {"path": "README.md", "split": "test"}, "data.split: 'test': .*has no splits"),
        ("local", {"path": "README.md", "validation_split": "a"}, "data.validation_split: 'a': "),
        ("local", {"path": "~/a.jsonl"}, "data.path: '~/a.jsonl' does not exist: .*whole path"),
        ("local", {"path": "/dev/null"}, "data.path: '/dev/null' is neither a file nor a folder"),
        ("local", {"path": "tests", "config": "en"}, "data.config: 'en': it is used for data sets"),
        ("acme/chats", {"config": "en", "split": "test", "revision": "v2"}, ""),
        ("acme/chats", {"path": "tests"}, "data.path: 'tests' is not used unless"),
    ],
)
def test_a_key_of_data_counts_for_its_kind_of_source_alone(
    name: str, changes: dict[str, Any], message: str, values: dict[str, Any]
) -> None:
    values["data"] = {**values["data"], "name": name, **changes}
    if not message:
        check(values)
        return
    with pytest.raises(SettingsError, match=message):
        check(values)


@pytest.mark.parametrize(
    ("key", "named", "file"),
    [
        ("data.path", "chats.jsonl", "chats.jsonl"),
        ("tokenizer.path", "own/tokenizer.json", "own/tokenizer.json"),
        ("train.init_from", "own", "own/config.json"),
    ],
)
def test_what_a_queued_run_was_not_given_is_told(
    key: str,
    named: str,
    file: str,
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("{}\n", encoding="utf-8")
    put(values, "data.name", "local")
    put(values, "data.path", "README.md")
    put(values, key, named)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    with pytest.raises(SettingsError) as caught:
        check(values)
    assert "copy" not in str(caught.value)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(SettingsError) as caught:
        check(values)
    said = str(caught.value)
    assert f"{key}: '{named}' " in said
    assert "in this copy of the repository, which has what git tracks: name it by its" in said
    assert said.endswith(f"whole path, {tmp_path / named}")


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_or_key_is_named(section: str, values: dict[str, Any]) -> None:
    if isinstance(values[section], dict):
        key = next(iter(values[section]))
        without = {**values, section: {k: v for k, v in values[section].items() if k != key}}
        with pytest.raises(SettingsError, match=f"'{section}.{key}' is missing"):
            check(without)
    del values[section]
    with pytest.raises(SettingsError, match=f"'{section}' is missing"):
        check(values)


@pytest.mark.parametrize("stage", ["check", "download", "tokenizer", "shards", "train"])
def test_a_stage_run_alone_fails_in_one_line_with_code_2(stage: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("sed: 1\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: {stage}: ")
    assert not (tmp_path / "data").exists()
