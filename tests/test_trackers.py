"""A tracker hears what happens, and can neither stop a stage nor change what it writes.

The real ``wandb`` logs offline, and to servers that answer, that refuse and that never answer.
"""

import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from stages import trackers
from stages.runtime import RuntimeParams
from stages.trackers import NoTracker, WandbParams, WandbTracker, open_tracker, reopen_tracker
from tests.builders import tiny_params
from tests.wandb_server import ServedRun, WandbServer, wandb_server


def wandb_params(**changes: Any) -> WandbParams:
    return WandbParams(**tiny_params({f"wandb.{k}": v for k, v in changes.items()})["wandb"])


def runtime(folder: Path) -> RuntimeParams:
    return RuntimeParams(**tiny_params({"runtime.checkpoint_dir": str(folder)})["runtime"])


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of W&B or DVC but those of the test; what is written stays below it."""
    for name in [*os.environ]:
        if name.startswith(("WANDB_", "DVC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.chdir(tmp_path)


def records(folder: Path) -> list[Record]:
    """What the runs of a folder wrote, oldest first.

    W&B's files are LevelDB logs: blocks of 32 KiB that hold pieces, each with its checksum (4
    bytes), length (2) and kind (1): whole, first, middle or last of a record.
    """
    found = []
    for path in sorted(folder.rglob("*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        data, position, record = path.read_bytes(), 7, b""
        while position + 7 <= len(data):
            if 2**15 - position % 2**15 < 7:
                position += 2**15 - position % 2**15
                continue
            _, length, kind = struct.unpack_from("<IHB", data, position)
            record += data[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):
                found.append(Record.FromString(record))
                record = b""
    return found


def logged(found: list[Record]) -> list[dict[str, Any]]:
    """The values of each step."""
    return [
        {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in r.history.item
        }
        for r in found
        if r.HasField("history")
    ]


def test_off_means_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)  # a call would raise
    off = wandb_params(enabled=False)
    with open_tracker(off, runtime(tmp_path), tmp_path, {}) as tracker:
        assert isinstance(tracker, NoTracker)
        tracker.log(1, {"loss": 1.0})
    # Nor where no run made the model, as when it came from DVC's cache.
    on = wandb_params(enabled=True)
    assert isinstance(reopen_tracker(on, runtime(tmp_path), tmp_path), NoTracker)


def test_of_several_processes_the_first_alone_logs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    tracker = open_tracker(wandb_params(enabled=True), runtime(tmp_path), tmp_path, {})
    assert isinstance(tracker, NoTracker)


def test_a_package_that_is_not_there_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    tracker = open_tracker(wandb_params(enabled=True), runtime(tmp_path), tmp_path, {})
    assert isinstance(tracker, NoTracker)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("the package is not installed (pip install wandb)")


def three_stages(folder: Path, mode: str) -> None:
    """A training that ends early, what resumes it two steps before, and the evaluation."""
    params = wandb_params(enabled=True, project_name="p", mode=mode)
    model = folder / "chat"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    for steps in (range(1, 4), range(2, 5)):
        with open_tracker(
            params, runtime(folder), folder / "state", {"train": {"lr": 0.1}}
        ) as tracker:
            for step in steps:
                tracker.log(step, {"train_loss": 1 / step, "grad_norm": float("nan")})
                tracker.log(step, {"val_loss": 2 / step})
            tracker.summary({"train": {"steps": steps[-1]}})
            tracker.made(model)
    with reopen_tracker(params, runtime(folder), model) as tracker:
        tracker.summary({"eval": {"bits_per_byte": 1.5}})
        tracker.table("samples", ("prompt", "text"), [("Hi!", "Hello.")])


def test_offline_holds_params_history_summary_and_samples_of_one_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "brave-name")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "root"))
    (tmp_path / "root").mkdir()
    three_stages(tmp_path, "offline")
    found = records(tmp_path / "root/wandb")
    runs = [record.run for record in found if record.HasField("run")]
    assert {(run.project, run.run_id) for run in runs} == {
        ("p", (tmp_path / "state" / trackers.ID_FILE).read_text().strip())
    }
    assert runs[0].display_name == "brave-name"
    config = {c.key: json.loads(c.value_json) for run in runs for c in run.config.update}
    assert config["train"] == {"lr": 0.1}
    history = logged(found)
    assert [row["_step"] for row in history if "train_loss" in row] == [1, 2, 3, 2, 3, 4]
    assert history[1]["train_loss"] == 0.5
    (rows,) = (row["samples.nrows"] for row in history if "samples.nrows" in row)
    assert rows == 1
    summary = {
        ".".join(item.nested_key) or item.key: json.loads(item.value_json)
        for record in found
        for item in record.summary.update
    }
    assert summary["eval"] == {"bits_per_byte": 1.5}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server that answers, however long the machine that runs the tests takes."""
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 120.0)
    monkeypatch.setattr(trackers, "INIT_SECONDS", 60.0)
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server


