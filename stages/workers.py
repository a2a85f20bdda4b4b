"""How many threads the stages that prepare data take: more are quicker, the bytes are the same."""

import os

from stages.params import read
from stages.runtime import RuntimeParams


def workers() -> int:
    """``runtime.num_workers``, or one for each core that this process may use.

    Raises SettingsError.
    """
    return read("runtime", RuntimeParams).num_workers or cores()


def use_in_tokenizers(count: int) -> None:
    """Has the library ``tokenizers`` take so many threads, unless the environment says otherwise.

    To be called before its first work.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(count))


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
