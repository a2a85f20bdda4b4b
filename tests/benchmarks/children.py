"""Child processes that measure: each begins with clean memory and a known allocator."""

import json
import os
import subprocess
import sys
from typing import Any

# glibc keeps freed blocks for the next step. Parley asks for it itself (`stages.runtime`); here
# all get it alike, since it is no merit of a model.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**26),
}


class ChildFailed(Exception):
    """A child ended without a result; the message is the last line that it said."""


def run_child(
    module: str, *arguments: object, default_allocator: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """What ``python -m module arguments`` prints as JSON in its last line.

    ``default_allocator`` leaves the C library's allocator as the child finds it; ``quiet`` keeps
    what the child says on stderr for the case that it fails. Raises ChildFailed.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    if not default_allocator:
        environment |= KEEP_FREED_MEMORY
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or "").strip().splitlines()
        raise ChildFailed(said[-1] if said else f"it ended with code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
