"""Memory of a training step, tensor by tensor and without computing one.

The network, its loss and its optimiser run on torch's fake tensors, which have shapes and no
contents; a dispatch mode counts the bytes that are alive. That is what a GPU must hold. The
resident memory of a process on a CPU is more (libraries, and what the allocator can't reuse):
``burst`` measures it. Of several processes with FSDP this one is the first, and torch's fake
process group stands for the others.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.config import DRAWN, ModelConfig
from model.transformer import RMSNorm
from stages.plan.sizes import FLOAT
from stages.scoring import LOGITS_PER_BATCH
from stages.train import engine as engines
from stages.train import loss, muon
from stages.train import processes as spreading
from stages.train.data_order import Batch
from stages.train.engine import build
from stages.train.meter import Meter
from stages.train.params import TrainParams
from stages.train.precision import DTYPES, Precision
from stages.train.processes import Processes, own_part

BFLOAT = 2
# What cuBLAS takes for itself (an H100, with the workspace that stages.runtime asks for).
LIBRARIES = {"cuda": 2**26}


@dataclass(frozen=True)
class Memory:
    """Bytes: what stays, and the most that comes on top.

    ``activations`` and ``stepping`` are beside the gradients: in the passes of an update and in the
    optimiser's step. ``libraries`` is what those of a GPU take for themselves.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    stepping: int
    validation: int
    libraries: int

    @property
    def peak(self) -> int:
        """The most that is alive on the device."""
        update = self.gradients + max(self.activations, self.stepping)
        return self.weights + self.optimizer + max(update, self.validation) + self.libraries


class _Alive(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __enter__(self) -> Self:
        # FSDP frees and takes what it gathers by resizing storages, which is no operation.
        self._resize = resize = torch.UntypedStorage.resize_

        def counted(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            if storage._cdata in self._known:
                self._add(storage._cdata, storage.nbytes())

        torch.UntypedStorage.resize_ = counted  # type: ignore[method-assign, assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)

    def most(self) -> int:
        """The most bytes since the last call."""
        peak, self.peak = self.peak, self.now
        return peak

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its local tensors come by themselves
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address not in self._known:
            self._add(address, storage.nbytes())
            weakref.finalize(storage, self._free, address)

    def _add(self, address: int, size: int) -> None:
        """Counts the storage at ``address`` with ``size`` bytes."""
        self.now += size - self._known.get(address, 0)
        self._known[address] = size
        self.peak = max(self.peak, self.now)

    def _free(self, address: int) -> None:
        self.now -= self._known.pop(address)


class _NormOfGpu(torch.autograd.Function):
    """What a GPU's kernel of RMSNorm keeps: its input, and a float32 for each row of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


@contextmanager
def _as_on(kind: str) -> Iterator[None]:
    """Fake tensors are on a CPU: what else a GPU does to them is put in its place."""
    with ExitStack() as stack:
        for sizes in (loss.LOGITS_PER_PIECE, muon.TOGETHER):
            stack.enter_context(patch.dict(sizes, cpu=sizes.get(kind, sizes["cpu"])))
        if kind != "cpu":
            stack.enter_context(patch.object(engines, "train_eagerly", lambda *_: None))
        if kind == "cuda":

            def norm(module: RMSNorm, x: Tensor) -> Tensor:
                result: Tensor = _NormOfGpu.apply(x, module.weight.to(x.dtype))
                return result

            stack.enter_context(patch.object(RMSNorm, "forward", norm))
        yield


@contextmanager
def _first_of(processes: int) -> Iterator[Processes]:
    """The first of so many processes, the others of which are not there."""
    if processes == 1:
        yield Processes()
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    mesh = init_device_mesh("cpu", (processes,))
    try:
        # Its ranks are the contents of a tensor, which a fake one has not: it is made before.
        with patch.object(spreading, "init_device_mesh", lambda *_, **__: mesh):
            yield Processes(0, processes)
    finally:
        dist.destroy_process_group()


def estimate(
    config: ModelConfig,
    train: TrainParams,
    runtime: Any,
    dtype: torch.dtype,
    processes: int,
    kind: str = "cpu",
) -> Memory:
    """What one of ``processes`` holds of ``train`` with products in ``dtype``, uncompiled.

    ``kind`` is that of the device. Raises SettingsError for settings that don't go together.
    """
    names = {low: name for name, low in DTYPES.items()}
    sharded = processes > 1 and runtime.parallel == "fsdp"
    # FSDP has no copies that stay: it gathers in the dtype of the products.
    low = train.bf16_weights and dtype == torch.bfloat16 and not sharded
    # A cast of each weight for a pass is as large as the copy that computes with bf16_weights.
    plain = train.model_copy(
        update={
            "compile": False,
            "init_from": DRAWN,
            "bf16_weights": False,
            "mixed_precision": names.get(dtype, False),
        }
    )
    device = torch.device("cpu")
    rows = train.sequences_per_pass(processes)
    passes = min(2, train.sequences_per_process(processes) // rows)
    alive = _Alive()
    # DDP's gradients lie in its buckets: a process needs as much as one alone.
    with _first_of(processes if sharded else 1) as first, FakeTensorMode(), alive, _as_on(kind):
        engine = build(config, plain, runtime, 0, device, first, Meter(device))
        network = engine.spread_network
        weights = FLOAT * sum(own_part(weight).numel() for weight in engine.model.parameters())
        ids = torch.zeros(rows, config.seq_len, dtype=torch.int64)
        batch = Batch(ids, ids, ids if train.document_mask else None, 0)
        for _ in range(2):  # the second has the optimiser's state beside it
            before = alive.now
            alive.most()
            for _ in range(passes):
                network(batch.inputs, batch.labels, batch.documents).backward()
            in_passes = alive.most() - before
            for optimizer in engine.optimizers:
                optimizer.step()
            in_step = alive.most() - before
            for optimizer in engine.optimizers:
                optimizer.zero_grad(set_to_none=True)
        state = alive.now
        alive.most()
        fitting = max(1, LOGITS_PER_BATCH // (config.seq_len * config.vocab_size))
        wanted = -(-train.eval_tokens // config.seq_len)
        ids = torch.zeros(min(fitting, wanted), config.seq_len, dtype=torch.int64)
        with torch.no_grad():
            numbers = ids if train.document_mask else None
            engine.model.eval()
            network(ids, ids, numbers, per_token=True)
        validation = alive.most() - state
    copies = BFLOAT * config.num_parameters() if low else 0
    return Memory(
        weights=weights + copies,
        gradients=weights,
        optimizer=state - weights,
        activations=in_passes - weights - copies,
        stepping=in_step - weights,
        validation=validation,
        libraries=LIBRARIES.get(kind, 0),
    )


def precision_of(train: TrainParams, device: torch.device) -> torch.dtype:
    """The dtype of products on ``device``."""
    return Precision(train.mixed_precision, device).dtype