def until(done: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def wandb_sync(*options: str) -> str:
    """What the command says."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "wandb"), "sync", "--yes", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=True,
    )
    return str(done.stdout)


def check_arrived(run: ServedRun, folder: Path) -> None:
    """What ``three_stages`` logged is there."""
    assert run.id == (folder / "state" / trackers.ID_FILE).read_text().strip()
    assert (run.project, run.name) == ("p", "brave-name")
    assert run.exit_codes == [0, 0, 0]
    assert run.config["train"]["value"] == {"lr": 0.1}
    charts = {"2": "*", "5": 2, "6": [], "7": []}  # all over the second metric of the list
    assert run.config["_wandb"]["value"]["m"] == [charts, {"1": "step", "6": [], "7": []}]
    rows = [row for row in run.history if "train_loss" in row]
    assert {row["step"] for row in rows} == {1, 2, 3, 4}
    for row in rows:
        assert (row["train_loss"], row["val_loss"]) == (1 / row["step"], 2 / row["step"])
        assert math.isnan(row["grad_norm"])
    assert run.summary["train"] == {"steps": 4}
    assert run.summary["eval"] == {"bits_per_byte": 1.5}
    assert run.summary["samples"]["nrows"] == 1
    table = run.table("samples")
    assert (table["columns"], table["data"]) == (["prompt", "text"], [["Hi!", "Hello."]])


def test_a_server_that_answers_has_all_stages_in_one_run(
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "brave-name")
    three_stages(tmp_path, "online")
    check_arrived(server.the_run(), tmp_path)
    assert server.the_run().resumed == 2
    # The steps that were repeated are no second rows.
    assert [row["_step"] for row in server.the_run().history] == [1, 2, 3, 4, 5]
    assert capfd.readouterr().err == ""


def test_an_offline_run_of_all_stages_is_one_run_when_it_is_uploaded(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "brave-name")
    three_stages(tmp_path, "offline")
    assert server.runs == {}
    wandb_sync()
    check_arrived(server.the_run(), tmp_path)
    assert "No runs to sync" in wandb_sync()


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_server_that_refuses_makes_the_run_an_offline_one(
    status: int,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(trackers, "INIT_SECONDS", 2.0)  # W&B asks again after a 500
    server.status = status
    params = wandb_params(enabled=True, mode="online")
    with open_tracker(params, runtime(tmp_path), tmp_path, {}) as tracker:
        tracker.log(1, {"loss": 1.0})
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("W&B is offline for this run (`wandb sync` uploads it)")
    assert str(status) in line
    server.status = 200
    wandb_sync()
    assert [row["loss"] for row in server.the_run().history] == [1.0]


def test_a_server_that_hangs_amid_a_run_is_left_in_time_and_gets_the_rest_later(
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    params = wandb_params(enabled=True, mode="online", run_name="mine")
    with open_tracker(params, runtime(tmp_path), tmp_path / "other", {}) as tracker:
        tracker.log(1, {"loss": 0.0})
    server.runs.clear()
    server.hangs_after = "UpsertBucket"
    with open_tracker(params, runtime(tmp_path), tmp_path, {}) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"loss": 1 / step})
        # W&B keeps the last row until it knows that nothing is added to it.
        until(lambda: len(logged(records(tmp_path / "wandb"))) == 1 + 2)
        started = time.monotonic()
        monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.2)
    assert time.monotonic() - started < 60  # waiting would be for ever
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("W&B has not finished within")
    assert server.the_run().history == []
    server.hangs_after = None
    server.awake.set()
    (command,) = (part for part in line.split("`") if part.startswith("wandb sync"))
    wandb_sync(*command.split()[2:])
    assert [row["loss"] for row in server.the_run().history][:2] == [1.0, 0.5]
    assert server.the_run().name == "mine"  # the other is not uploaded again


@pytest.fixture
def hanging_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def dead_server() -> str:
    """An address where nobody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("server", ["dead_server", "hanging_server"])
def test_a_server_that_does_not_answer_makes_the_run_an_offline_one(
    server: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    # A limit that no load of the machine that runs the tests makes too short.
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 120.0)
    monkeypatch.setattr(trackers, "INIT_SECONDS", 2.0)
    monkeypatch.setenv("WANDB_BASE_URL", request.getfixturevalue(server))
    params = wandb_params(enabled=True, mode="online")
    with open_tracker(params, runtime(tmp_path), tmp_path, {}) as tracker:
        tracker.log(1, {"loss": 1.0})
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "W&B" in line]
    assert line.startswith("W&B is offline for this run (`wandb sync` uploads it)")
    assert [row["loss"] for row in logged(records(tmp_path / "wandb/")) if "loss" in row] == [1.0]


