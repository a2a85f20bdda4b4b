"""The kernel is compiled once, whatever happens meanwhile, and done without where it can't be."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ctypes import byref, c_int32
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.engine import Engine
from model.native import build
from model.native.backend import NativeBackend, _reply
from model.native.build import cache_folder, find_compiler
from model.sampling import Sampling, choose, distribution, uniform
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from tests.model.tiny import ROOT, chat_config, lively_transformer

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")


@pytest.fixture
def no_kernel_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, as on the first use."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build._library.cache_clear()
    yield tmp_path / "parley" / "kernel"
    build._library.cache_clear()


@pytest.fixture(scope="module")
def model(tokenizer: ChatTokenizer) -> Transformer:
    return lively_transformer(**vars(chat_config(tokenizer)))


# --- the choice of a token


@pytest.fixture(scope="module")
def chooser() -> NativeBackend:
    return NativeBackend(lively_transformer(), 2, "fp32")


def kernel_choice(
    backend: NativeBackend,
    logits: torch.Tensor,
    sampling: Sampling,
    seed: int,
    seen: list[int],
    position: int,
) -> int | None:
    """The kernel's choice; None where it refuses the logits."""
    kernel, network = backend._library, backend._network
    kernel.parley_see(network, 1, (c_int32 * len(seen))(*seen), len(seen))
    reply = _reply(sampling, seed, 0)
    reply.position = position
    good = kernel.parley_choose(network, 1, byref(reply), logits.data_ptr())
    assert reply.position == position + good
    return int(reply.token) if good else None


@needs_compiler
@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**32),
    spread=st.sampled_from([0.1, 1.0, 10.0]),
    temperature=st.sampled_from([0.0, 1e-45, 0.3, 1.0, 1.7, 1e9]),
    top_k=st.none() | st.integers(1, 120),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01, 1e-50]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    penalty=st.sampled_from([1.0, 1.3, 0.5]),
)
def test_the_kernel_chooses_by_the_definition(
    chooser: NativeBackend,
    seed: int,
    spread: float,
    temperature: float,
    top_k: int | None,
    top_p: float,
    min_p: float,
    penalty: float,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Rounded to sixteenths, so that ties are common.
    logits = (torch.randn(97, generator=generator) * spread * 16).round() / 16
    seen = torch.randint(97, (20,), generator=generator).tolist()
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=penalty, seed=seed,
    )  # fmt: skip
    token = kernel_choice(chooser, logits, sampling, seed, seen, position=seed % 50)
    u = uniform(seed, seed % 50)
    expected = choose(logits, sampling, u, seen)
    if token != expected:
        # Only where the number falls on the border of two tokens, or p on that of the nucleus.
        drawn = distribution(logits, sampling, seen).double().cumsum(0)[min(token, expected)]
        borders = [abs(float(drawn) - u)]
        if top_p < 1:
            whole = distribution(logits, replace(sampling, top_p=1.0, min_p=0.0), seen).double()
            nuclei = whole.sort(descending=True).values.cumsum(0)
            borders.append(float((nuclei - top_p).abs().min()))
        assert min(borders) < 1e-5


@needs_compiler
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 50, 96])
def test_the_kernel_refuses_logits_that_are_not_finite(
    chooser: NativeBackend, value: float, place: int
) -> None:
    logits = torch.zeros(97)
    logits[place] = value
    for sampling in (Sampling(temperature=0), Sampling(top_k=5), Sampling(repetition_penalty=2.0)):
        assert kernel_choice(chooser, logits, sampling, 1, [place], 0) is None


@needs_compiler
def test_the_kernels_draws_have_the_frequencies_of_the_definition(chooser: NativeBackend) -> None:
    logits = torch.randn(97, generator=torch.Generator().manual_seed(1)) * 2
    sampling = Sampling(temperature=0.9, top_k=12, top_p=0.95)
    count = 20_000
    draws = [kernel_choice(chooser, logits, sampling, 3, [], n) for n in range(count)]
    observed = torch.bincount(torch.tensor(draws), minlength=97).double()
    expected = distribution(logits, sampling).double() * count
    inside = expected > 0
    assert float(observed[~inside].sum()) == 0
    chi_square = float(((observed - expected)[inside] ** 2 / expected[inside]).sum())
    assert chi_square < 2 * int(inside.sum()) + 10


# --- compiling


def say(model: Transformer, tokenizer: ChatTokenizer, native: bool | None = None) -> str:
    engine = Engine(model, tokenizer, slots=1, native=native)
    (reply,) = engine.replies([[1, 2, 3]], Sampling(max_new_tokens=5, temperature=0), end=())
    assert len(reply.token_ids) == 5
    return engine.backend


