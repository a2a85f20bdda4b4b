"""One save of an unfinished training: a folder, complete and checked.

Weights and optimiser are written by torch.distributed.checkpoint, each process its part, and read
by any number of processes in any layout.
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state
from torch.optim import Optimizer

from model.transformer import Transformer
from stages.files import output_folder, sha256_file, write_json
from stages.train.history import Row
from stages.train.loop import Means, TrainState
from stages.train.precision import Precision
from stages.train.processes import Processes

STATE, BEST, LOOP, MANIFEST = "state", "best.safetensors", "loop.json", "manifest.json"
_NOT_JSON = {"best_weights", "history", "means"}


@dataclass(frozen=True)
class Trained:
    """What training changes, and the processes that hold it."""

    model: Transformer
    optimizers: Sequence[Optimizer]
    precision: Precision
    processes: Processes


def write(folder: Path, trained: Trained, state: TrainState, layout: Mapping[str, Any]) -> None:
    """Writes a save named ``folder``: all of it or nothing. Met by all processes.

    ``layout`` is noted down. Raises OSError, RuntimeError or CheckpointException.
    """
    processes = trained.processes
    with ExitStack() as stack:
        partial = processes.from_first(lambda: stack.enter_context(output_folder(folder)))
        with _quiet():
            save_state(_state(trained), checkpoint_id=partial / STATE, no_dist=processes.count == 1)
        processes.from_first(lambda: _write_rest(partial, trained, state, layout))
    processes.from_first(lambda: None)  # none leaves before the first has put it in place


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark that one process alone saves, which is known here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _state(trained: Trained) -> dict[str, Any]:
    fresh = [optimizer for optimizer in trained.optimizers if not optimizer.state]
    model, optimizers = get_state_dict(trained.model, list(trained.optimizers))
    # torch makes a state by a step that moves nothing; it must not count as one.
    for optimizer in fresh:
        for values in optimizer.state.values():
            if "step" in values:
                values["step"].zero_()
    return {"model": model, "optimizers": optimizers}


def _write_rest(
    folder: Path, trained: Trained, state: TrainState, layout: Mapping[str, Any]
) -> None:
    save_file(_untied(state.best_weights, trained.model), folder / BEST)
    values = {key: value for key, value in vars(state).items() if key not in _NOT_JSON}
    values["history"] = [asdict(row) for row in state.history]
    values["means"] = vars(state.means)
    scaler = trained.precision.scaler.state_dict()
    write_json(folder / LOOP, {"state": values, "scaler": scaler, "layout": dict(layout)})
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
    write_json(folder / MANIFEST, sums)


def read(folder: Path, trained: Trained) -> tuple[TrainState, dict[str, Any]]:
    """Puts a save into ``trained``; returns the loop's state and the layout that wrote it.

    Met by all processes. The save is taken to be undamaged.
    """
    processes = trained.processes
    loop = processes.from_first(lambda: json.loads((folder / LOOP).read_text(encoding="utf-8")))
    held = _state(trained)
    with _quiet():
        load_state(held, checkpoint_id=folder / STATE, no_dist=processes.count == 1)
    set_state_dict(
        trained.model,
        list(trained.optimizers),
        model_state_dict=held["model"],
        optim_state_dict=held["optimizers"],
    )
    trained.precision.scaler.load_state_dict(loop["scaler"])
    values = loop["state"]
    values["history"] = [Row(**row) for row in values["history"]]
    means = Means()
    vars(means).update(values.pop("means"))
    best = _tied(load_file(folder / BEST), trained.model) if processes.first else {}
    return TrainState(**values, means=means, best_weights=best), loop["layout"]


def damage(folder: Path) -> str | None:
    """What is wrong with a save, or None when every file is as it was written."""
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, sha256 in sums.items():
            if sha256_file(folder / name) != sha256:
                return f"{name} has changed"
    except (OSError, ValueError, AttributeError) as error:
        return " ".join(str(error).split())[:100]
    return None


def newest_first(folder: Path) -> list[Path]:
    """The saves in a folder."""
    return sorted(folder.glob("step-*"), reverse=True)


def keep_newest(folder: Path, count: int) -> None:
    """Removes all but the ``count`` newest saves."""
    for old in newest_first(folder)[count:]:
        shutil.rmtree(old, ignore_errors=True)


def name_of(step: int) -> str:
    """Name of the save after ``step`` updates; sorts as the steps do."""
    return f"step-{step:010d}"


def step_of(folder: Path) -> int:
    """The inverse of ``name_of``."""
    return int(folder.name.removeprefix("step-"))


def _untied(state: Mapping[str, Tensor], model: Transformer) -> dict[str, Tensor]:
    """Tensors as safetensors wants them: none twice, so a tied head is left out."""
    left_out = "head.weight" if model.config.tie_embeddings else ""
    return {name: tensor.contiguous() for name, tensor in state.items() if name != left_out}


def _tied(loaded: dict[str, Tensor], model: Transformer) -> dict[str, Tensor]:
    """``loaded`` with the head that ``_untied`` left out, in the order of the model."""
    return {
        name: loaded["embedding.weight" if name not in loaded else name]
        for name in model.state_dict()
    }
