"""What tests of training need besides ``tests.builders``: folders to train in, and one update."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from model.transformer import Transformer
from stages.train.loss import TrainingLoss
from stages.train.meter import Meter
from stages.train.optimizer import make_optimizers
from stages.train.params import TrainParams
from stages.train.precision import Precision
from stages.train.processes import Processes
from stages.train.update import Updater
from tests.builders import contents, tiny_params, write_params

CPU = torch.device("cpu")


def prepare(data: Path, root: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """A folder with its own params over the same data."""
    write_params(root, tiny_params(changes))
    shutil.copytree(data / "data", root / "data")
    return root


def outputs(root: Path) -> dict[str, bytes]:
    """What DVC hashes or git keeps of a training."""
    metrics = contents(root / "metrics").items()
    return contents(root / "models") | {k: v for k, v in metrics if ".local." not in k}


def saves(root: Path) -> list[Path]:
    """Saves of all fingerprints, the oldest first."""
    return sorted((root / ".checkpoints").glob("*/step-*"), key=step_of)


def step_of(save: Path) -> int:
    """The step that a save was made after."""
    return int(save.name.removeprefix("step-"))


def make_updater(
    model: Transformer,
    params: TrainParams,
    precision: Precision | None = None,
    optimizers: Sequence[Optimizer] | None = None,
    seed: int = 1,
) -> Updater:
    """The updates of one process."""
    precision = precision or Precision(False, CPU)
    return Updater(
        TrainingLoss(model, precision.dtype),
        make_optimizers(model, params) if optimizers is None else optimizers,
        precision,
        params.sequences_per_pass(1),
        params.grad_clip,
        seed,
        Processes(),
        Meter(CPU),
    )
