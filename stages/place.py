"""This process's place among those of one training, as a launcher (ours, or torchrun) tells it."""

import os


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def speaks() -> bool:
    """Whether this is the process that tells the user what happens: the first, or the only one."""
    return not launched() or os.environ["RANK"] == "0"
