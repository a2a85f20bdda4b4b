"""The optimisers that ``train.optimizer`` names; another is one function and one entry in a table.

Learning rates: each group of parameters has a ``peak_lr``; the schedule multiplies all of them by
the same share.
"""

from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from stages.train.params import TrainParams

Parameters = list[nn.Parameter]


def parameter_groups(parameters: Parameters, weight_decay: float) -> list[dict[str, object]]:
    """Matrices with weight decay; gains of norms and other 1-D parameters without."""
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _adamw(parameters: Parameters, params: TrainParams) -> AdamW:
    """One fused kernel a step on CPU, CUDA and MPS."""
    groups = parameter_groups(parameters, params.weight_decay)
    beta1, beta2 = params.betas
    return AdamW(groups, lr=params.lr, betas=(beta1, beta2), fused=True)


def adamw(model: nn.Module, params: TrainParams) -> list[Optimizer]:
    """AdamW (Loshchilov & Hutter 2019) for all parameters."""
    return [_adamw(list(model.parameters()), params)]


def muon(model: nn.Module, params: TrainParams) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all else.

    Its steps are scaled to the size of AdamW's (Liu et al. 2025), at ``muon_lr``.
    """
    named = dict(model.named_parameters())
    matrices = {name for name, p in named.items() if name.startswith("blocks.") and p.ndim == 2}
    inner = Muon(
        [named[name] for name in named if name in matrices],
        lr=params.muon_lr,
        weight_decay=params.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [inner, _adamw([p for name, p in named.items() if name not in matrices], params)]


OPTIMIZERS: dict[str, Callable[[nn.Module, TrainParams], list[Optimizer]]] = {
    "adamw": adamw,
    "muon": muon,
}


def make_optimizers(model: nn.Module, params: TrainParams) -> list[Optimizer]:
    """The optimisers of ``params.optimizer``; between them they have every parameter once."""
    optimizers = OPTIMIZERS[params.optimizer](model, params)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_learning_rates(optimizers: Sequence[Optimizer], share: float) -> None:
    """Sets every learning rate to ``share`` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
