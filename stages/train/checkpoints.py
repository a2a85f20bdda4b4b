"""What an unfinished training resumes from, and when it is saved.

One folder per *fingerprint* of all that decides the result (seed, params, data, code, torch,
precision), so that state is never continued under other settings. In it stand ``about.json`` (what
the fingerprint was made of), ``lock`` (held by the live run) and the newest ``keep_checkpoints``
saves, ``step-00001200``: weights and optimiser (torch.distributed.checkpoint, so that any number
of processes reads what any other wrote), best weights, state of the loop, and ``manifest.json``
with the sha256 of each file. A save is written under a temporary name, flushed to the disk and
renamed; one that is damaged is passed over for the one before.

Saves happen every ``checkpoint_minutes`` and ``checkpoint_steps``, when validation improved (as
long as this costs no more than 1% of the time), when the run is asked to stop and when it is
complete. The folder is removed once DVC has stored the model (``stages.scratch``), and 14 days
after its last save when nobody continued it.

With ``train.schedule: wsd`` the steps before the decay are the same for any number of steps. Where
they end, one save goes to a folder whose fingerprint leaves that number out; a longer run of the
same settings begins there, and ends with the bytes of a run that began at 0.
"""

import fcntl
import json
import math
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from stages.errors import BusyError, Stopped, peer_lost
from stages.files import write_json
from stages.progress import say
from stages.runtime import RuntimeParams
from stages.scratch import COMPLETE, make_scratch_folder, mark_complete, scratch_folder
from stages.train import saves
from stages.train.fingerprint import About, differences, fingerprint, without_end
from stages.train.loop import TrainState
from stages.train.stopping import StopRequest

LOCK_SECONDS = 30  # an orphan of a killed DVC needs a step and a save to end
DEAD_DAYS = 14
SHARE_OF_TIME = 0.01


