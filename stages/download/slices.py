"""The download stage in slices: what becomes of rows is found apart, and collected in one place.

A slice takes every so many-th part of the source (a part is a file) and writes what becomes of each
row. What needs to know of all rows comes after, in order, and is what one machine does: duplicates,
``subset``, ``max_bad_fraction``, the split. So the bytes are the same.
"""

from pathlib import Path
from typing import Any, NamedTuple

import orjson

from stages.conversations import CONVERSATIONS, Split
from stages.download.collect import collect_outcomes
from stages.download.outcomes import Bad, Dropped, Kept, Outcomes, outcomes
from stages.download.params import DataParams
from stages.download.rows import Part
from stages.download.selection import Selection
from stages.download.sources import describe_source, for_validation, open_parts
from stages.errors import EXIT_CODES, DataError, StageError
from stages.files import output_folder, write_json

METRICS = Path("metrics/data.json")


class _OwnPart(NamedTuple):
    """A part of the source, the split that it is of (None: that is still to be decided), a name."""

    name: str
    own: Split | None
    part: Part


def _parts(params: DataParams) -> list[_OwnPart]:
    of_validation = for_validation(params)
    found = [] if of_validation is None else open_parts(of_validation)
    own: Split | None = None if of_validation is None else "train"
    return [
        *(_OwnPart(f"validation-{n:05d}", "validation", part) for n, part in enumerate(found)),
        *(_OwnPart(f"rows-{n:05d}", own, part) for n, part in enumerate(open_parts(params))),
    ]


def write_slice(params: DataParams, folder: Path, rank: int, slices: int) -> None:
    """Writes what becomes of the rows of slice ``rank`` of ``slices`` below ``folder``.

    What is there already is not written again.
    """
    for name, _, part in _parts(params)[rank::slices]:
        if not (folder / name).exists():
            with output_folder(folder / name) as partial:
                _write_part(params, part, partial)


def _write_part(params: DataParams, part: Part, folder: Path) -> None:
    selection = Selection(params)
    unseen = selection.unseen
    with (folder / "outcomes.jsonl").open("wb") as found, (folder / "lines").open("wb") as lines:

        def note(entry: object) -> None:
            found.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

        try:
            for outcome in outcomes(part(), selection):
                if selection.unseen != unseen:
                    note({"saw": sorted(unseen - selection.unseen)})
                    unseen = selection.unseen
                if isinstance(outcome, Kept):
                    lines.write(outcome.line)
                    note([outcome.digest.hex(), len(outcome.line), *outcome[2:]])
                else:
                    note([*outcome])
        except StageError as error:  # told when its row's turn comes, if it does
            note({"failed": error.exit_code, "message": str(error)})


def join_slices(params: DataParams, folder: Path) -> dict[str, Any]:
    """Makes data/conversations and the data report of all slices, and returns the report.

    Raises what the stage raises for such rows, and DataError when a slice is not complete.
    """
    parts = _parts(params)
    for name, _, _ in parts:
        if not (folder / name).exists():
            raise DataError(f"{folder / name} is not there yet: run the slices first")
    selection = Selection(params)

    def of(split: Split | None) -> Outcomes:
        for name, own, _ in parts:
            if own == split:
                yield from _read_part(folder / name, selection)

    own_split = params.validation_split is not None
    with output_folder(CONVERSATIONS) as out:
        report = collect_outcomes(
            of("train" if own_split else None),
            params,
            out,
            of("validation") if own_split else None,
            selection,
        )
        write_json(METRICS, {"source": describe_source(params), **report})
    return report


def _read_part(folder: Path, selection: Selection) -> Outcomes:
    with (folder / "outcomes.jsonl").open("rb") as found, (folder / "lines").open("rb") as lines:
        for text in found:
            entry = orjson.loads(text)
            if isinstance(entry, dict):
                if "failed" in entry:
                    raise EXIT_CODES[entry["failed"]](entry["message"])
                selection.saw(entry["saw"])
            elif len(entry) == 1:
                yield Dropped(*entry)
            elif len(entry) == len(Bad._fields):
                yield Bad(*entry)
            else:
                digest, length, *rest = entry
                yield Kept(bytes.fromhex(digest), lines.read(length), *rest)
