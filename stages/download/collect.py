"""Rows in, folder of conversations out: choose, normalise, deduplicate, split, count."""

import json
from pathlib import Path
from typing import Any, TextIO

from stages.conversations import SPLITS, Split
from stages.download.digests import Digests
from stages.download.formats import Malformed, Unusable
from stages.download.normalise import content_digest, held_out
from stages.download.params import DataParams
from stages.download.report import Tally
from stages.download.rows import Rows
from stages.download.selection import Selection
from stages.download.splits import OrderedSplitFile, SplitFile
from stages.errors import DataError
from stages.files import write_json
from stages.progress import Progress

# Malformed rows are judged at the end; a source that is not what it says it is stops earlier.
HOPELESS_ROWS = 10_000


def collect(
    rows: Rows, params: DataParams, folder: Path, validation: Rows | None = None
) -> dict[str, Any]:
    """Writes the conversations of ``rows`` into ``folder`` and returns the data report.

    ``validation`` are the rows of ``params.validation_split``; without them rows of ``rows`` are
    held out. Raises DataError when nothing survives or more than ``max_bad_fraction`` is malformed,
    SettingsError when the settings name a column that no row has.
    """
    with (
        Progress("download", "row") as progress,
        (folder / "rejected.jsonl").open("w", encoding="utf-8", newline="\n") as rejected,
    ):
        collector = _Collector(params, folder, progress, rejected)
        if validation is None:
            collector.take(rows)
        else:
            collector.take(validation, "validation")
            collector.take(rows, "train")
    return collector.close()


class _Collector:
    """What has become of the rows so far."""

    def __init__(
        self, params: DataParams, folder: Path, progress: Progress, rejected: TextIO
    ) -> None:
        self._params, self._folder = params, folder
        self._progress, self._rejected = progress, rejected
        self._selection = Selection(params)
        self._tally = Tally()
        self._files: dict[Split, SplitFile] = {
            "train": SplitFile(folder / "train.jsonl"),
            "validation": OrderedSplitFile(folder / "validation.jsonl"),
        }
        self._seen, self._seen_in_validation = Digests(), Digests()
        self._first_bad = ""

    def take(self, rows: Rows, own: Split | None = None) -> None:
        """Takes rows for the split ``own``, or for that which a conversation's digest decides.

        ``subset`` ends them, but for a validation split of their own: that is always the same.
        """
        tally, params = self._tally, self._params
        kept = 0
        seen = self._seen_in_validation if own == "validation" else self._seen
        for where, row in rows:
            tally.read += 1
            self._progress.update()
            try:
                chosen = self._selection.conversation(row)
                digest = content_digest(chosen.messages)
                if own == "train" and digest in self._seen_in_validation:
                    raise Unusable("in_validation")
                if digest in seen:
                    raise Unusable("duplicate")
            except Malformed as error:
                self._reject(where, str(error))
                hopeless = max(0.5, params.max_bad_fraction)
                if tally.read >= HOPELESS_ROWS and tally.malformed / tally.read > hopeless:
                    break
                continue
            except Unusable as error:
                tally.dropped[str(error)] += 1
                continue
            seen.add(digest)
            tally.keep(chosen)
            if own is not None:
                split = own
            else:
                split = "validation" if held_out(digest, params.val_fraction) else "train"
            self._files[split].write(digest, chosen.messages)
            kept += 1
            if kept == params.subset and own != "validation":
                break
        self._check(kept, own)

    def _reject(self, where: str, reason: str) -> None:
        self._tally.malformed += 1
        self._tally.dropped[reason] += 1
        self._first_bad = self._first_bad or f"{where}: {reason}"
        self._rejected.write(json.dumps({"where": where, "reason": reason}) + "\n")

    def _check(self, kept: int, own: Split | None) -> None:
        tally, params = self._tally, self._params
        if tally.read and tally.malformed / tally.read > params.max_bad_fraction:
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
            raise DataError(
                f"no conversation is left of {tally.read:,} rows"
                f"{of if own == 'validation' else ''} ({reasons or 'the source is empty'})"
            )

    def close(self) -> dict[str, Any]:
        """Completes the files; the data report."""
        splits = {split: self._files[split].close() for split in SPLITS}
        write_json(self._folder / "manifest.json", {"splits": splits})
        return {
            **self._tally.report(),
            **{split: self._files[split].counts() for split in SPLITS},
        }
