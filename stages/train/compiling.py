"""torch.compile of what a step computes, and whether this machine can."""

import getpass
import os
import shutil
import struct
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stages.errors import SettingsError
from stages.train.attention import chunked_attention, document_starts
from stages.train.flex import FlexibleAttention, serves
from stages.train.loss import TrainingLoss, piece_loss

CACHE = "TORCHINDUCTOR_CACHE_DIR"
LINKING_SECONDS = 10.0


def check_compiler(device: torch.device) -> None:
    """Raises SettingsError when ``train.compile`` has no compiler to call, or can't call it."""
    problem = None
    if device.type == "cpu":
        _check_paths()
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, RuntimeError):
            problem = "a C++ compiler (Debian and Ubuntu: apt install g++)"
    elif device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            problem = "triton (pip install triton) and a GPU that it knows"
        elif "CC" not in os.environ and not any(map(shutil.which, ("gcc", "clang"))):
            problem = "a C compiler, which triton calls (Debian and Ubuntu: apt install gcc)"
        elif not Path(sysconfig.get_path("include"), "Python.h").is_file():
            problem = "Python's headers, which triton needs (apt install python3-dev)"
    if problem:
        raise SettingsError(
            f"train.compile: this machine lacks {problem}: install it, or set it to false"
        )


def _check_paths() -> None:
    """Inductor quotes no path that it hands to the C++ compiler."""
    for what, path in (
        (CACHE, os.environ.get(CACHE, "")),
        ("the folder of torch", torch.__path__[0]),
        ("the folder of Python", sysconfig.get_path("include")),
    ):
        if _has_space(path):
            raise SettingsError(
                f"train.compile: {what} has a space, which torch's compiler does not take "
                f"({path}): choose another folder, or set train.compile to false"
            )


def _has_space(path: str) -> bool:
    return any(character.isspace() for character in path)


def keep_kernels() -> None:
    """Keeps compiled kernels between runs and reboots, unless the user chose where.

    What a run left half-written that was killed while it compiled is removed.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    if _has_space(str(cache)):
        cache = Path(tempfile.gettempdir(), f"parley-{getpass.getuser()}")  # inductor quotes none
    os.environ.setdefault(CACHE, str(cache / "parley" / "inductor"))
    for library in Path(os.environ[CACHE]).rglob("*.so"):
        _remove_unless_whole(library)


def _remove_unless_whole(library: Path) -> None:
    """Another run may be writing it now: what has not changed for a while nobody writes.

    Raises SettingsError if it may not be removed.
    """
    try:
        while not _is_whole(library):
            if time.time() - library.stat().st_mtime > LINKING_SECONDS:
                library.unlink()
            time.sleep(0.1)
    except FileNotFoundError:
        pass  # another run was quicker
    except PermissionError:
        raise SettingsError(
            f"train.compile: {library} is half-written and may not be removed by this user: "
            f"remove it, or set {CACHE} to a folder of your own"
        ) from None


def _is_whole(library: Path) -> bool:
    """Whether a shared library of ELF reaches to the end of its table of sections, which the
    linker writes last; of another format, whether it has any bytes."""
    with library.open("rb") as file:
        header = file.read(64)
        size = file.seek(0, os.SEEK_END)
    if sys.platform != "linux":
        return size > 0
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return False
    (table,) = struct.unpack_from("<Q", header, 40)
    length, count = struct.unpack_from("<HH", header, 58)
    return bool(0 < table <= size - length * count)


def compile_network(network: TrainingLoss, by_block: bool) -> None:
    """Compiles the network and the pieces of its loss, each for the one shape of a run.

    As one graph, or ``by_block`` where DDP and FSDP act between blocks. Validation, generation and
    saving use the network as it was.
    """
    model = network.model
    options: dict[str, Any] = {}
    kind = model.embedding.weight.device.type
    if kind == "cpu":
        model.attend_by(chunked_attention, document_starts)
    elif kind == "cuda":
        # Else it would choose among kernels by how long each takes, and they round differently.
        options = {"deterministic": True}
        if serves(model.config.head_dim):
            attention = FlexibleAttention(
                model.config.seq_len, model.embedding.weight.device, by_block
            )
            model.attend_by(attention, attention.document_mask)

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, fullgraph=True, dynamic=False, options=options)

    if by_block:
        for block in model.blocks:
            # `forward` and not the call, so that hooks of FSDP stay outside.
            block.forward = compiled(block.forward)
    else:
        network.features = compiled(model.features)
    network.piece = compiled(piece_loss)
