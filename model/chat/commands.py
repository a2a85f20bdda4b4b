"""Lines that begin with a slash."""

import dataclasses
import json
import shlex
from pathlib import Path

from model.chat.conversation import Conversation
from model.chat.settings import SETTINGS, read_value, written

HELP = """\
/help                 this list
/reset                forget the conversation
/retry                another reply to the last message
/system TEXT          set the system prompt; alone: show it; none: take it away
/set NAME VALUE       change a setting of sampling; alone: show all
/save FILE.jsonl      write the conversation, as data that training reads
/exit                 leave (also Ctrl-D)
Ctrl-C stops a reply. A line that begins with two slashes is said with one."""


class CommandError(Exception):
    """A command that can't be done; the message says why."""


class Commands:
    """What a person can do besides talking. Each returns what to tell them."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._saved: set[Path] = set()

    def run(self, line: str) -> str:
        """Does ``line``, which begins with a slash. Raises CommandError."""
        name, _, rest = line[1:].partition(" ")
        does = {
            "help": self._help,
            "reset": self._reset,
            "save": self._save,
            "set": self._set,
            "system": self._system,
        }.get(name)
        if does is None:
            raise CommandError(f"no command /{name}: /help lists them")
        return does(rest.strip())

    def _help(self, rest: str) -> str:
        return HELP

    def _reset(self, rest: str) -> str:
        self._conversation.reset()
        return "a new conversation"

    def _system(self, rest: str) -> str:
        if rest:
            self._conversation.system = None if rest == "none" else rest
        return f"system prompt: {self._conversation.system or 'none'}"

    def _set(self, rest: str) -> str:
        name, _, value = rest.partition(" ")
        if name and not value:
            raise CommandError("write /set NAME VALUE, or /set alone")
        try:
            if name:
                change = {name.replace("-", "_"): read_value(name, value.strip())}
                self._conversation.sampling = dataclasses.replace(
                    self._conversation.sampling, **change
                )
        except ValueError as error:
            raise CommandError(str(error)) from None
        values = dataclasses.asdict(self._conversation.sampling)
        shown = [s.name for s in SETTINGS] if not name else list(change)
        return "\n".join(f"{each} {written(values[each])}" for each in shown)

    def _save(self, rest: str) -> str:
        names = _words(rest)
        if len(names) != 1:
            raise CommandError("write /save FILE")
        messages = self._conversation.all_messages
        if not self._conversation.messages:
            raise CommandError("nothing was said yet")
        path = Path(names[0]).expanduser()
        if path.exists() and path.resolve() not in self._saved:
            raise CommandError(f"{path} is there already: choose another name")
        line = json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
        try:
            write_whole(path, line)
        except OSError as error:
            raise CommandError(f"can't write {path}: {error.strerror}") from None
        self._saved.add(path.resolve())
        return f"saved to {path}"


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise CommandError(str(error).lower()) from None


def write_whole(path: Path, text: str) -> None:
    """Writes ``path`` whole or not at all. Raises OSError."""
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
