"""``python -m model.chat [folder]``: talk to a model in the terminal."""

import argparse
import contextlib
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

from model.chat.settings import SETTINGS, read_value
from model.chat.terminal import ask_line, clean, interruptible, show, tell
from model.cli import Failure, cannot_open, run

if TYPE_CHECKING:
    from model.chat.conversation import Conversation


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m model.chat",
        description="Talk to a model. Without a terminal, standard input is one message, and the "
        "reply alone is printed.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", nargs="?", default="models/chat", help="model folder (default: %(default)s)")
    add("--prompt", metavar="TEXT", help="say this, print the reply and leave")
    add("--system", metavar="TEXT", help="system prompt")
    for setting in SETTINGS:
        add(setting.option, metavar="X", help=setting.help)
    add("--weights", choices=("auto", "fp32", "bf16", "int8"), default="auto")
    add("--device", default="cpu", help="cpu, cuda, … (default: %(default)s)")
    return parser


def main() -> None:
    """Opens the model, and talks."""
    arguments = options().parse_args()
    values = vars(arguments)
    interactive = arguments.prompt is None and sys.stdin.isatty()
    text = None if interactive else _one_message(arguments.prompt)
    # What the output can't encode is shown as a question mark.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]

    try:
        given = {
            setting.name: read_value(setting.name, values[setting.name])
            for setting in SETTINGS
            if values[setting.name] is not None
        }
    except ValueError as error:
        raise Failure(str(error)) from None

    if arguments.device == "cpu":
        from model.native.build import start

        start()  # on first use the kernel is compiled while torch is imported
    from model.chat.conversation import Conversation
    from model.engine import Engine, Sampling

    try:
        sampling = Sampling(**given)
    except ValueError as error:
        raise Failure(str(error)) from None
    try:
        engine = Engine.open(arguments.folder, arguments.device, slots=1, weights=arguments.weights)
    except (FileNotFoundError, ValueError) as error:
        raise cannot_open(arguments.folder, error) from None
    conversation = Conversation(engine, sampling, arguments.system)
    if text is not None:
        _once(conversation, text)
    else:
        size = engine.model.config.num_parameters()
        tell(f"{arguments.folder}: {size:,} parameters, {engine.backend}; /help for help")
        _talk(conversation)


def _one_message(prompt: str | None) -> str:
    """The message of a run without a conversation. Raises Failure."""
    if prompt is None:
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise Failure(f"standard input is not UTF-8 (byte {error.start})") from None
        prompt = prompt.removesuffix("\n")
    if not prompt.strip():
        raise Failure("the message is empty")
    return prompt


def _once(conversation: "Conversation", text: str) -> None:
    """Says ``text`` and prints the reply. Raises Failure, KeyboardInterrupt."""
    try:
        pieces = conversation.say(text)
    except ValueError as error:
        raise Failure(str(error)) from None
    for piece in pieces:
        show(piece)
    print(flush=True)
    cut = conversation.outcome.cut
    if cut:
        print(f"chat: the reply is cut: {cut}", file=sys.stderr, flush=True)


def _talk(conversation: "Conversation") -> None:
    from model.chat.commands import CommandError, Commands

    with contextlib.suppress(ImportError):  # Windows' console has its own
        import readline  # noqa: F401  # gives input() editing and history
    commands = Commands(conversation)
    while (line := _next_line()) is not None:
        line = line.strip()
        try:
            if not line:
                continue
            if line in ("/exit", "/quit"):
                return
            if line == "/retry":
                _print_reply(conversation, conversation.retry())
            elif line.startswith("/") and not line.startswith("//"):
                tell(commands.run(line))
            else:
                said = line.removeprefix("/") if line.startswith("//") else line
                _print_reply(conversation, conversation.say(said))
        except (CommandError, ValueError) as error:
            tell(clean(str(error)))


def _next_line() -> str | None:
    while True:
        try:
            return ask_line("> ")
        except UnicodeDecodeError:
            tell("that was not UTF-8")


def _print_reply(conversation: "Conversation", pieces: Generator[str, None, None]) -> None:
    """Shows a reply while it is made; Ctrl-C ends it, and keeps what there is."""
    outcome = conversation.outcome
    if outcome.dropped:
        count = "message is" if outcome.dropped == 1 else f"{outcome.dropped} messages are"
        tell(f"the oldest {count} left out: the conversation no longer fits the model's context")
    with interruptible() as stop:
        for piece in pieces:
            show(piece)
            if stop.asked:
                outcome.finish = None
                break
        pieces.close()
    print()
    tell(outcome.summary())


if __name__ == "__main__":
    run("chat", main)
