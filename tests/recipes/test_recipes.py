"""Every recipe is valid, says what it is, and is applied by one command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from model.config import ModelConfig
from stages.check.__main__ import check
from stages.errors import SettingsError
from stages.params import read_yaml
from stages.plan.settings import overridden, settle
from stages.plan.sizes import parameters
from stages.recipes.book import FOLDER, flat, names, options_of, summary
from tests.closure import ROOT
from tests.conftest import environment, make_clone


def test_the_promised_recipes_are_there() -> None:
    assert {"lmsys", "alpaca", "pile", "own", "smoke", "one_gpu", "eight_gpus"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_a_recipe_is_valid_and_changes_what_it_names_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("stages.check.__main__.check_device", lambda runtime: None)
    wanted = read_yaml(FOLDER / f"{name}.yaml")
    given = []
    if name == "own":
        with pytest.raises(SettingsError, match=r"data\.path: set it to your own file"):
            check(overridden(options_of(name)))
        given, wanted["data"]["path"] = ["data.path=params.yaml"], "params.yaml"
    values = overridden([*options_of(name), *given])
    check(values)
    default = read_yaml()
    for section, keys in default.items():
        expected = {**keys, **wanted.get(section, {})} if isinstance(keys, dict) else keys
        assert values[section] == expected
    # No key says what params.yaml says anyhow, but where the size of all is the point.
    assert any(values[section] != default[section] for section in wanted)
    settings = settle(values)
    settings.train.check_processes(settings.runtime.processes, settings.runtime.parallel)
    assert settings.train.warmup_steps < (settings.train.max_steps or 10**9)


@pytest.mark.parametrize("name", names())
def test_a_recipe_says_what_to_expect(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert len(summary(name)) > 20
    assert any(word in " ".join(head) for word in ("Measured", "Estimated"))
    for word in ("loss", "memory"):
        assert word in " ".join(head), word


@pytest.mark.parametrize(
    ("name", "millions"), [("lmsys", 112), ("one_gpu", 31), ("eight_gpus", 303)]
)
def test_sizes_that_a_recipe_states(
    name: str, millions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    values = overridden(options_of(name))
    config = ModelConfig(vocab_size=values["tokenizer"]["vocab_size"], **values["model"])
    assert round(parameters(config).total / 1e6) == millions
    assert f"{millions} million parameters" in summary(name)


def command(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stages.recipes", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_list_and_the_options() -> None:
    listed = command()
    assert listed.returncode == 0
    for name in names():
        assert any(
            line.startswith(name) and summary(name) in line for line in listed.stdout.splitlines()
        )
    shown = command("lmsys", "--queue", "--print")
    assert shown.stdout.startswith("dvc exp run -S data.name=lmsys/lmsys-chat-1m ")
    assert "-S train.lr=0.0003" in shown.stdout
    assert shown.stdout.rstrip().endswith("--queue")


def test_an_unknown_name_is_one_line_with_the_nearest() -> None:
    failed = command("smok")
    assert failed.returncode == 2
    assert (
        failed.stderr == "error: recipes: no recipe 'smok': did you mean 'smoke'? (exit code 2)\n"
    )
    with pytest.raises(SettingsError, match="there are: alpaca, "):
        options_of("zzz")


def test_values_survive_the_way_through_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    awkward = {
        "evaluate": {"prompts": ['What\'s "new", 3=4?', "true", "a,b", "\\", "Hi {you}: [x]"]},
        "train": {"lr": 1e-5, "betas": [0.9, 0.95], "max_steps": None},
        "data": {"filter": {"language": "English", "model": ["gpt-4", "a b"]}},
    }
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(awkward))
    monkeypatch.setattr("stages.recipes.book.FOLDER", tmp_path)
    values = overridden(options_of("odd"))
    for key, value in flat(awkward):
        place: object = values
        for part in key.removeprefix("++").split("."):
            assert isinstance(place, dict)
            place = place[part]
        assert place == value


def test_smoke_runs_from_a_clone_keeps_comments_and_is_recorded(tmp_path: Path) -> None:
    run = make_clone(tmp_path, {})
    before = (tmp_path / "params.yaml").read_text(encoding="utf-8")
    done = command("smoke", "-S", "train.max_steps=4", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    after = (tmp_path / "params.yaml").read_text(encoding="utf-8")

    def comments(text: str) -> list[str]:
        return [line.partition("#")[2].strip() for line in text.splitlines() if "#" in line]

    assert comments(after) == comments(before)
    lock = read_yaml(tmp_path / "dvc.lock")["stages"]["train"]["params"]["params.yaml"]
    wanted = read_yaml(FOLDER / "smoke.yaml")
    assert lock["model"].items() >= wanted["model"].items()
    assert lock["train"]["max_steps"] == 4
    metrics = json.loads((tmp_path / "metrics/train.json").read_text(encoding="utf-8"))
    assert metrics["steps"] == 4
    assert "smoke" in names()
    assert run("dvc", "params", "diff").stdout
