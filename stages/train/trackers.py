"""Where a run is followed live. A tracker hears what happens and changes nothing."""

from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from stages.params import Section
from stages.progress import say

INIT_SECONDS = 15


class WandbParams(Section):
    """Logging to Weights & Biases."""

    enabled: bool
    project_name: Annotated[str, Field(min_length=1)]
    run_name: str | None
    mode: Literal["online", "offline"]


class Tracker(Protocol):
    """Hears values at steps."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """``values`` hold after ``step`` updates."""

    def finish(self) -> None:
        """The run has ended."""


class NoTracker:
    """Hears nothing."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def finish(self) -> None: ...


class WandbTracker:
    """Logs to Weights & Biases; a failure there is told once and never stops training."""

    def __init__(self, params: WandbParams, config: dict[str, Any]) -> None:
        import wandb

        self._run: Any = None
        try:
            self._run = wandb.init(
                project=params.project_name,
                name=params.run_name,
                mode=params.mode,
                config=config,
                settings=wandb.Settings(init_timeout=INIT_SECONDS, silent=True),
            )
        except Exception as error:
            self._give_up(error)

    def log(self, step: int, values: dict[str, float]) -> None:
        if self._run is not None:
            try:
                self._run.log(values, step=step)
            except Exception as error:
                self._give_up(error)

    def finish(self) -> None:
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        say(f"train: W&B is off for this run: {' '.join(str(error).split())[:200]}")


def open_tracker(params: WandbParams, config: dict[str, Any]) -> Tracker:
    """The tracker that params ask for; ``wandb`` is imported only when enabled."""
    return WandbTracker(params, config) if params.enabled else NoTracker()
