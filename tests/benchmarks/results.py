"""From the runs of all contenders at one shape to a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

OURS = "parley"

HEADER = (
    "| contender | ms a step: median (minimum) | tokens/s | to the best peer "
    "| share of GEMM | peak MiB | parameters |\n"
    "|---|---:|---:|---:|---:|---:|---:|"
)


@dataclass(frozen=True)
class Run:
    """One process of one contender: its counted steps, and what it found out by the way.

    ``gemm`` is the FLOP/s that one large bfloat16 product reached in that process.
    """

    milliseconds: list[float]
    peak_mib: int
    parameters: int
    flops_per_token: float
    gemm: float
    machine: str


@dataclass(frozen=True)
class Row:
    """A contender at one shape. ``to_peer`` is its speed by that of the best peer, if any ran."""

    name: str
    median_ms: float
    minimum_ms: float
    tokens_per_second: float
    to_peer: float | None
    share_of_gemm: float
    peak_mib: int
    parameters: int

    def __str__(self) -> str:
        to_peer = "" if self.to_peer is None else f"{self.to_peer:.2f}"
        return (
            f"| {self.name} | {self.median_ms:,.1f} ({self.minimum_ms:,.1f}) "
            f"| {self.tokens_per_second:,.0f} | {to_peer} | {self.share_of_gemm:.0%} "
            f"| {self.peak_mib:,} | {self.parameters:,} |"
        )


def gemm_of(runs: Mapping[str, Sequence[Run]]) -> float:
    """FLOP/s of the machine's products: the median over all processes, whoever ran in them."""
    return median(run.gemm for of_one in runs.values() for run in of_one)


def rows_of(runs: Mapping[str, Sequence[Run]], tokens: int) -> list[Row]:
    """One row a contender, from its runs in all rounds, with ``tokens`` a step.

    Its time is the median of the rounds' medians, so that a disturbed round counts once; its
    memory is the median of the rounds' peaks. FLOPs are counted alike for all: those of the Llama
    shape.
    """
    gemm = gemm_of(runs)
    times = {
        name: median(median(run.milliseconds) for run in of_one) for name, of_one in runs.items()
    }
    best_peer = min((ms for name, ms in times.items() if not name.startswith(OURS)), default=None)
    rows = []
    for name, of_one in runs.items():
        speed = 1000 * tokens / times[name]
        rows.append(
            Row(
                name=name,
                median_ms=times[name],
                minimum_ms=min(min(run.milliseconds) for run in of_one),
                tokens_per_second=speed,
                to_peer=None if best_peer is None else best_peer / times[name],
                share_of_gemm=speed * of_one[0].flops_per_token / gemm,
                peak_mib=round(median(run.peak_mib for run in of_one)),
                parameters=of_one[0].parameters,
            )
        )
    return rows


def table(runs: Mapping[str, Sequence[Run]], tokens: int) -> str:
    """All contenders at one shape, in Markdown."""
    return "\n".join([HEADER, *map(str, rows_of(runs, tokens))])