@pytest.mark.parametrize("cxx", ["", "no-such-compiler -O1"])
def test_without_a_compiler_torch_computes(
    no_kernel_yet: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: Transformer,
    tokenizer: ChatTokenizer,
    cxx: str,
) -> None:
    monkeypatch.setenv("CXX", cxx)
    if not cxx:
        monkeypatch.setenv("PATH", "/nowhere")
    assert say(model, tokenizer) == "torch fp32"
    with pytest.raises(RuntimeError, match=r"native: no C\+\+ compiler is here") as caught:
        say(model, tokenizer, native=True)
    assert "\n" not in str(caught.value)
    assert not no_kernel_yet.exists()


def test_a_compiler_that_fails_is_told_in_one_line(
    no_kernel_yet: Path, monkeypatch: pytest.MonkeyPatch, model: Transformer,
    tokenizer: ChatTokenizer, tmp_path: Path,
) -> None:  # fmt: skip
    broken = tmp_path / "broken compiler"
    broken.write_text("#!/bin/sh\n[ $1 = --version ] || { echo 'x: error: no' >&2; exit 1; }\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{broken}'")
    assert say(model, tokenizer) == "torch fp32"
    with pytest.raises(RuntimeError, match=r"the kernel can't be built: .*error: no$") as caught:
        say(model, tokenizer, native=True)
    assert "\n" not in str(caught.value)
    assert list(no_kernel_yet.iterdir()) == []


@needs_compiler
def test_two_processes_that_compile_at_once_both_get_the_kernel(tmp_path: Path) -> None:
    code = "from model.native.build import library; library().parley_new"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment) for _ in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    kernels = list((tmp_path / "parley" / "kernel").iterdir())
    assert [file.suffix for file in kernels] == [".so"]


@needs_compiler
@pytest.mark.parametrize("damage", [b"", b"\x7fELF", None], ids=["empty", "cut", "one bit"])
def test_a_damaged_kernel_is_compiled_anew(
    no_kernel_yet: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: Transformer,
    tokenizer: ChatTokenizer,
    damage: bytes | None,
) -> None:
    # A copy of the one that is there already, so that only one is compiled.
    monkeypatch.delenv("XDG_CACHE_HOME")
    good = Path(build.library()._name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(no_kernel_yet.parents[1]))
    build._library.cache_clear()
    no_kernel_yet.mkdir(parents=True)
    copy = no_kernel_yet / good.name
    shutil.copy(good, copy)
    content = good.read_bytes()
    if damage is None:
        damage = content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]
    copy.write_bytes(damage)
    compiled: list[str] = []

    def instead(compiler: list[str], folder: Path, key: str) -> Path:
        compiled.append(key)
        assert not copy.exists()
        return Path(shutil.copy(good, copy))

    monkeypatch.setattr(build, "_compile", instead)
    assert say(model, tokenizer) == "native fp32"
    assert len(compiled) == 1
    build._library.cache_clear()
    assert say(model, tokenizer) == "native fp32"
    assert len(compiled) == 1


@needs_compiler
def test_what_decides_the_machine_code_decides_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = find_compiler()
    assert compiler is not None
    keys = {build._key(compiler)}
    monkeypatch.setattr(build, "FLAGS", ("-O1",))
    keys.add(build._key(compiler))
    monkeypatch.setattr(build, "_cpu", lambda: "another")
    keys.add(build._key(compiler))
    keys.add(build._key([*compiler, "-DX"]))
    assert len(keys) == 4


def test_without_a_writable_home_the_kernel_is_kept_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder.is_dir()
    assert folder.is_relative_to(tmp_path)
    assert folder.stat().st_mode & 0o077 == 0


def test_the_kernels_source_is_installed_with_the_package() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data = project["tool"]["setuptools"]["package-data"]
    assert any(build.SOURCE.match(pattern) for pattern in data["model.native"])


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_after_a_fork_a_kernel_with_threads_is_refused_and_another_can_be_made() -> None:
    code = """
import os, torch
from tests.model.tiny import lively_transformer
from model.native.backend import NativeBackend
from model.sampling import Sampling
model = lively_transformer()
backend = NativeBackend(model, 1, "fp32", threads=2)
expected = backend.begin(0, [1, 2, 3], Sampling(temperature=0), 0)
if os.fork() == 0:
    try:
        backend.begin(0, [1, 2, 3], Sampling(temperature=0), 0)
    except RuntimeError as error:
        assert "forked" in str(error) and not backend.fits(model)
        another = NativeBackend(model, 1, "fp32", threads=2)
        assert another.begin(0, [1, 2, 3], Sampling(temperature=0), 0) == expected
        del backend
        os._exit(7)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
assert backend.fits(model)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0
