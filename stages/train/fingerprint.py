"""What decides the result of a training, so that state is never continued under anything else."""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.files import sha256_file

About = Mapping[str, Any]

# Modules that are read on the way but decide no byte of the result.
UNDECIDING = {
    "model",
    "stages.errors",
    "stages.params",
    "stages.place",
    "stages.progress",
    "stages.scratch",
    "stages.train.__main__",
    "stages.train.checkpoints",
    "stages.train.fingerprint",
    "stages.train.launch",
    "stages.train.meter",
    "stages.train.prefetch",
    "stages.train.saves",
    "stages.train.stopping",
    "stages.trackers",
}
# `python -m` runs it under another name; it decides by its calls.
MAIN = "stages/train/__main__.py"
# Keys of the section `train` that say when a run ends and nothing of how it begins.
OF_THE_END = {"epochs", "max_steps", "decay_fraction"}


def code_sums() -> dict[str, str]:
    """The sha256 of each of the project's modules that are loaded and decide the result."""
    root = Path(__file__).resolve().parents[2]
    sums = {MAIN: sha256_file(root / MAIN)}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.split(".")[0] in ("model", "stages") and name not in UNDECIDING and file:
            path = Path(file).resolve()
            if path.name != "__init__.py" and path.is_relative_to(root):
                sums[path.relative_to(root).as_posix()] = sha256_file(path)
    return dict(sorted(sums.items()))


def without_end(about: About) -> dict[str, Any]:
    """``about`` of the steps that a shorter and a longer run have in common."""
    params = dict(about["params"])
    params["train"] = {k: v for k, v in params["train"].items() if k not in OF_THE_END}
    return {**about, "params": params, "part": "steps before the decay"}


def fingerprint(about: About) -> str:
    """Sixteen hex digits of all that ``about`` says; its values must fit JSON."""
    text = json.dumps(about, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: About, new: About) -> list[str]:
    """Names of what differs between two runs of the same settings: code files and software."""
    names = []
    for kind in ("code", "software"):
        before, now = old.get(kind, {}), new[kind]
        names += [
            name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)
        ]
    return names
