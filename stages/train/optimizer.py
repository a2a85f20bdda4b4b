"""The optimisers that ``train.optimizer`` names; another is one function and one entry in a table.

Learning rates: each group of parameters has a ``peak_lr``; the schedule multiplies all of them by
the same share.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import AdamW, Optimizer

from model.transformer import Transformer
from stages.train.muon import Muon
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


def adamw(model: Transformer, params: TrainParams) -> list[Optimizer]:
    """AdamW (Loshchilov & Hutter 2019) for all parameters."""
    return [_adamw(list(model.parameters()), params)]


def muon(model: Transformer, params: TrainParams) -> list[Optimizer]:
    """Muon (muon.py) for the matrices of the blocks, AdamW for all else."""
    config = model.config
    q_width, kv_width = (n * config.head_dim for n in (config.num_heads, config.kv_heads))
    # One product computes them, but they are matrices of their own.
    parts = {"qkv.weight": (q_width, kv_width, kv_width), "gate_up.weight": (config.d_ff,) * 2}
    groups: dict[tuple[int, ...], Parameters] = defaultdict(list)
    others = []
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and parameter.ndim == 2:
            rows = next((rows for end, rows in parts.items() if name.endswith(end)), ())
            groups[rows].append(parameter)
        else:
            others.append(parameter)
    inner = Muon(
        [{"params": members, "parts": rows} for rows, members in groups.items()],
        lr=params.muon_lr,
        weight_decay=params.weight_decay,
        momentum=params.betas[0],
    )
    return [inner, _adamw(others, params)]


OPTIMIZERS: dict[str, Callable[[Transformer, TrainParams], list[Optimizer]]] = {
    "adamw": adamw,
    "muon": muon,
}


def make_optimizers(model: Transformer, params: TrainParams) -> list[Optimizer]:
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
