"""The processes of one training: who they are, and what they say to each other.

A launcher (``stages.train.launch``, torchrun, Slurm through torchrun) starts them and tells each
its place through the environment. A training of one process never touches torch.distributed.
"""

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from stages.errors import PEER_LOST_EXIT_CODE, SettingsError
from stages.place import launched, orphaned
from stages.scoring import Share
from stages.train.loss import TrainingLoss
from stages.train.params import FSDP_IN_FP16
from stages.train.precision import Precision

T = TypeVar("T")

# A peer that says nothing for so long is dead; the longest silence is a save by the first process.
TIMEOUT = timedelta(minutes=30)
POLL_SECONDS = 0.5
_kept: list[object] = []


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of ``tensor``, which FSDP may have divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True)
class Processes:
    """This process (``rank``) among ``count``; all methods are met by all of them."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def total(self, values: NDArray[np.float64]) -> None:
        """Adds the arrays of all processes; each then has the sum in ``values``."""
        if self.count > 1:
            dist.all_reduce(torch.from_numpy(values))

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` gives in the first process; only there is it called.

        What it raises there is raised everywhere.
        """
        if self.count == 1:
            return make()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = make()
            except Exception as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            # The first process tells the user (stages.errors).
            box[1].told = True
            raise box[1]
        result: T = box[0]
        return result

    def share(self) -> Share:
        """This process's part of a validation."""
        return Share(self.rank, self.count, self.total)


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes that a launcher started, met; one alone when none did."""
    if not launched():
        yield Processes()
        return
    with _unless_orphaned():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT
        )
    # Not destroyed: that joins a thread of gloo that may be waiting for the interpreter's lock,
    # and hung one run in ten. `stages.errors.run` ends the process without it.
    _kept.append(dist.group.WORLD)
    yield Processes(dist.get_rank(), dist.get_world_size())
    dist.barrier()


@contextmanager
def _unless_orphaned() -> Iterator[None]:
    """Ends this process if its launcher dies meanwhile: nobody then tells it where the others are.

    Once they have met, training itself watches (stages.train.stopping).
    """
    met = threading.Event()

    def watch() -> None:
        while not met.wait(POLL_SECONDS):
            if orphaned():
                os._exit(PEER_LOST_EXIT_CODE)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        met.set()


def spread(
    network: TrainingLoss,
    processes: Processes,
    parallel: str,
    device: torch.device,
    precision: Precision,
) -> nn.Module:
    """``network`` as all processes train it: as it is, under DDP, or sharded by FSDP2.

    Gradients are averaged over processes. FSDP gathers weights in the dtype of the products and
    adds gradients in float32. Raises SettingsError for FSDP in float16.
    """
    if processes.count == 1:
        return network
    if parallel == "ddp":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of a default's change to come
            spread_network = DistributedDataParallel(
                network,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        _kept.append(spread_network)  # as in `joined`
        return spread_network
    if precision.scaler.is_enabled():
        raise SettingsError(FSDP_IN_FP16)
    mesh = init_device_mesh(device.type, (processes.count,))
    policy = MixedPrecisionPolicy(
        param_dtype=precision.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in network.model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)
    return network
