"""Rows in, folder of conversations out: choose, normalise, deduplicate, split, count."""

import json
from pathlib import Path
from typing import Any, TextIO

from stages.conversations import SPLITS, Split
from stages.download.digests import Digests
from stages.download.normalise import held_out
from stages.download.outcomes import Bad, Dropped, Outcomes, outcomes
from stages.download.params import LOCAL, DataParams
from stages.download.report import Tally
from stages.download.rows import Rows
from stages.download.selection import Selection
from stages.download.splits import OrderedSplitFile, SplitFile
from stages.errors import DataError
from stages.files import write_json
from stages.progress import Progress

# Malformed rows are judged at the end; a source that is not what it says it is stops earlier.
HOPELESS_ROWS = 10_000

# Reasons of which a column that the settings name, and no row has, is the nearest cause.
NO_COLUMN = {"unknown_columns", "missing_column"}


def collect(
    rows: Rows, params: DataParams, folder: Path, validation: Rows | None = None
) -> dict[str, Any]:
    """Writes the conversations of ``rows`` into ``folder`` and returns the data report.

    ``validation`` are the rows of ``params.validation_split``; without them rows of ``rows`` are
    held out. Raises DataError when nothing survives or more than ``max_bad_fraction`` is malformed,
    SettingsError when the settings name a column that no row has.
    """
    selection = Selection(params)
    own = None if validation is None else outcomes(validation, selection)
    return collect_outcomes(outcomes(rows, selection), params, folder, own, selection)


def collect_outcomes(
    found: Outcomes,
    params: DataParams,
    folder: Path,
    validation: Outcomes | None,
    selection: Selection,
) -> dict[str, Any]:
    """As ``collect``, for what has become of the rows in ``selection``."""
    with (
        Progress("download", "row") as progress,
        (folder / "rejected.jsonl").open("w", encoding="utf-8", newline="\n") as rejected,
    ):
        collector = _Collector(params, folder, selection, progress, rejected)
        if validation is None:
            collector.take(found)
        else:
            collector.take(validation, "validation")
            collector.take(found, "train")
    return collector.close()


class _Collector:
    """What has become of the rows so far."""

    def __init__(
        self,
        params: DataParams,
        folder: Path,
        selection: Selection,
        progress: Progress,
        rejected: TextIO,
    ) -> None:
        self._params, self._folder, self._selection = params, folder, selection
        self._progress, self._rejected = progress, rejected
        self._tally = Tally()
        self._files: dict[Split, SplitFile] = {
            "train": SplitFile(folder / "train.jsonl"),
            "validation": OrderedSplitFile(folder / "validation.jsonl"),
        }
        self._seen, self._seen_in_validation = Digests(), Digests()
        self._first_bad = self._first_reason = ""

    def take(self, found: Outcomes, own: Split | None = None) -> None:
        """Takes rows for the split ``own``, or for that which a conversation's digest decides.

        ``subset`` ends them, but for a validation split of their own: that is always the same.
        """
        tally, params = self._tally, self._params
        kept = 0
        seen = self._seen_in_validation if own == "validation" else self._seen
        for outcome in found:
            tally.read += 1
            self._progress.update()
            if isinstance(outcome, Bad):
                self._reject(outcome)
                hopeless = max(0.5, params.max_bad_fraction)
                if tally.read >= HOPELESS_ROWS and tally.malformed / tally.read > hopeless:
                    break
                continue
            if isinstance(outcome, Dropped):
                tally.dropped[outcome.reason] += 1
                continue
            digest = outcome.digest
            if own == "train" and digest in self._seen_in_validation:
                tally.dropped["in_validation"] += 1
                continue
            if digest in seen:
                tally.dropped["duplicate"] += 1
                continue
            seen.add(digest)
            tally.keep(outcome)
            if own is not None:
                split = own
            else:
                split = "validation" if held_out(digest, params.val_fraction) else "train"
            self._files[split].write(outcome)
            kept += 1
            if kept == params.subset and own != "validation":
                break
        self._check(kept, own)

    def _reject(self, bad: Bad) -> None:
        self._tally.malformed += 1
        self._tally.dropped[bad.reason] += 1
        if not self._first_bad:
            detail = f" ({bad.detail})" if bad.detail else ""
            self._first_bad = f"{bad.where}: {bad.reason}{detail}"
            self._first_reason = bad.reason
        self._rejected.write(json.dumps({"where": bad.where, "reason": bad.reason}) + "\n")

    def _check(self, kept: int, own: Split | None) -> None:
        tally, params = self._tally, self._params
        if tally.read and tally.malformed / tally.read > params.max_bad_fraction:
            if self._first_reason in NO_COLUMN:
                self._selection.check_columns()
            raise DataError(
                f"{tally.malformed:,} of {tally.read:,} rows are malformed, more than "
                f"data.max_bad_fraction {params.max_bad_fraction} allows; the first is "
                f"{self._first_bad}"
            )
        if tally.read and not (kept and own == "validation"):
            self._selection.check_columns()
        if not kept:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in tally.dropped.most_common())
            of = f" of data.validation_split '{params.validation_split}'"
            source = f"data.path '{params.path}'" if params.name == LOCAL else params.name
            raise DataError(
                f"no conversation is left of {tally.read:,} rows"
                f"{of if own == 'validation' else ''} ({reasons or 'the source is empty'}): "
                f"{source}"
            )

    def close(self) -> dict[str, Any]:
        """Completes the files; the data report."""
        splits = {split: self._files[split].close() for split in SPLITS}
        write_json(self._folder / "manifest.json", {"splits": splits})
        return {
            **self._tally.report(),
            **{split: self._files[split].counts() for split in SPLITS},
        }
