"""Opening the network of a model folder: one that training wrote, or that transformers wrote."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from model.config import read_config, read_json
from model.hugging_face import parts_of
from model.transformer import Transformer, rotary_tables

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
READABLE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> Transformer:
    """Opens the network of a Llama or Qwen3 folder, in float32 and evaluation mode.

    Raises FileNotFoundError for a missing file, ValueError for an architecture that this network
    does not compute alike and for weights that don't fit it.
    """
    folder = Path(folder)
    config = read_config(folder)
    with _NoInitialisation():
        model = Transformer(config)
    weights = _read_weights(folder)
    weights = {k: v for k, v in weights.items() if not k.endswith("rotary_emb.inv_freq")}
    state: dict[str, Tensor] = {}
    for name, parameter in model.state_dict().items():
        if name == "head.weight" and config.tie_embeddings:
            continue
        parts = []
        for part_name, expected in parts_of(name, parameter, config).items():
            if part_name not in weights:
                raise ValueError(f"'{folder}' has no weight {part_name}")
            part = weights.pop(part_name)
            if part.shape != expected.shape:
                raise ValueError(
                    f"'{folder}': {part_name} is {tuple(part.shape)}, "
                    f"config.json wants {tuple(expected.shape)}"
                )
            if part.dtype not in READABLE:
                raise ValueError(
                    f"'{folder}': {part_name} is {part.dtype}: only float32, float16 and bfloat16 "
                    "weights are read here"
                )
            parts.append(part)
        state[name] = torch.cat(parts).float()
    if config.tie_embeddings:
        weights.pop("lm_head.weight", None)
        state["head.weight"] = state["embedding.weight"]
    if weights:
        raise ValueError(f"'{folder}' has a weight that this network lacks: {min(weights)}")
    model.load_state_dict(state, assign=True)
    model.tie()
    model.cos, model.sin = rotary_tables(config)
    return model.to(device).eval()


class _NoInitialisation(TorchFunctionMode):
    """Leaves weights as they are allocated: nothing is drawn from the global generator, and no page
    of them is touched.

    (On the device "meta", made for this, torch imports half of its compiler to draw nothing: 1.5 s
    of a start of 3.)
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / INDEX_FILE).is_file():
        weight_map = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{folder / INDEX_FILE} has no weight_map")
        names = sorted(set(weight_map.values()))
    else:
        names = [WEIGHTS_FILE]
    weights = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"no {name} in '{folder}'")
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    weights[key] = file.get_tensor(key)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
    return weights
