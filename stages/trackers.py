"""Where a run is followed live: the one place that knows Weights & Biases.

A tracker hears what happens and changes nothing. W&B runs in a process of its own, which reads
lines of JSON from a pipe: what it does there, waits for or breaks costs the stage no byte and no
time but at the end, where FINISH_SECONDS is the most that is waited for it. A server that does not
answer makes the run an offline one, which ``wandb sync`` uploads later.
"""

import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Annotated, Any, Literal, Protocol

from pydantic import Field, field_validator

from stages.files import sha256_file, write_json, write_text
from stages.params import Section
from stages.place import speaks
from stages.progress import say
from stages.runtime import RuntimeParams
from stages.scratch import scratch_folder

# A stage ends at most FINISH_SECONDS later for W&B's sake; what takes longer is cut off.
FINISH_SECONDS = 15.0
INIT_SECONDS = 8.0  # leaves time for the run to be an offline one before that
FLUSH_SECONDS = 1.0  # at most what is not yet in W&B's file when it is cut off
ORPHAN_SECONDS = 60  # of a process whose stage was killed
# W&B's own count of steps goes on beyond steps that a resumed offline run repeats; charts use this.
STEP = "step"
NOT_IN_PROJECT, LONGEST_PROJECT = "/\\#?%:", 128
ID_FILE, RUNS = "wandb.txt", "wandb"
ROOT = Path(__file__).resolve().parent.parent

Values = Mapping[str, Any]


