"""Parley as a contender: the training stage's own engine, with settings for the occasion."""

import json
from typing import Any

from torch import Tensor, nn

from model.config import ModelConfig
from stages.errors import SettingsError
from stages.params import PARAMS_FILE, read_yaml, validate
from stages.runtime import RuntimeParams, start_torch
from stages.train.data_order import Batch
from stages.train.engine import Engine, build
from stages.train.meter import Meter
from stages.train.params import ModelParams, TrainParams
from stages.train.processes import Processes
from tests.benchmarks.contenders import Step
from tests.benchmarks.device import DEVICE
from tests.benchmarks.shapes import Shape
from tests.closure import ROOT

SEED = 1

Sections = dict[str, dict[str, Any]]


def runtime_params() -> RuntimeParams:
    """This machine as params.yaml has it, but for the threads: those that torch takes for all."""
    own = {"device": DEVICE.type, "threads": None, "processes": 1}
    return RuntimeParams.model_validate({**read_yaml(ROOT / PARAMS_FILE)["runtime"], **own})


def start_ours() -> None:
    """Sets torch up as the stages do."""
    start_torch(runtime_params())


def settle(own: Sections, settings: list[str]) -> tuple[ModelParams, TrainParams]:
    """Sections model and train: params.yaml's, ``own`` in their place, ``settings`` over both.

    A setting reads ``train.lr=3e-3``. Raises SettingsError.
    """
    given = read_yaml(ROOT / PARAMS_FILE)
    values: Sections = {name: {**given[name], **own.get(name, {})} for name in ("model", "train")}
    for setting in settings:
        key, _, value = setting.partition("=")
        section, _, name = key.partition(".")
        if section not in values or not name or not value:
            raise SettingsError(f"'{setting}' is neither model.key=value nor train.key=value")
        try:
            values[section][name] = json.loads(value)
        except ValueError:  # a word
            values[section][name] = value
    return validate("model", ModelParams, values), validate("train", TrainParams, values)


def build_engine(config: ModelConfig, params: TrainParams, meter: Meter) -> Engine:
    """The stage's engine on DEVICE, in this process alone."""
    return build(config, params, runtime_params(), SEED, DEVICE, Processes(), meter)


def speed_step(shape: Shape, compiled: bool, settings: list[str]) -> tuple[nn.Module, Step]:
    """Parley's model and an update of it, with the settings of ``peers.peer_step``."""
    own = {
        "batch_size": shape.batch_size,
        "grad_accum_steps": 1,
        "micro_batch_size": None,
        "optimizer": "adamw",
        "lr": 1e-3,
        "betas": [0.9, 0.95],
        "weight_decay": 0.1,
        "grad_clip": 1.0,
        "mixed_precision": "bf16",
        "compile": compiled,
    }
    _, params = settle({"train": own}, settings)
    meter = Meter(DEVICE)
    engine = build_engine(shape.config(), params, meter)

    def step(number: int, inputs: Tensor, labels: Tensor) -> None:
        meter.begin_step(number)
        engine.updater(number, Batch(inputs, labels, None, 0), 1.0)

    return engine.model, step
