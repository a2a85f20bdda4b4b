"""``python -m model.serve`` as a process."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model.cli import run
from model.serve import __main__ as command
from model.serve.models import named_folders
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from tests.model.serve.running import read_answer, serving_process
from tests.model.tiny import ROOT, chat_config, lively, run_python, write_folder

KEY = "sk-1"


@pytest.fixture(scope="module")
def folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = ChatTokenizer.load(tokenizer_folder)
    model = lively(Transformer(chat_config(tokenizer, seq_len=4096)))
    return write_folder(tmp_path_factory.mktemp("serve") / "tiny", model, tokenizer_folder)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_its_replies(folder: Path, signum: signal.Signals) -> None:
    with serving_process(folder, f"again={folder}", PARLEY_API_KEY=KEY) as (running, process):
        assert running.ask("GET", "/v1/models").status == 401
        auth = {"authorization": f"Bearer {KEY}"}
        models = running.ask("GET", "/v1/models", headers=auth).json()["data"]
        assert [model["id"] for model in models] == ["tiny", "again"]
        secret = "a message of nobody's business"
        content = {
            "model": "again",
            "messages": [{"role": "user", "content": secret}],
            "stop": ["never said by anyone"],
        }
        request = running.request("POST", "/v1/chat/completions", {**content, "n": 16}, auth)
        with running.connect() as connection:
            connection.sendall(request)
            time.sleep(0.3)
            begun = time.monotonic()
            process.send_signal(signum)
            assert process.wait(30) == 0
            assert time.monotonic() - begun < 20
            answer = read_answer(connection)
            assert answer.status in (200, 503)
        assert process.stderr is not None
        said = process.stderr.read()
        assert said.endswith("serve: stopped\n")
        assert secret not in said
        assert "Traceback" not in said


def serve_here(
    *arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    """Exit code and error of a server that does not get as far as serving."""
    monkeypatch.setattr(sys, "argv", ["model.serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        run("serve", command.main)
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "key", "code", "message"),
    [
        (["/nowhere"], None, 3, "no config.json in '/nowhere'"),
        (["x/chat", "y/chat"], None, 2, "two models are called chat: name them, as in first=x/cha"),
        (["=x"], None, 2, "'=x' names no model: write NAME=FOLDER"),
        (["--host", "0.0.0.0"], None, 2, "--host 0.0.0.0 opens the server to the network: set PAR"),
        (["--host", "::"], None, 2, "set PARLEY_API_KEY in the environment, or say --without-key"),
        ([], "", 2, "PARLEY_API_KEY must be visible ASCII characters"),
        ([], "two words", 2, "PARLEY_API_KEY must be visible ASCII characters"),
        (["--host", "no.such.host.invalid"], "k", 2, "can't listen at no.such.host.invalid"),
    ],
)
def test_a_failure_is_one_line_and_a_code(
    arguments: list[str],
    key: str | None,
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PARLEY_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("PARLEY_API_KEY", key)
    monkeypatch.chdir(tmp_path)  # where no models/chat is
    arguments = [*arguments, "--port", "0"]
    ended, said = serve_here(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert ended == code
    (line,) = said.splitlines()
    assert line.startswith("error: serve: ")
    assert message in line
    assert line.endswith(f"(exit code {code})")


@pytest.mark.parametrize("option", ["--port=65536", "--slots=0", "--max-n=x", "--what", "--max"])
def test_a_wrong_option_is_refused(
    option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = serve_here("/nowhere", option, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2
    assert option.partition("=")[0] in said.splitlines()[-1]


def test_a_taken_port_is_said_before_the_model_is_opened(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = serve_here("/nowhere", "--port", port, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2
    assert f"can't listen at 127.0.0.1, port {port}: " in said


def test_without_the_extra_one_line_names_it() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None; sys.argv = ['serve']\n"
        "from model.cli import run; from model.serve.__main__ import main\n"
        "run('serve', main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: serve: the server needs FastAPI and uvicorn: pip install -e '.[serve]' "
        "(exit code 2)\n"
    )


def test_nothing_else_imports_the_web_libraries() -> None:
    modules = run_python(
        "import sys, model, model.engine, model.chat.__main__, model.chat.conversation, "
        "model.serve, model.serve.__main__, model.history; print(*sys.modules)"
    ).split()
    assert "model.engine" in modules
    assert not {"fastapi", "uvicorn", "starlette", "pydantic"} & set(modules)


def test_models_are_named_as_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    folders = named_folders(["models/chat", "wide=models/chat", "a=b", "other/", "."])
    assert folders == {
        "chat": Path("models/chat"),
        "wide": Path("models/chat"),
        "a=b": Path("a=b"),
        "other": Path("other"),
        tmp_path.name: Path(),
    }
