"""This process's place among those of one training, as a launcher (ours, or torchrun) tells it."""

import os

# Set by stages.train.launch for the processes that it starts: its own process.
LAUNCHER = "PARLEY_LAUNCHER"
_PARENT = os.getppid()  # noted early: who has died before is not missed later


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def orphaned() -> bool:
    """Whether the process that started this one has died."""
    parent = os.environ.get(LAUNCHER) if launched() else None
    return os.getppid() != (_PARENT if parent is None else int(parent))


def speaks() -> bool:
    """Whether this is the process that tells the user what happens: the first, or the only one."""
    return not launched() or os.environ["RANK"] == "0"
