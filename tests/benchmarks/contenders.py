"""Who takes part. The models are made in ``peers`` and ``parley``, only where they run."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tests.benchmarks.results import OURS
from tests.benchmarks.shapes import Shape

if TYPE_CHECKING:
    from torch import Tensor, nn

# (step, inputs, labels): one whole update of the weights
Step = Callable[[int, "Tensor", "Tensor"], None]

# The package that a peer comes from, and what installs it.
PEERS = {"transformers": "transformers", "litgpt": "litgpt", "nanogpt": "transformers"}
INSTALL = {
    "transformers": "pip install -e '.[benchmark]'",
    "litgpt": "pip install -e '.[benchmark]' && pip install --no-deps litgpt==0.5.13",
}
MODELS = (OURS, *PEERS)
CONTENDERS = tuple(f"{name}-{how}" for name in MODELS for how in ("eager", "compiled"))


def model_of(contender: str) -> str:
    """Whose model it is: ``litgpt`` of ``litgpt-compiled``."""
    return contender.rpartition("-")[0]


def missing(contender: str) -> str | None:
    """What installs the contender; None if it is there."""
    package = PEERS.get(model_of(contender))
    return INSTALL[package] if package and find_spec(package) is None else None


def make_model(name: str, shape: Shape) -> "nn.Module":
    """The model of one of MODELS, as its own package makes it."""
    if name == OURS:
        from model.transformer import Transformer

        return Transformer(shape.config())
    from tests.benchmarks.peers import LOSSES

    return LOSSES[name](shape)


def make_step(contender: str, shape: Shape, settings: list[str]) -> tuple["nn.Module", Step]:
    """The contender's model and one update of it; ``settings`` are for Parley alone."""
    name, compiled = model_of(contender), contender.endswith("-compiled")
    if name == OURS:
        from tests.benchmarks.parley import speed_step

        return speed_step(shape, compiled, settings)
    from tests.benchmarks.device import DEVICE
    from tests.benchmarks.peers import peer_step

    model = make_model(name, shape).to(DEVICE)
    return model, peer_step(model, compiled, DEVICE)
