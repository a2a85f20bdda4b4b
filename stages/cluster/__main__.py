"""``python -m stages.cluster download --tasks 64``: a data stage in slices, with datatrove.

datatrove (Penedo et al. 2024) is what many corpora of the hub are made with: it runs tasks on the
cores of a machine or as a Slurm array, goes on where it stopped, and keeps a log of each. Of it
that alone is used; what a slice does is the stage's own code, and the bytes are the same as
without slices.
"""

import argparse
import functools
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.cluster.tasks import download_slice, shards_slice
from stages.conversations import SPLITS
from stages.download import slices as download
from stages.download.params import LOCAL, DataParams
from stages.errors import SettingsError, run
from stages.params import read
from stages.progress import say
from stages.shards import slices as shards
from stages.shards.build import conversations_sha256, load_tokenizer
from stages.shards.params import ShardsParams
from stages.workers import cores

SCRATCH = Path("data/.slices")
NAME = "python -m stages.cluster"


def main() -> None:
    options = _options()
    stage: str = options.stage
    write: Callable[..., None]
    join: Callable[[], object]
    if stage == "download":
        data = read("data", DataParams)
        folder = SCRATCH / f"{stage}-{_fingerprint(stage, options.tasks, _source(data))}"
        write = functools.partial(download_slice, data, folder)
        join = functools.partial(download.join_slices, data, folder)
    else:
        params = read("shards", ShardsParams)
        inputs = [load_tokenizer().sha256, *map(conversations_sha256, SPLITS)]
        folder = SCRATCH / f"{stage}-{_fingerprint(stage, options.tasks, inputs)}"
        write = functools.partial(shards_slice, folder)
        join = functools.partial(shards.join_slices, params, folder, options.tasks)
    if not options.join:
        run_tasks(options, write, folder)
    if not (options.slurm or options.share) or options.join:
        join()
        shutil.rmtree(folder)
        say(f"{NAME}: {stage} is complete; `dvc commit --force {stage}` records it")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=NAME)
    parser.add_argument("stage", choices=["download", "shards"])
    parser.add_argument("--tasks", type=int, default=cores(), help="how many slices")
    parser.add_argument("--workers", type=int, default=cores(), help="how many at a time")
    parser.add_argument("--share", metavar="I/N", help="the I-th of N machines: its slices alone")
    parser.add_argument("--slurm", metavar="PARTITION", help="submit the slices as a Slurm array")
    parser.add_argument("--time", default="4:00:00", help="Slurm: the most that a slice may take")
    parser.add_argument("--memory", type=int, default=4, help="Slurm: GiB of a slice")
    parser.add_argument("--join", action="store_true", help="put slices that are there together")
    options = parser.parse_args()
    if options.tasks < 1 or options.workers < 1:
        parser.error("--tasks and --workers are 1 at least")
    return options


def run_tasks(options: argparse.Namespace, write: Any, folder: Path) -> None:
    """Runs the tasks, or those of this machine's share, or submits them."""
    try:
        from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
        from datatrove.utils.logging import logger
    except ModuleNotFoundError:
        raise SettingsError(
            "the package datatrove is not installed: run `pip install -e '.[cluster]'`"
        ) from None
    logger.remove()
    logger.add(sys.stderr, level="ERROR")
    logs = str(folder / "logs")
    if options.slurm:
        SlurmPipelineExecutor(
            pipeline=[write],
            tasks=options.tasks,
            workers=options.workers,
            time=options.time,
            partition=options.slurm,
            mem_per_cpu_gb=options.memory,
            job_name=f"parley-{options.stage}",
            logging_dir=logs,
        ).run()
        say(f"{NAME}: submitted; when all have ended, run this again with --join")
        return
    first, count = _share(options.share, options.tasks)
    LocalPipelineExecutor(
        pipeline=[write],
        tasks=options.tasks,
        workers=min(options.workers, count),
        local_tasks=count,
        local_rank_offset=first,
        logging_dir=logs,
    ).run()
    if options.share:
        say(f"{NAME}: this machine's slices are there; when all are, run this again with --join")


def _share(text: str | None, tasks: int) -> tuple[int, int]:
    """The first task of this machine and how many it has."""
    if text is None:
        return 0, tasks
    number, _, machines = text.partition("/")
    if not (number.isdigit() and machines.isdigit() and 1 <= int(number) <= int(machines)):
        raise SettingsError(f"--share {text}: give the number of this machine of all, as 1/4")
    first, end = (tasks * n // int(machines) for n in (int(number) - 1, int(number)))
    if first == end:
        raise SettingsError(f"--share {text}: there are fewer --tasks than machines")
    return first, end - first


def _source(params: DataParams) -> list[Any]:
    """What tells a source from an edited one, without reading it."""
    if params.name != LOCAL:
        return [params.model_dump()]
    path = Path(params.path)
    files = [path, *sorted(path.rglob("*"))]
    return [params.model_dump(), [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]]


def _fingerprint(stage: str, tasks: int, inputs: list[Any]) -> str:
    """Of all that decides what slices hold, so that those of another run are not joined."""
    digest = hashlib.sha256(json.dumps([stage, tasks, inputs]).encode())
    for file in sorted(Path(__file__).parent.parent.joinpath(stage).glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    run("cluster", main)
