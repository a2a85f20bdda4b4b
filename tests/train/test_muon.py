"""Muon's step against the definition, in float64 with an exact polar decomposition."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from stages.train import muon
from stages.train.muon import RMS, Muon, orthogonal


def parameters(*shapes: tuple[int, int]) -> list[nn.Parameter]:
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(shape) / 10) for shape in shapes]


def polar(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix."""
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ v


def conditioned(*shape: int) -> Tensor:
    """Random matrices whose singular values are from a hundredth to 1."""
    u, values, v = torch.linalg.svd(torch.randn(*shape), full_matrices=False)
    return (u * torch.logspace(-2, 0, values.size(-1))) @ v


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


@pytest.mark.parametrize("shape", [(48, 48), (24, 72), (72, 24), (1, 16)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    matrices = conditioned(3, *shape) * torch.tensor([1e-6, 1.0, 1e4])[:, None, None]
    result = orthogonal(matrices).double()
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.3
    for one, matrix in zip(result, matrices, strict=True):
        assert cosine(one, polar(matrix)) > 0.98
    assert torch.equal(orthogonal(torch.zeros(2, *shape)).float(), torch.zeros(2, *shape))


def expected_steps(gradients: list[Tensor], momentum: float, beta2: float) -> list[Tensor]:
    """Updates of one matrix at learning rate 1, without weight decay."""
    buffer, moment = torch.zeros_like(gradients[0]).double(), torch.zeros(len(gradients[0]), 1)
    steps = []
    for gradient in gradients:
        buffer = momentum * buffer + (1 - momentum) * gradient
        step = polar(momentum * buffer + (1 - momentum) * gradient)
        moment = beta2 * moment + (1 - beta2) * step.square().mean(1, keepdim=True)
        step = step / moment.sqrt()
        steps.append(RMS * step / step.square().mean().sqrt())
    return steps


@pytest.mark.parametrize("shape", [(32, 32), (16, 48), (48, 16)])
def test_steps_are_those_of_the_definition(shape: tuple[int, int]) -> None:
    (weight,) = parameters(shape)
    gradients = [conditioned(*shape) * torch.linspace(1, 3, shape[0])[:, None] for _ in range(4)]
    optimizer = Muon([weight], lr=0.5, weight_decay=0.0, momentum=0.8, beta2=0.7)
    for gradient, expected in zip(gradients, expected_steps(gradients, 0.8, 0.7), strict=True):
        before = weight.detach().clone()
        weight.grad = gradient
        optimizer.step()
        step = (before - weight.detach()) / 0.5
        assert float(step.square().mean().sqrt()) == pytest.approx(RMS, rel=1e-3)
        assert cosine(step, expected) > 0.98
        sizes = step.norm(dim=1) / expected.norm(dim=1)
        assert sizes.min() > 0.75
        assert sizes.max() < 1.3


def test_parts_are_matrices_of_their_own() -> None:
    """Stacked in one parameter they step as they do apart, whatever else there is."""
    stacked, other = parameters((24, 16), (8, 16))
    apart = [nn.Parameter(piece.detach().clone()) for piece in stacked.split([8, 4, 12])]
    together = Muon(
        [{"params": [stacked], "parts": (8, 4, 12)}, {"params": [other]}],
        0.1,
        weight_decay=0.3,
        momentum=0.9,
    )
    alone = Muon(apart, 0.1, weight_decay=0.3, momentum=0.9)
    for _ in range(3):
        stacked.grad, other.grad = torch.randn(24, 16), torch.randn(8, 16)
        for one, piece in zip(apart, stacked.grad.split([8, 4, 12]), strict=True):
            one.grad = piece.clone()
        together.step()
        alone.step()
    torch.testing.assert_close(stacked.detach(), torch.cat([p.detach() for p in apart]))


def test_how_many_are_multiplied_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> list[Tensor]:
        weights = parameters((16, 16), (16, 8), (16, 16), (16, 16), (8, 16))
        optimizer = Muon(weights, 0.1, weight_decay=0.1, momentum=0.9)
        for seed in range(3):
            torch.manual_seed(seed)
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            optimizer.step()
        return [weight.detach() for weight in weights]

    at_once = trained()
    monkeypatch.setattr(muon, "TOGETHER", {"cpu": 1})
    for one, other in zip(at_once, trained(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)  # 3 steps of 2e-2


def test_state_goes_through_a_save() -> None:
    first, second = parameters((16, 8)), parameters((16, 8))
    optimizers = [Muon(w, 0.1, weight_decay=0.0, momentum=0.9) for w in (first, second)]
    gradients = torch.randn(4, 16, 8)
    for gradient in gradients[:2]:
        first[0].grad = gradient
        optimizers[0].step()
    second[0].data.copy_(first[0].data)
    optimizers[1].load_state_dict(deepcopy(optimizers[0].state_dict()))
    for gradient in gradients[2:]:
        for (weight,), optimizer in zip((first, second), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(first[0], second[0])
