"""A tracker hears what happens, and can stop nothing."""

import sys
from types import ModuleType
from typing import Any

import pytest

from stages.train.trackers import NoTracker, WandbParams, open_tracker
from tests.builders import tiny_params


class FakeWandb(ModuleType):
    """The part of ``wandb`` that is used; ``fails`` names the call that raises."""

    def __init__(self, fails: str = "") -> None:
        super().__init__("wandb")
        self.fails = fails
        self.calls: list[tuple[str, Any]] = []

    def _call(self, name: str, value: Any) -> None:
        self.calls.append((name, value))
        if name == self.fails:
            raise RuntimeError("no\nnetwork")

    def Settings(self, **values: Any) -> dict[str, Any]:
        return values

    def init(self, **values: Any) -> "FakeWandb":
        self._call("init", values)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self._call("log", (step, values))

    def finish(self) -> None:
        self._call("finish", None)


def wandb_params(**changes: Any) -> WandbParams:
    return WandbParams(**tiny_params({f"wandb.{k}": v for k, v in changes.items()})["wandb"])


def test_off_means_no_tracker_and_no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    tracker = open_tracker(wandb_params(enabled=False), {})
    assert isinstance(tracker, NoTracker)
    tracker.log(1, {"loss": 1.0})
    tracker.finish()


def test_settings_and_values_reach_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    params = wandb_params(enabled=True, project_name="p", run_name="r", mode="offline")
    tracker = open_tracker(params, {"seed": 1})
    tracker.log(3, {"loss": 1.0})
    tracker.finish()
    (_, started), *rest = fake.calls
    assert {key: started[key] for key in ("project", "name", "mode", "config")} == {
        "project": "p",
        "name": "r",
        "mode": "offline",
        "config": {"seed": 1},
    }
    assert rest == [("log", (3, {"loss": 1.0})), ("finish", None)]


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_failure_is_told_once_in_one_line_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: str
) -> None:
    fake = FakeWandb(fails)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker = open_tracker(wandb_params(enabled=True), {})
    for step in range(3):
        tracker.log(step, {"loss": 1.0})
    tracker.finish()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line.endswith("W&B is off for this run: no network")
    assert [name for name, _ in fake.calls].count(fails) == 1
