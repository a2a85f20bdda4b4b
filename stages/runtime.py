"""The ``runtime`` section: this machine. Nothing here is part of a stage's hash."""

import ctypes
import os
import sys
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stages.errors import SettingsError
from stages.params import Section
from stages.place import launched

if TYPE_CHECKING:
    import torch

# Names and numbers of glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


class RuntimeParams(Section):
    """Device, threads, and where and how often training saves the state to resume from."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    processes: Annotated[int, Field(ge=1)]
    parallel: Literal["ddp", "fsdp"]
    threads: Annotated[int, Field(ge=1, le=1024)] | None
    num_workers: Annotated[int, Field(ge=1, le=1024)] | None
    checkpoint_dir: Annotated[str, Field(min_length=1)]
    checkpoint_minutes: Annotated[float, Field(gt=0)]
    checkpoint_steps: Annotated[int, Field(ge=1)] | None
    keep_checkpoints: Annotated[int, Field(ge=1)]


def start_torch(params: RuntimeParams) -> "torch.device":
    """Sets threads and deterministic algorithms and returns the device to compute on.

    Raises SettingsError for a device that this machine lacks.
    """
    # cuBLAS repeats its results only with a fixed workspace; read when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A thread that waits for another spins, by default for milliseconds: where something else wants
    # the cores as well, that is time taken from the one it waits for. With a competing process a
    # step took 330 ms instead of 830, alone 126 instead of 122 (medians). Read when torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    keep_freed_memory()
    import torch

    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() else 1
    if params.threads is not None:
        torch.set_num_threads(params.threads)
    elif local > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // local))
    # What is read before it was written would differ from run to run; filling costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    check_device(params)
    name = params.device
    if name == "auto":
        name = next(name for name in ("cuda", "mps", "cpu") if _there(name))
    # An operation without a deterministic form warns; none that is used here lacks one. On a GPU
    # the kernels of attention repeat their gradients only where it would be an error instead.
    torch.use_deterministic_algorithms(True, warn_only=name != "cuda")
    if name == "cuda" and launched():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks for the next step instead of giving them back.

    Each step frees and takes again some hundred MB; the system would zero every page of it anew
    (measured: tests/benchmarks/README.md). Other C libraries are left alone, and so is the
    environment's own MALLOC_ setting.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
    if mallopt is not None:
        for option, value in (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26):
            mallopt(option, value)


def check_device(params: RuntimeParams) -> None:
    """Raises SettingsError for a device, or a number of GPUs, that this machine lacks."""
    if params.device != "auto" and not _there(params.device):
        raise SettingsError(f"runtime.device: this machine has no '{params.device}'")
    if params.processes > 1 and params.device != "cpu":
        import torch

        if params.device == "mps" or (params.device == "auto" and _there("mps")):
            raise SettingsError("runtime.processes: one is all that an 'mps' device serves")
        gpus = torch.cuda.device_count()
        if gpus and params.processes > gpus and not launched():
            raise SettingsError(
                f"runtime.processes: {params.processes} is more than the {gpus} GPUs of this "
                "machine, which serve one each"
            )


def _there(device: str) -> bool:
    if device == "cpu":
        return True
    import torch

    return torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()


def memory_bytes(params: RuntimeParams) -> int:
    """All the memory of the device, in bytes: of the GPU that computes, else of the machine."""
    if params.device == "cuda" or (params.device == "auto" and _there("cuda")):
        import torch

        return torch.cuda.get_device_properties(0).total_memory
    import psutil

    return int(psutil.virtual_memory().total)


def peak_memory_mib(device: "torch.device") -> int:
    """Most memory so far, in MiB: of the GPU where one computes, else resident in this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    import resource

    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20
