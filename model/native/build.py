"""Compiling the kernel with this machine's compiler, once for each machine and version."""

import contextlib
import ctypes
import getpass
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("kernel.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O2", "-ftree-vectorize", "-fPIC", "-shared", "-pthread")
# The second is what the Arm processors of some compilers understand, the third is slow everywhere.
TUNINGS = (("-march=native",), ("-mcpu=native",), ())


_one_at_a_time = threading.Lock()


class NoKernel(Exception):
    """There is no kernel here; the message says why, in one line."""


def library() -> ctypes.CDLL:
    """The kernel, compiled now or before. Raises NoKernel."""
    with _one_at_a_time:
        return _library()


def start() -> None:
    """Begins to compile the kernel, if it must be, while the caller does something else."""

    def work() -> None:
        with contextlib.suppress(NoKernel):  # whoever asks for the kernel hears of it
            library()

    threading.Thread(target=work, daemon=True).start()


@cache
def _library() -> ctypes.CDLL:
    compiler = find_compiler()
    if compiler is None:
        raise NoKernel("no C++ compiler is here (Debian and Ubuntu: apt install g++)")
    try:
        folder, key = cache_folder(), _key(compiler)
        return ctypes.CDLL(str(_find(folder, key) or _compile(compiler, folder, key)))
    except (OSError, subprocess.SubprocessError) as error:
        raise NoKernel(f"the kernel can't be built: {str(error).splitlines()[0]}") from None


def find_compiler() -> list[str] | None:
    """The command of the compiler: $CXX, else the first of COMPILERS that is there."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        return chosen if shutil.which(chosen[0]) else None
    return next(([name] for name in COMPILERS if shutil.which(name)), None)


def cache_folder() -> Path:
    """Where compiled kernels are kept between runs, beside those of training."""
    try:
        folder = (
            Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parley" / "kernel"
        )
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # no home, or a read-only one
        pass
    folder = Path(tempfile.gettempdir(), f"parley-{getpass.getuser()}", "kernel")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise OSError(f"{folder} is another user's")
    return folder


def _key(compiler: list[str]) -> str:
    """Of all that decides the machine code."""
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    parts = [SOURCE.read_text(encoding="utf-8"), repr(FLAGS), repr(compiler), version, _cpu()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _cpu() -> str:
    """The processor and what it can do, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = ("model name", "flags", "Features", "CPU part")
        told = {line for line in lines if line.split("\t")[0].split(":")[0].strip() in names}
        return "\n".join(sorted(told))
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.version()}"


def _find(folder: Path, key: str) -> Path | None:
    """The kernel of this key; its name holds the digest of its bytes, so that damage is seen."""
    for file in folder.glob(f"{key}-*.so"):
        if file.stem == f"{key}-{_digest(file.read_bytes())}":
            return file
        file.unlink(missing_ok=True)
    return None


def _compile(compiler: list[str], folder: Path, key: str) -> Path:
    """Compiles to a file that is there whole or not at all, whoever else compiles it."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as scratch:
        output = Path(scratch, "kernel.so")
        for tuning in TUNINGS:
            done = subprocess.run(
                [*compiler, *FLAGS, *tuning, str(SOURCE), "-o", str(output)],
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            if done.returncode == 0:
                file = folder / f"{key}-{_digest(output.read_bytes())}.so"
                return output.replace(file)
        said = next(
            (line for line in done.stderr.splitlines() if "error" in line), "no reason given"
        )
        raise OSError(f"{compiler[0]} failed: {said}")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]