def test_what_never_ends_is_left_in_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.2)
    (tmp_path / "hang/stages").mkdir(parents=True)
    (tmp_path / "hang/stages/__init__.py").touch()
    (tmp_path / "hang/stages/trackers.py").write_text("import time\ntime.sleep(3600)\n")
    monkeypatch.setattr(trackers, "ROOT", tmp_path / "hang")
    monkeypatch.chdir(tmp_path / "hang")
    tracker = open_tracker(wandb_params(enabled=True), runtime(tmp_path), tmp_path, {})
    assert isinstance(tracker, WandbTracker)
    with tracker:
        started = time.monotonic()
        for step in range(5_000):  # more than the pipe holds
            tracker.log(step, {"loss": 1.0})
        assert time.monotonic() - started < 60  # waiting would be for ever
    assert "W&B has not finished" in capsys.readouterr().err
    assert tracker._process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("message", "told"), [("a\nb", "a b"), ("", "OSError")])
def test_a_failure_inside_is_told_in_one_line_and_ends_the_run(
    message: str,
    told: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "wandb.py").write_text(
        "from pathlib import Path\n"
        "class Run:\n"
        "    def define_metric(self, name, **values): ...\n"
        "    def log(self, values, step):\n"
        f"        raise OSError({message!r})\n"
        "    def finish(self, exit_code):\n"
        "        Path('ended').write_text(str(exit_code))\n"
        "def Settings(**values): ...\n"
        "def init(**values):\n"
        "    return Run()\n"
    )
    tracker = open_tracker(wandb_params(enabled=True), runtime(tmp_path), tmp_path, {})
    assert isinstance(tracker, WandbTracker)
    with tracker:
        for step in range(5_000):  # more than the pipe holds
            tracker.log(step, {"loss": 1.0})
    assert capfd.readouterr().err.splitlines() == [f"W&B is off for this run: {told}"]
    assert (tmp_path / "ended").read_text() == "1"
    tracker._writer.join(timeout=60)
    assert tracker._lines.empty()


def test_a_stage_that_is_killed_leaves_no_process_and_a_run_that_can_be_uploaded(
    tmp_path: Path,
) -> None:
    program = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from stages.trackers import open_tracker\n"
        "from tests.test_trackers import runtime, wandb_params\n"
        "here = Path.cwd()\n"
        "t = open_tracker(wandb_params(enabled=True), runtime(here), here, {}).__enter__()\n"
        "t.log(1, {'loss': 1.0})\n"
        "while not t._lines.empty(): pass\n"
        "print(t._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(trackers.ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    until = time.monotonic() + 120
    while Path(f"/proc/{done.stdout.strip()}").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    assert [row["loss"] for row in logged(records(tmp_path / "wandb"))] == [1.0]
