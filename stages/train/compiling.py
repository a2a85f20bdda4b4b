"""torch.compile of what a step computes, and whether this machine can."""

import getpass
import os
import tempfile
from pathlib import Path

import torch

from model.transformer import Attention
from stages.errors import SettingsError
from stages.train.attention import chunked_attention
from stages.train.loss import TrainingLoss, piece_loss


def check_compiler(device: torch.device) -> None:
    """Raises SettingsError when ``train.compile`` has no compiler to call."""
    problem = None
    if device.type == "cpu":
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
    if problem:
        raise SettingsError(
            f"train.compile: this machine lacks {problem}: install it, or set it to false"
        )


def keep_kernels() -> None:
    """Keeps compiled kernels between runs and reboots, unless the user chose where."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    if any(character.isspace() for character in str(cache)):
        cache = Path(tempfile.gettempdir(), f"parley-{getpass.getuser()}")  # inductor quotes none
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "parley" / "inductor"))


def compile_network(network: TrainingLoss, by_block: bool) -> None:
    """Compiles the network and the pieces of its loss, each for the one shape of a run.

    As one graph, or ``by_block`` where DDP and FSDP act between blocks. Validation, generation and
    saving use the network as it was.
    """
    model = network.model
    if model.embedding.weight.device.type == "cpu":
        for module in model.modules():
            if isinstance(module, Attention):
                module.attend = chunked_attention
    if by_block:
        for block in model.blocks:
            # `forward` and not the call, so that hooks of FSDP stay outside.
            block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False)
    else:
        network.features = torch.compile(model.features, fullgraph=True, dynamic=False)
    network.piece = torch.compile(piece_loss, fullgraph=True, dynamic=False)