class Checkpoints:
    """The saves of one run; entered, it holds their lock and listens for signals.

    Met by all processes of the run; the first one writes and decides. Raises BusyError when another
    live run has the same fingerprint.
    """

    def __init__(
        self,
        params: RuntimeParams,
        about: About,
        trained: saves.Trained,
        steps_without_end: int | None = None,
    ) -> None:
        """``about`` is what the fingerprint is made of, by kind; values must fit JSON.

        ``steps_without_end`` is how many first steps a longer run of these settings has in common
        with this one, if it is worth a save.
        """
        self.params, self.about, self.trained = params, dict(about), trained
        self.processes = trained.processes
        self.root = scratch_folder(params)
        self.folder = self.root / fingerprint(self.about)
        self.common_steps = steps_without_end
        self.common_about = without_end(about)
        self.common_folder = self.root / fingerprint(self.common_about)
        self.layout = {
            "processes": self.processes.count,
            "parallel": params.parallel if self.processes.count > 1 else None,
            "threads": torch.get_num_threads(),
        }
        self._resumed: Path | None = None
        self._stop = StopRequest()
        self._lock: IO[str] | None = None
        self._last_save = time.monotonic()
        self._last_cost = 0.0

    # --- the run's hold on the folder

    def __enter__(self) -> Self:
        self.processes.from_first(self._take)
        self._stop.__enter__()
        return self

    def _take(self) -> None:
        make_scratch_folder(self.params)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder, LOCK_SECONDS)
        if self._lock is None:
            raise BusyError(
                f"another run with the same settings is alive (it holds {self.folder}/lock): "
                "wait for it, or stop it"
            )
        write_json(self.folder / "about.json", self.about)
        (self.folder / COMPLETE).unlink(missing_ok=True)
        for partial in self.folder.glob(".step-*"):  # of a run that was killed amid a save
            shutil.rmtree(partial, ignore_errors=True)
        _remove_dead(self.root, self.folder)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.__exit__(kind, value, traceback)
        if self._lock is not None:
            if not saves.newest_first(self.folder):
                shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.close()

    # --- saving

    def after_step(self, state: TrainState, improved: bool) -> None:
        """Saves when it is time. Raises Stopped, with the state saved, when asked to stop."""
        signum, due = self._agree(state, improved)
        saved = (due or signum is not None) and self._try_save(self.folder, state)
        if state.step == self.common_steps:
            self._save_common(state)
        if signum is not None:
            how = "the next run resumes there" if saved else "it could not be saved"
            raise Stopped(signum, f"stopped after step {state.step}: {how}")

    def keep_last(self, state: TrainState) -> None:
        """Saves a complete training for as long as its results are not safe (stages.scratch)."""
        again = self._resumed == self.folder / saves.name_of(state.step)
        if (again or self._try_save(self.folder, state)) and self.processes.first:
            saves.keep_newest(self.folder, 1)
            mark_complete(self.folder)

    def _agree(self, state: TrainState, improved: bool) -> tuple[int | None, bool]:
        """The signal that reached any of the processes, and whether the first one wants a save."""
        since = time.monotonic() - self._last_save
        steps = self.params.checkpoint_steps
        due = (
            since >= self.params.checkpoint_minutes * 60
            or (steps is not None and state.step % steps == 0)
            or (improved and since * SHARE_OF_TIME >= self._last_cost)
        )
        signum = self._stop.signum
        if self.processes.count == 1:
            return signum, due
        votes = np.zeros(65 + 1)  # one place a signal, and one for the save
        votes[signum or 0] += 1
        votes[65] = due and self.processes.first
        self.processes.total(votes)
        asked = np.flatnonzero(votes[1:65])
        return (int(asked[0]) + 1 if len(asked) else None), bool(votes[65])

    def _try_save(self, folder: Path, state: TrainState) -> bool:
        started = time.monotonic()
        try:
            saves.write(folder / saves.name_of(state.step), self.trained, state, self.layout)
            if self.processes.first:
                saves.keep_newest(folder, self.params.keep_checkpoints)
            saved = True
        except (OSError, SafetensorError, RuntimeError, CheckpointException) as failure:
            error: BaseException = failure
            if isinstance(error, CheckpointException) and error.failures:
                error, _ = next(iter(error.failures.values()))
            if peer_lost(error):
                raise RuntimeError(str(error)) from None
            reason = " ".join(str(error).split())[:200]
            if "inline_container" in reason:  # torch's writer of files, which keeps no errno
                reason = f"not written whole, as where a disk is full ({reason})"
            say(f"train: step {state.step} could not be saved in {folder}: {reason}")
            saved = False
        self._last_save = time.monotonic()
        self._last_cost = self._last_save - started
        return saved

    def _save_common(self, state: TrainState) -> None:
        """Leaves what a longer run begins with; not if another run is doing so."""
        lock: IO[str] | None = None

        def take() -> bool:
            nonlocal lock
            self.common_folder.mkdir(parents=True, exist_ok=True)
            lock = _locked(self.common_folder, 0)
            if lock is not None:
                write_json(self.common_folder / "about.json", self.common_about)
            return lock is not None

        if self.processes.from_first(take):
            self._try_save(self.common_folder, state)
        if lock is not None:
            lock.close()

    # --- resuming

    def resume(self) -> TrainState | None:
        """Loads the newest sound save into what is trained; None when there is none."""
        save = self.processes.from_first(self._newest_sound)
        if save is None:
            self.processes.from_first(self._tell_of_others)
            return None
        state, layout = saves.read(save, self.trained)
        self._resumed = save
        shorter = " of a shorter run" if save.parent == self.common_folder else ""
        say(f"train: resumed from step {state.step}{shorter}")
        if layout != self.layout:
            changed = ", ".join(
                f"{key} {layout.get(key)} -> {value}"
                for key, value in self.layout.items()
                if layout.get(key) != value
            )
            say(
                f"train: the machine's part changed ({changed}): the batches are the same, "
                "the last bits may not be"
            )
        return state

    def _newest_sound(self) -> Path | None:
        found = saves.newest_first(self.folder)
        if self.common_steps is not None:
            found += [
                save
                for save in saves.newest_first(self.common_folder)
                if saves.step_of(save) <= self.common_steps
            ]
        for save in sorted(found, key=saves.step_of, reverse=True):
            if (reason := saves.damage(save)) is None:
                return save
            say(f"train: {save} is damaged ({reason}): passed over and removed")
            # Left there, it would count among the newest that are kept.
            shutil.rmtree(save, ignore_errors=True)
        return None

    def _tell_of_others(self) -> None:
        """One line for a state of these very settings that other code or software made."""
        for about_file in sorted(self.root.glob("*/about.json")):
            found = saves.newest_first(about_file.parent)
            try:
                about = json.loads(about_file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            same = all(about.get(key) == self.about[key] for key in ("params", "data"))
            if not found or not same or about == self.about:
                continue
            step = saves.step_of(found[0])
            differs = ", ".join(differences(about, self.about))
            say(
                f"train: step {step} of these settings was saved, but {differs} changed since: "
                "starting anew (put back what changed to resume from there)"
            )


def _locked(folder: Path, seconds: float) -> IO[str] | None:
    """The folder's lock file, locked; None when another process holds it for ``seconds``."""
    file = (folder / "lock").open("a", encoding="utf-8")
    until = time.monotonic() + seconds
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= until:
                file.close()
                return None
            if not told:
                say("train: waiting for another run with the same settings to end")
                told = True
            time.sleep(0.2)


def _remove_dead(root: Path, mine: Path) -> None:
    """Removes state that nobody has continued for DEAD_DAYS."""
    limit = time.time() - DEAD_DAYS * 86_400
    for folder in root.iterdir():
        if folder == mine or not (folder / "about.json").is_file():
            continue
        newest = max((path.stat().st_mtime for path in folder.glob("step-*")), default=-math.inf)
        newest = max(newest, (folder / "about.json").stat().st_mtime)
        if newest < limit and (lock := _locked(folder, 0)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()
