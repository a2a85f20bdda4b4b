"""The history of a run: one row for each validation, as CSV for plots."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from stages.files import rounded, write_text


@dataclass(frozen=True)
class Row:
    """State after ``step`` updates; train_loss and grad_norm are means since the row before."""

    step: int
    tokens: int
    train_loss: float | None
    val_loss: float
    lr: float
    grad_norm: float | None


def write_speeds(speeds: Sequence[tuple[int, float]], path: Path) -> None:
    """Writes tokens per second at steps, in the same form."""
    table = pd.DataFrame(speeds, columns=["step", "tokens_per_second"])
    table["tokens_per_second"] = table["tokens_per_second"].round().astype(int)
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def write_history(rows: list[Row], path: Path) -> None:
    """Writes the rows with a header; numbers have five significant digits.

    Rows without a training loss (the one before the first step) are left out: DVC's plots would
    draw an empty cell as 0.
    """
    table = pd.DataFrame([asdict(row) for row in rows]).dropna()
    for column in ("train_loss", "val_loss", "lr", "grad_norm"):
        table[column] = table[column].map(rounded)
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
