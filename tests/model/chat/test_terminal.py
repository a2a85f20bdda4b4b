"""``python -m model.chat`` as a process: on a terminal, with one message, in a pipe."""

import io
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from model.chat.__main__ import main
from model.cli import run
from model.engine import Engine, Sampling
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from tests.model.chat.pty_session import PtySession
from tests.model.tiny import ROOT, chat_config, lively, write_folder

# The chat, with an engine that says a thousand words to "endless", some seconds long.
SLOW = """
import model.engine
from model.chat.__main__ import main
from model.cli import run
from model.tokenizer import ChatTokenizer
from tests.model.stub_engine import StubEngine

def script(prompt):
    last = prompt.rsplit("<|user|>")[-1]
    words = [f" word{i}\\x1b[31m" for i in range(1000)]
    return words if "endless" in last else ["Fine", ",", " thanks."]

def opened(folder, device, **same):
    return StubEngine(ChatTokenizer.load(folder), script, slots=1, pause=0.02)

model.engine.Engine.open = staticmethod(opened)
run("chat", main)
"""
CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture(scope="module")
def folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = ChatTokenizer.load(tokenizer_folder)
    model = lively(Transformer(chat_config(tokenizer, seq_len=64)))
    return write_folder(tmp_path_factory.mktemp("chat") / "tiny", model, tokenizer_folder)


@dataclass
class Done:
    """How a run in this process ended."""

    code: int
    stdout: bytes
    stderr: str


def chat(*arguments: str, stdin: bytes | None = None, encoding: str = "utf-8") -> Done:
    """``python -m model.chat`` without the seconds that a process takes to begin."""
    streams = [io.TextIOWrapper(io.BytesIO(data), encoding) for data in (stdin or b"", b"", b"")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["model.chat", *arguments])
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as ended:
            run("chat", main)
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue() for stream in streams[1:])  # type: ignore[attr-defined]
    return Done(int(ended.value.code or 0), out, err.decode(encoding))


def expected(folder: Path, text: str, **settings: object) -> str:
    engine = Engine.open(folder, slots=1)
    prompt = engine.tokenizer.encode_chat(
        [{"role": "user", "content": text}], add_generation_prompt=True
    )
    (reply,) = engine.replies([prompt], Sampling(**settings))  # type: ignore[arg-type]
    return reply.text


def test_a_conversation_on_a_terminal(folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.jsonl"
    command = [sys.executable, "-c", SLOW, str(folder), "--system", "be nice"]
    with PtySession(command) as session:
        session.expect(r"1,234 parameters, stub; /help for help\x1b\[0m\r\n")
        session.expect("> ")
        session.press("how are you?\n")
        session.expect("Fine, thanks\\.\r\n")
        # Dimmed, and on a line of its own.
        session.expect(r"\x1b\[2m3 tokens, [\d,]+ tokens/s, first after \d+\.\d\d s\x1b\[0m\r\n")
        session.expect("> ")
        # Ctrl-C stops the reply, and the chat goes on.
        session.press("endless\n")
        session.expect(" word3")
        session.press(CTRL_C)
        session.expect(r"tokens/s, first after .* s, stopped")
        session.expect("> ")
        assert "\x1b[31m" not in session.shown
        assert " word999" not in session.shown
        session.press("/set temperature 0.5\n")
        session.expect("temperature 0.5")
        session.press("/set temperature hot\n")
        session.expect("temperature 'hot' is not a number")
        session.press(f"/save {saved}\n")
        session.expect("saved to ")
        # What was typed is edited: Ctrl-A goes to the line's beginning.
        session.press("are you?\x01how \n")
        session.expect("Fine, thanks")
        session.press("/retry\n")
        session.expect("Fine, thanks")
        session.press("//reset is text\n")
        session.expect("Fine, thanks")
        session.expect("> ")
        # At the prompt Ctrl-C throws the line away, a second one leaves.
        session.press("not said")
        session.expect("not said")
        session.press(CTRL_C)
        session.expect("Ctrl-C again or Ctrl-D leaves", nudge="x")
        session.expect("> ")
        session.press("nor this")
        session.expect("nor this")
        session.press(CTRL_C)
        assert session.end(nudge="x") == 0
    messages = json.loads(saved.read_text(encoding="utf-8"))["messages"]
    assert messages[0] == {"role": "system", "content": "be nice"}
    assert messages[2]["content"] == "Fine, thanks."
    assert messages[-1]["content"].startswith(" word0")


def test_ctrl_d_leaves_and_no_color_is_heeded(folder: Path) -> None:
    command = [sys.executable, "-m", "model.chat", str(folder), "--max-new-tokens", "4"]
    with PtySession([*command, "--temperature", "0"], NO_COLOR="1") as session:
        session.expect("/help for help\r\n")
        session.expect("> ")
        session.press("hello\n")
        session.expect(r"\r\n\d tokens?, ")
        session.expect("> ")
        session.press(CTRL_D)
        assert session.end() == 0
    assert "\x1b[2m" not in session.shown


def test_one_message_prints_the_reply_alone(folder: Path) -> None:
    done = chat(str(folder), "--prompt", "hello", "--temperature", "0", "--max-new-tokens", "9")
    assert done.code == 0
    reply = expected(folder, "hello", temperature=0.0, max_new_tokens=9)
    assert done.stdout.decode() == shown(reply) + "\n"


def test_all_of_a_pipe_is_one_message(folder: Path) -> None:
    settings = ("--seed", "4", "--top-k", "20", "--max-new-tokens", "9", "--stop", "q 'x y'")
    done = chat(str(folder), *settings, stdin="two\nlines ü\n".encode())
    assert done.code == 0
    reply = expected(folder, "two\nlines ü", seed=4, top_k=20, max_new_tokens=9, stop=("q", "x y"))
    assert done.stdout.decode() == shown(reply) + "\n"


def shown(text: str) -> str:
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


def test_an_output_without_unicode_is_no_crash(folder: Path) -> None:
    done = chat(str(folder), "--prompt", "hello", "--max-new-tokens", "40", encoding="ascii")
    assert done.code == 0
    assert done.stdout.isascii()


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        (["/nowhere", "--prompt", "x"], None, 3, "no config.json in '/nowhere'"),
        (["FOLDER", "--prompt", "x", "--top-p", "nan"], None, 2, "top_p nan is not in (0, 1]"),
        (["FOLDER", "--prompt", "x", "--top-k", "many"], None, 2, "top_k 'many' is not a whole"),
        (["FOLDER", "--prompt", " "], None, 2, "the message is empty"),
        (["FOLDER"], b"", 2, "the message is empty"),
        (["FOLDER"], b"ab\xff", 2, "standard input is not UTF-8 (byte 2)"),
        (["FOLDER"], b"x" * 500, 2, "no room for a reply in the model's 64"),
    ],
)
def test_a_failure_is_one_line_and_a_code(
    folder: Path, arguments: list[str], stdin: bytes | None, code: int, message: str
) -> None:
    done = chat(*[str(folder) if a == "FOLDER" else a for a in arguments], stdin=stdin)
    assert (done.code, done.stdout) == (code, b"")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: chat: ")
    assert message in line
    assert line.endswith(f"(exit code {code})")


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "model.chat", str(folder), "--prompt", "hello"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() in (b"", b"chat: the reply is cut: max_new_tokens reached\n")
    assert process.wait() == 128 + 13
    process.stderr.close()
