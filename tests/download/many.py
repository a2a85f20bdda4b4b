"""Runs the download stage in each folder that stdin names, in one process.

`python -m tests.download.many`: importing `datasets` takes longer than a run. A line of stdin is
``{"folder": …, "token": …}``; each folder gets ``stderr`` and ``exit_code``. The stage is loaded
anew for each, with the same attempts as ever but little time between them.
"""

import importlib
import json
import os
import runpy
import sys
from pathlib import Path

QUICK = {"DELAYS": (0.01, 0.02, 0.04, 0.08), "LONGEST_WAIT": 0.1, "ANSWER_SECONDS": 2.0}


def load() -> None:
    for name in [name for name in sys.modules if name.startswith("stages.download")]:
        del sys.modules[name]
    transfer = importlib.import_module("stages.download.transfer")
    for name, value in QUICK.items():
        assert type(getattr(transfer, name)) is type(value)
        setattr(transfer, name, value)


def main() -> None:
    for line in sys.stdin:
        case = json.loads(line)
        os.environ["HF_TOKEN"] = case["token"]
        os.chdir(case["folder"])
        kept = os.dup(2)
        with Path("stderr").open("wb") as stderr:
            os.dup2(stderr.fileno(), 2)
        load()
        code: object = 0
        try:
            runpy.run_module("stages.download", run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
        Path("exit_code").write_text(str(code), encoding="utf-8")


if __name__ == "__main__":
    main()
