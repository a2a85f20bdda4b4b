"""Pictures of characters show the numbers that they are given."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.report.chart import HEIGHT, WIDTH, bar, line_chart

numbers = st.floats(-1e6, 1e6, allow_nan=False)
points = st.lists(st.tuples(st.integers(0, 10**6).map(float), numbers), min_size=1, max_size=20)


def test_ends_of_a_line_are_at_the_corners() -> None:
    lines = line_chart({"●": [(0, 5.0), (100, 1.0)]}, "step")
    rows = [line[8:] for line in lines[:HEIGHT]]
    assert rows[0].startswith("●")
    assert rows[-1].rstrip().endswith("●")
    assert len(rows[-1].rstrip()) == WIDTH
    assert lines[0].startswith("  5.00 ┤")
    assert lines[HEIGHT - 1].startswith("  1.00 ┤")
    assert lines[-1].split() == ["0", "step", "100"]
    # It falls by one row every few columns, and each column has a mark.
    columns = [any(len(row) > x and row[x] == "●" for row in rows) for x in range(WIDTH)]
    assert all(columns)


def test_the_later_line_is_seen_where_two_meet() -> None:
    lines = line_chart({"·": [(0, 1.0), (9, 2.0)], "●": [(0, 1.0), (9, 2.0)]}, "x")
    assert "·" not in "".join(lines[:HEIGHT])


@given(points, points)
def test_any_lines_fit_the_frame(first: list[tuple[float, float]], second: list) -> None:
    lines = line_chart({"·": sorted(first), "●": sorted(second)}, "step")
    assert len(lines) == HEIGHT + 2
    assert all("┤" in line or "│" in line for line in lines[:HEIGHT])
    assert all(len(line.split("┤")[-1].split("│")[-1]) <= WIDTH for line in lines[:HEIGHT])
    assert any("●" in line for line in lines)


def test_no_points_give_no_chart() -> None:
    assert line_chart({"●": []}, "step") == []


@pytest.mark.parametrize(
    ("value", "most", "expected"),
    [(0, 10, ""), (10, 10, "█" * 24), (5, 10, "█" * 12), (20, 10, "█" * 24), (1, 0, "")],
)
def test_bars_are_as_long_as_their_value(value: float, most: float, expected: str) -> None:
    assert bar(value, most) == expected


def test_a_bar_is_exact_to_an_eighth() -> None:
    assert bar(1 / 24 / 8, 1) == "▏"
    assert bar(13 / 24 / 8, 1) == "█▋"
