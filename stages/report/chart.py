"""Pictures made of characters: they read alike on GitHub, on the hub and in a terminal."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

WIDTH, HEIGHT = 64, 14
BLOCKS = " ▏▎▍▌▋▊▉█"

Points = Sequence[tuple[float, float]]


def line_chart(series: Mapping[str, Points], x_label: str) -> list[str]:
    """Lines of a chart of some series of (x, y), each drawn with its key, of one character.

    Where two meet the later one is seen. Neighbouring points are joined.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return []
    xs, ys = zip(*points, strict=True)
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            (x - left) / (right - left or 1) * (WIDTH - 1),
            (high - y) / (high - low or 1) * (HEIGHT - 1),
        )

    for mark, line in series.items():
        placed = [place(*point) for point in line]
        for (x1, y1), (x2, y2) in pairwise(placed):
            steps = max(1, round(x2) - round(x1))
            for step in range(steps + 1):
                x, y = x1 + (x2 - x1) * step / steps, y1 + (y2 - y1) * step / steps
                grid[round(y)][round(x)] = mark
        if len(placed) == 1:
            grid[round(placed[0][1])][round(placed[0][0])] = mark
    rows = []
    for number, row in enumerate(grid):
        value = high - (high - low) * number / (HEIGHT - 1)
        label = f"{value:6.2f} ┤" if number % 3 == 0 or number == HEIGHT - 1 else "       │"
        rows.append((label + "".join(row)).rstrip())
    rows.append("       └" + "─" * WIDTH)
    first, last = f"{left:,.0f}", f"{right:,.0f}"
    middle = WIDTH - len(first) - len(last)
    rows.append("        " + first + x_label.center(middle) + last)
    return rows


def bar(value: float, most: float, width: int = 24) -> str:
    """A bar of up to ``width`` characters, to an eighth of one."""
    eighths = round(8 * width * max(0.0, min(1.0, value / most))) if most else 0
    return BLOCKS[8] * (eighths // 8) + (BLOCKS[eighths % 8] if eighths % 8 else "")
