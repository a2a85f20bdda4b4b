"""Which rows become conversations: the filter, what is known of a row, and the bounds."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from stages.conversations import Message
from stages.download.formats import Malformed, Unusable, adapt, from_json, renamed
from stages.download.normalise import normalise
from stages.download.params import LANGUAGE, MODERATION, REDACTED, DataParams
from stages.download.rows import BadRow, Row
from stages.errors import SettingsError

LONGEST_LANGUAGE = 40  # characters; what is longer names no language


class Selected(NamedTuple):
    """A conversation that is kept, what its rules changed, and what is known of it."""

    messages: list[Message]
    mended: Mapping[str, int]
    characters: int
    language: str | None


class Selection:
    """Chooses and adapts rows, and remembers which of the columns that ``params`` name exist."""

    def __init__(self, params: DataParams) -> None:
        self._params = params
        own = params.columns
        drops: list[tuple[str, str, Callable[[object], bool]]] = []
        if params.drop_redacted:
            drops.append(("redacted", REDACTED, _is_redacted))
        if params.drop_flagged:
            drops.append(("flagged", MODERATION, _is_flagged))
        self._drops = drops
        # Column of the data -> the key that names it.
        self._unseen = {
            **{own.get(column, column): f"drop_{reason}" for reason, column, _ in drops},
            **dict.fromkeys(own.values(), "columns"),
            **dict.fromkeys(params.filter, "filter"),
        }

    def conversation(self, row: Row) -> Selected:
        """The conversation of ``row``. Raises Malformed, Unusable."""
        params = self._params
        if isinstance(row, BadRow):
            raise Malformed(row.reason, row.detail)
        if self._unseen:
            self.saw(self._unseen.keys() & row.keys())
        for column, wanted in params.filter.items():
            if not _matches(row, column, wanted):
                raise Unusable("filter")
        if params.columns:
            row = renamed(row, params.columns)
        for reason, column, holds in self._drops:
            if holds(row.get(column)):
                raise Unusable(reason)
        messages, mended = normalise(adapt(row, params.format))
        characters = sum([len(message["content"]) for message in messages])
        self._check_bounds(messages, characters)
        return Selected(messages, mended, characters, _language(row.get(LANGUAGE)))

    def _check_bounds(self, messages: list[Message], characters: int) -> None:
        params = self._params
        if messages[0]["role"] != "text":
            if len(messages) < params.min_turns:
                raise Unusable("min_turns")
            if params.max_turns is not None and len(messages) > params.max_turns:
                raise Unusable("max_turns")
        if characters < params.min_chars:
            raise Unusable("min_chars")
        if params.max_chars is not None and characters > params.max_chars:
            raise Unusable("max_chars")

    @property
    def unseen(self) -> frozenset[str]:
        """The columns that the settings name and no row had so far."""
        return frozenset(self._unseen)

    def saw(self, columns: Iterable[str]) -> None:
        """Takes note that rows have these columns."""
        for column in columns:
            self._unseen.pop(column, None)

    def check_columns(self) -> None:
        """Raises SettingsError when a column that the settings name was in no row."""
        for column, key in sorted(self._unseen.items()):
            raise SettingsError(f"data.{key}: no row has a column '{column}'")


def _matches(row: Mapping[str, Any], column: str, wanted: object) -> bool:
    if column not in row:
        return False
    choices = wanted if isinstance(wanted, list) else [wanted]
    return any(_equal(row[column], choice) for choice in choices)


def _equal(cell: object, wanted: object) -> bool:
    """Whether ``cell`` holds a scalar of the filter; csv has every value as text.

    A truth value is no number, though Python's True equals 1.
    """
    if isinstance(cell, str):
        if isinstance(wanted, bool):  # written True by some, true by others
            return cell.lower() == str(wanted).lower()
        return wanted is not None and cell == str(wanted)
    return isinstance(cell, bool) == isinstance(wanted, bool) and cell == wanted


def _is_redacted(cell: object) -> bool:
    return _equal(cell, True)


def _is_flagged(cell: object) -> bool:
    """Whether a message is flagged, of a list with a verdict for each. Raises Malformed."""
    if isinstance(cell, str):
        cell = from_json(cell) if cell else None
    if cell is None:
        return False
    try:
        return any(_equal(verdict["flagged"], True) for verdict in cell)  # type: ignore[attr-defined]
    except (TypeError, KeyError):
        raise Malformed("no_verdict") from None


def _language(value: object) -> str | None:
    """The name on one line, or None for what names no language."""
    name = " ".join(value.split()) if isinstance(value, str) else ""
    return name if 0 < len(name) <= LONGEST_LANGUAGE else None
