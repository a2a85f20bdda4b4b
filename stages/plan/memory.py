"""Memory of a training step, tensor by tensor and without computing one.

The network, its loss and its optimiser run on torch's fake tensors, which have shapes and no
contents; a dispatch mode counts the bytes that are alive. That is what a GPU must hold. The
resident memory of a process on a CPU is more (libraries, and what the allocator can't reuse):
``burst`` measures it.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.config import ModelConfig
from stages.scoring import LOGITS_PER_BATCH, token_nats
from stages.train.data_order import Batch
from stages.train.engine import build
from stages.train.meter import Meter
from stages.train.params import DRAWN, TrainParams
from stages.train.precision import Precision
from stages.train.processes import Processes

BFLOAT = 2


@dataclass(frozen=True)
class Memory:
    """Bytes: what stays, and the most that comes on top in a step and in a validation."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    validation: int

    @property
    def peak(self) -> int:
        """The most that is alive on the device."""
        state = self.weights + self.optimizer
        return state + max(self.gradients + self.activations, self.validation)


class _Alive(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._known:
            return
        self._known.add(address)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, address, size)

    def _free(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


def estimate(
    config: ModelConfig, train: TrainParams, runtime: Any, dtype: torch.dtype, processes: int
) -> Memory:
    """What one process holds of ``train`` with products in ``dtype``, uncompiled.

    Raises SettingsError for settings that don't go together.
    """
    names: dict[torch.dtype, Any] = {torch.float32: False, torch.bfloat16: "bf16"}
    low = train.bf16_weights and dtype == torch.bfloat16
    # A cast of each weight for a pass is as large as the copy that computes with bf16_weights.
    plain = train.model_copy(
        update={
            "compile": False,
            "init_from": DRAWN,
            "bf16_weights": False,
            "mixed_precision": names.get(dtype, "bf16"),
        }
    )
    device = torch.device("cpu")
    rows = train.sequences_per_pass(processes)
    passes = min(2, train.sequences_per_process(processes) // rows)
    alive = _Alive()
    with FakeTensorMode(), alive:
        engine = build(config, plain, runtime, 0, device, Processes(), Meter(device))
        ids = torch.zeros(rows, config.seq_len, dtype=torch.int64)
        batch = Batch(ids, ids, ids if train.document_mask else None, 0)
        for _ in range(2):  # the second has the optimiser's state beside it
            before = alive.peak = alive.now
            for _ in range(passes):
                engine.network(batch.inputs, batch.labels, batch.documents).backward()
            step = alive.peak - before
            for optimizer in engine.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        alive.peak = alive.now
        fitting = max(1, LOGITS_PER_BATCH // (config.seq_len * config.vocab_size))
        wanted = -(-train.eval_tokens // config.seq_len)
        ids = torch.zeros(min(fitting, wanted), config.seq_len, dtype=torch.int64)
        with torch.no_grad():
            numbers = ids if train.document_mask else None
            token_nats(engine.model.eval(), ids, ids, numbers, engine.precision.dtype)
        validation = alive.peak - alive.now
        state = alive.now
    weights = 4 * config.num_parameters()
    return Memory(
        weights=weights + (BFLOAT * config.num_parameters() if low else 0),
        gradients=weights,
        optimizer=state - weights,
        activations=step - weights - (BFLOAT * config.num_parameters() if low else 0),
        validation=validation,
    )


def precision_of(train: TrainParams, device: torch.device) -> torch.dtype:
    """The dtype of products on ``device``."""
    return Precision(train.mixed_precision, device).dtype
