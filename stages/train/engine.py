"""The network, its optimisers and how they are spread, put together as the settings say."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.optim import Optimizer

from model.config import ModelConfig
from model.transformer import Transformer
from stages.runtime import RuntimeParams
from stages.train.checkpointing import checkpoint_activations
from stages.train.compiling import compile_network, keep_kernels
from stages.train.eager import train_eagerly
from stages.train.loss import TrainingLoss
from stages.train.master import MasterWeights
from stages.train.meter import Meter
from stages.train.optimizer import make_optimizers
from stages.train.params import TrainParams
from stages.train.precision import Precision
from stages.train.processes import Processes, spread
from stages.train.start import start_weights
from stages.train.update import Updater


def full_weights(model: Transformer) -> dict[str, Tensor]:
    """A copy of all weights on the CPU; in other than the first process perhaps empty."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    return {name: tensor.clone() for name, tensor in state.items() if isinstance(tensor, Tensor)}


@dataclass(frozen=True)
class Engine:
    """What computes a training.

    ``model`` has the weights that learn and are saved; ``network`` computes the loss with them, or
    with copies of ``masters``; ``spread_network`` is the same among all processes.
    """

    model: Transformer
    masters: MasterWeights | None
    network: TrainingLoss
    spread_network: nn.Module
    optimizers: list[Optimizer]
    precision: Precision
    updater: Updater


def build(
    config: ModelConfig,
    params: TrainParams,
    runtime: RuntimeParams,
    seed: int,
    device: torch.device,
    processes: Processes,
    meter: Meter,
) -> Engine:
    """Builds an engine with weights drawn for ``seed``, or those of ``params.init_from``.

    Raises SettingsError for settings that don't go together.
    """
    precision = Precision(params.mixed_precision, device)
    torch.manual_seed(seed)
    model = Transformer(config)
    start_weights(model, params.init_from)
    if model.embedding.weight.device.type != device.type:  # fake tensors (stages.plan) can't move
        model.to(device)

    sharded = processes.count > 1 and runtime.parallel == "fsdp"
    low = params.bf16_weights and precision.dtype == torch.bfloat16
    masters = MasterWeights(model) if low and not sharded else None
    network = TrainingLoss(masters.working if masters else model, precision.dtype)
    checkpoint_activations(network.model, params.activation_checkpointing)
    if params.compile:
        keep_kernels()
        compile_network(network, by_block=processes.count > 1)
    elif device.type == "cpu":
        train_eagerly(network.model, precision.dtype)
    spread_network = spread(network, processes, runtime.parallel, device, precision)
    # After `spread`: sharding replaces the parameters.
    optimizers = make_optimizers(model, params)
    updater = Updater(
        spread_network,
        optimizers,
        precision,
        params.sequences_per_pass(processes.count),
        params.grad_clip,
        seed,
        processes,
        meter,
        masters,
    )
    return Engine(model, masters, network, spread_network, optimizers, precision, updater)
