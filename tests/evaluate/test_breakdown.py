"""Tables of the loss, and calibration, against sums made by hand."""

import numpy as np
import pytest

from stages.corpus import Roles
from stages.evaluate.breakdown import ByContext, ByRole, ByTurn, Calibration, table
from tests.builders import CONTROL_IDS
from tests.evaluate.test_trace import make_block

SIZES = np.array([0] * 7 + [1, 2, 3] + [4] * 14)  # bytes of the ids of the tests' vocabulary
LN2 = float(np.log(2))
ROLES = Roles(
    CONTROL_IDS["bos"],
    CONTROL_IDS["end"],
    CONTROL_IDS["assistant"],
    tuple(CONTROL_IDS[name] for name in ("system", "user", "assistant", "text")),
)


def test_contexts_are_counted_by_powers_of_two() -> None:
    watcher = ByContext(SIZES)
    watcher.see(make_block(context=[1, 2, 3, 4, 5], nats=[LN2, 1, 2, 4, 8], tokens=[7, 8, 9, 9, 9]))
    watcher.see(make_block(context=[8, 9, 16], nats=[2.0, 5, 7]))
    assert watcher.rows() == [
        {"context": 1, "tokens": 1, "loss": 0.69315, "bits_per_byte": 1.0},
        {"context": 2, "tokens": 1, "loss": 1.0, "bits_per_byte": 0.72135},
        {"context": 4, "tokens": 2, "loss": 3.0, "bits_per_byte": 1.4427},
        {"context": 8, "tokens": 2, "loss": 5.0, "bits_per_byte": 2.4045},
        {"context": 16, "tokens": 2, "loss": 6.0, "bits_per_byte": 2.8854},
    ]


def test_what_is_given_is_not_counted() -> None:
    watcher = ByContext(SIZES)
    watcher.see(make_block(context=[1, 2], predicted=[True, False]))
    assert [row["context"] for row in watcher.rows()] == [1]


def test_messages_are_counted_alone_up_to_the_eighth_then_by_doubling() -> None:
    watcher = ByTurn(SIZES)
    turns = [1, 2, 8, 9, 16, 17, 32, 33, 300]
    watcher.see(make_block(turn=turns, nats=[float(turn) for turn in turns]))
    found = [(row["turn"], row["to"], row["tokens"], row["loss"]) for row in watcher.rows()]
    assert found == [
        (1, 1, 1, 1.0),
        (2, 2, 1, 2.0),
        (8, 8, 1, 8.0),
        (9, 16, 2, 12.5),
        (17, 32, 2, 24.5),
        (33, 64, 1, 33.0),
        (257, 512, 1, 300.0),
    ]


def test_parts_are_words_by_role_ends_and_whose_turn_it_is() -> None:
    user, assistant, end = (CONTROL_IDS[name] for name in ("user", "assistant", "end"))
    watcher = ByRole(ROLES, SIZES)
    watcher.see(
        make_block(
            tokens=[user, 7, 8, end, assistant, 9, end],
            role=[user] * 4 + [assistant] * 3,
            is_role=[True, False, False, False, True, False, False],
            nats=[8.0, 1, 2, 10, 16, 6, 20],
        )
    )
    assert watcher.rows() == [
        {"part": "user", "tokens": 2, "loss": 1.5, "bits_per_byte": 1.4427},
        {"part": "assistant", "tokens": 1, "loss": 6.0, "bits_per_byte": 2.8854},
        {"part": "(end of message)", "tokens": 2, "loss": 15.0, "bits_per_byte": None},
        {"part": "(whose turn)", "tokens": 2, "loss": 12.0, "bits_per_byte": None},
    ]


def test_calibration_is_the_distance_between_what_was_said_and_what_came() -> None:
    watcher = Calibration()
    # 0.9 said four times and right three times; 0.3 and 0.2 said once each, wrong and right.
    watcher.see(make_block(confidence=[0.9, 0.9, 0.9, 0.3], rank=[1, 1, 2, 5]))
    watcher.see(
        make_block(confidence=[0.9, 0.2, 1.0], rank=[1, 1, 1], predicted=[True, True, False])
    )
    result = watcher.result()
    assert result.accuracy == pytest.approx(4 / 6, rel=1e-4)
    error = (4 * abs(0.9 - 0.75) + abs(0.3 - 0) + abs(0.2 - 1)) / 6
    assert result.calibration_error == pytest.approx(error, rel=1e-3)
    assert [row["tokens"] for row in result.rows] == [1, 1, 4]
    assert result.rows[-1] == {"confidence": 0.9, "accuracy": 0.75, "tokens": 4}


def test_a_model_whose_probabilities_come_true_has_no_error_and_certainty_has_a_bin() -> None:
    watcher = Calibration()
    watcher.see(make_block(confidence=[0.5, 0.5, 1.0], rank=[1, 3, 1]))
    assert watcher.result().calibration_error == 0.0


def test_tables_leave_empty_what_has_no_value() -> None:
    rows = [{"part": "user", "loss": 1.5, "bits": None}, {"part": "(end)", "loss": 0.0, "bits": 2}]
    assert table(rows) == "part,loss,bits\nuser,1.5,\n(end),0.0,2\n"
    assert table([]) == "\n"
