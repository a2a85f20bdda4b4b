"""Of processes that end together, the one that took the others with it is named."""

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from stages.train.launch import first_to_end


def failures(*codes: int) -> list[ProcessFailure]:
    made = [ProcessFailure(rank, 1000 + rank, code, "") for rank, code in enumerate(codes)]
    for failure in made:
        failure.timestamp = 0
    return made


@pytest.mark.parametrize(
    ("codes", "rank"),
    [
        ((69, -9), 1),  # the first lost its peer, which was killed
        ((1, -9), 1),
        ((-15, 1), 1),  # the agent ended the first, after the second had failed
        ((143, 1), 1),
        ((69, 69, 2), 2),  # a code of the stage's own
        ((-9, 5), 1),
        ((69, 143), 0),
    ],
)
def test_the_end_that_explains_most_comes_first(codes: tuple[int, ...], rank: int) -> None:
    assert first_to_end(failures(*codes)).local_rank == rank


def test_of_ends_that_explain_as_much_the_earlier_comes_first() -> None:
    late, early = failures(-9, -9)
    late.timestamp = 1
    assert first_to_end([late, early]) is early
