"""The download stage: a source of rows -> data/conversations and metrics/data.json."""

from pathlib import Path

from stages.conversations import CONVERSATIONS
from stages.download.collect import collect
from stages.download.params import DataParams
from stages.download.sources import describe_source, open_source, open_validation
from stages.errors import run
from stages.files import output_folder, write_json
from stages.params import read
from stages.progress import say

METRICS = Path("metrics/data.json")
REJECTED = CONVERSATIONS / "rejected.jsonl"


def main() -> None:
    params = read("data", DataParams)
    with output_folder(CONVERSATIONS) as folder:
        report = collect(open_source(params), params, folder, open_validation(params))
        write_json(METRICS, {"source": describe_source(params), **report})
    rows = report["rows"]
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in rows["dropped"].items())
    say(
        f"download: {rows['read']:,} rows gave {report['train']['conversations']:,} conversations "
        f"for training and {report['validation']['conversations']:,} for validation"
        + (f"; dropped: {dropped}" if dropped else "")
    )
    if rows["malformed"]:
        say(f"download: {rows['malformed']:,} malformed rows are listed in {REJECTED}")


if __name__ == "__main__":
    run("download", main)
