"""The settings of sampling as a person writes them: options of the command, and ``/set``."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _stops(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))


@dataclass(frozen=True)
class Setting:
    """One field of ``model.engine.Sampling``; ``read`` raises ValueError."""

    name: str
    read: Callable[[str], Any]
    help: str
    kind: str

    @property
    def option(self) -> str:
        """Its name as an option."""
        return "--" + self.name.replace("_", "-")


SETTINGS = (
    Setting("max_new_tokens", int, "tokens of a reply at most", "a whole number"),
    Setting("temperature", float, "0 takes the most probable token each time", "a number"),
    Setting("top_k", int, "draw from the k most probable tokens", "a whole number"),
    Setting("top_p", float, "draw from the nucleus of this probability", "a number"),
    Setting("min_p", float, "leave out tokens below this share of the best", "a number"),
    Setting("repetition_penalty", float, "above 1: say less of what was said", "a number"),
    Setting("seed", int, "the same seed gives the same reply", "a whole number"),
    Setting("stop", _stops, "texts that end a reply, in quotes", "texts, in quotes"),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}


def read_value(name: str, text: str) -> Any:
    """The value that ``text`` gives the setting; "none" is the default's None or ().

    Raises ValueError saying what is wrong.
    """
    setting = BY_NAME.get(name.replace("-", "_"))
    if setting is None:
        raise ValueError(f"no setting '{name}': there are {', '.join(BY_NAME)}")
    if text == "none" and setting.name in ("top_k", "seed"):
        return None
    if text == "none" and setting.name == "stop":
        return ()
    try:
        return setting.read(text)
    except ValueError:
        raise ValueError(f"{setting.name} '{text}' is not {setting.kind}") from None


def written(value: object) -> str:
    """A setting's value as ``read_value`` takes it."""
    if value is None or value == ():
        return "none"
    return shlex.join(value) if isinstance(value, tuple) else str(value)