class WandbParams(Section):
    """Logging to Weights & Biases."""

    enabled: bool
    project_name: Annotated[str, Field(min_length=1)]
    run_name: str | None
    mode: Literal["online", "offline"]

    @field_validator("project_name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        """As W&B has it, which else would refuse the run when it begins."""
        if len(value) > LONGEST_PROJECT or any(character in NOT_IN_PROJECT for character in value):
            raise ValueError(
                f"W&B takes names of at most {LONGEST_PROJECT} characters, without any of "
                f"{' '.join(NOT_IN_PROJECT)}; not '{value[:60]}'"
            )
        return value


class Tracker(AbstractContextManager["Tracker", None], Protocol):
    """Hears values at steps and of the whole run; entered, it is closed at the end."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """``values`` hold after ``step`` updates."""

    def summary(self, values: Values) -> None:
        """What the run came to; may be nested."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Rows to read, such as samples."""

    def made(self, model: Path) -> None:
        """The run wrote this model folder: what measures it later belongs to the same run."""


class NoTracker(Tracker):
    """Hears nothing."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def summary(self, values: Values) -> None: ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...

    def made(self, model: Path) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class WandbTracker(Tracker):
    """Sends what it hears to the process that logs to Weights & Biases."""

    def __init__(
        self, params: WandbParams, runtime: RuntimeParams, run_id: str, config: Values | None
    ) -> None:
        """``config`` is None where a run that has one is continued."""
        self._runtime, self._id = runtime, run_id
        self._summary: dict[str, Any] = {}
        # The working folder of a queued experiment is removed when it ends.
        folder = os.environ.get("WANDB_DIR") or os.environ.get("DVC_ROOT") or Path.cwd()
        self._folder = Path(folder)
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        # A session of its own: Ctrl-C is for the stage, which then closes the pipe.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stages.trackers"],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "WANDB_SILENT": "true",  # also while it logs in
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        # The pipe is full when W&B is slow; only this thread waits for it then.
        arguments = (self._process.stdin, self._lines)
        self._writer = threading.Thread(target=_write, args=arguments, daemon=True)
        self._writer.start()
        self._send(
            "init",
            id=run_id,
            project=params.project_name,
            # The name that DVC gave the experiment, so that both tables show the same.
            name=params.run_name or os.environ.get("DVC_EXP_NAME"),
            mode=params.mode,
            config=config,
            dir=str(self._folder),
            pid=os.getpid(),
            wait=INIT_SECONDS,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._send("log", step=step, values=values)

    def summary(self, values: Values) -> None:
        self._summary.update(values)
        self._send("summary", values=values)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._send("table", name=name, columns=columns, rows=rows)

    def made(self, model: Path) -> None:
        write_json(_run_of(model, self._runtime), {"id": self._id, "summary": self._summary})

    def _send(self, kind: str, **values: Any) -> None:
        self._lines.put(json.dumps([kind, values]).encode() + b"\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._send("finish", exit_code=0 if kind is None else 1)
            self._lines.put(None)
            self._process.wait(FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            say(
                f"W&B has not finished within {FINISH_SECONDS:.0f} s and was left: "
                f"`wandb sync --include-online {self._record()}` uploads what it has not"
            )
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def _record(self) -> str:
        """The newest of W&B's folders of this run; the rest need not be uploaded again."""
        found = self._folder.glob(f"wandb/*run-*-{self._id}")
        return max(map(str, found), key=lambda name: name.rpartition("run-")[2], default="")


def _write(pipe: IO[bytes], lines: "SimpleQueue[bytes | None]") -> None:
    """Writes lines until None; when nobody reads any more they are dropped."""
    try:
        while (line := lines.get()) is not None:
            pipe.write(line)
            if lines.empty():
                pipe.flush()
        pipe.close()
    except OSError:
        while line is not None:
            line = lines.get()


def open_tracker(
    params: WandbParams, runtime: RuntimeParams, folder: Path, config: Values
) -> Tracker:
    """The tracker of a training whose state is kept in ``folder``, so that it is the same run when
    it resumes. Of several processes the first alone has one."""
    if not (params.enabled and speaks() and _installed()):
        return NoTracker()
    file = folder / ID_FILE
    if not file.is_file():
        write_text(file, secrets.token_hex(8) + "\n")
    return WandbTracker(params, runtime, file.read_text(encoding="utf-8").strip(), config)


def reopen_tracker(params: WandbParams, runtime: RuntimeParams, model: Path) -> Tracker:
    """The tracker of the run that made ``model``; hears nothing when none did."""
    if not (params.enabled and _run_of(model, runtime).is_file() and _installed()):
        return NoTracker()
    run = json.loads(_run_of(model, runtime).read_text(encoding="utf-8"))
    tracker = WandbTracker(params, runtime, run["id"], None)
    tracker.summary(run["summary"])  # which an upload of offline runs would else replace
    return tracker


def _run_of(model: Path, runtime: RuntimeParams) -> Path:
    """Where the run that made these weights is noted, also for another checkout."""
    sums = "".join(sha256_file(file) for file in sorted(model.glob("*.safetensors")))
    return scratch_folder(runtime) / RUNS / f"{sums[:64]}.json"


def _installed() -> bool:
    if importlib.util.find_spec("wandb") is not None:
        return True
    say("W&B is off for this run: the package is not installed (pip install wandb)")
    return False


# --- the process that logs


class _Logger:
    """The calls of ``wandb``; the first that fails is told in one line and ends the run."""

    def __init__(self) -> None:
        self.run: Any = None

    def init(self, values: dict[str, Any]) -> None:
        import wandb

        pid, mode, wait = values.pop("pid"), values.pop("mode"), values.pop("wait")
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=wait,
            x_stats_pid=pid,
            x_transaction_log_flush_interval=FLUSH_SECONDS,
        )
        try:
            self.run = wandb.init(**values, mode=mode, resume="allow", settings=settings)
        except Exception as error:
            if mode == "offline":
                raise
            say(f"W&B is offline for this run (`wandb sync` uploads it): {_one_line(error)}")
            # A run that waited for its server is left as it is.
            wandb.teardown()
            self.run = wandb.init(**values, mode="offline", settings=settings)
        self.run.define_metric("*", step_metric=STEP, step_sync=False)

    def log(self, values: dict[str, Any]) -> None:
        step = values["step"]
        self.run.log({**values["values"], STEP: step}, step=step)

    def summary(self, values: dict[str, Any]) -> None:
        self.run.summary.update(values["values"])

    def table(self, values: dict[str, Any]) -> None:
        import wandb

        table = wandb.Table(columns=values["columns"], data=values["rows"])
        self.run.log({values["name"]: table})

    def finish(self, values: dict[str, Any]) -> None:
        run, self.run = self.run, None
        run.finish(**values)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _main() -> None:
    """Does what the lines on stdin say, until they end."""
    logger = _Logger()
    try:
        for line in sys.stdin:
            kind, values = json.loads(line)
            getattr(logger, kind)(values)
    except Exception as error:
        say(f"W&B is off for this run: {_one_line(error)}")
    if logger.run is not None:  # the stage was killed, or a call failed; it may be continued
        sys.stdin.close()
        threading.Timer(ORPHAN_SECONDS, os._exit, (1,)).start()
        with suppress(Exception):
            logger.finish({"exit_code": 1})
    os._exit(0)  # what W&B would still wait for at exit is no longer wanted


if __name__ == "__main__":
    _main()
