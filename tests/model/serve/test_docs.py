"""What model/README.md tells people to type works."""

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess

import pytest

from model.chat import __main__ as chat
from model.chat.commands import HELP
from model.engine import Engine
from model.serve import __main__ as serve
from tests.model.serve.running import serving
from tests.model.tiny import ROOT

README = (ROOT / "model/README.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    return README.split(f"\n## {name}\n")[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_server_s_examples_work(engine: Engine) -> None:
    (curl,) = blocks(section("Server"), "sh")
    (program,) = blocks(section("Server"), "python")
    own = Engine(engine.model, engine.tokenizer, slots=2)
    with serving({"chat": own}) as running:
        place = f"127.0.0.1:{running.port}"
        assert "127.0.0.1:8000" in curl
        done = subprocess.run(
            ["bash", "-c", curl.replace("127.0.0.1:8000", place)],
            capture_output=True,
            check=True,
        )
        assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(program.replace("127.0.0.1:8000", place), {})
        assert said.getvalue()


@pytest.mark.parametrize(("name", "module"), [("Chat", chat), ("Server", serve)])
def test_commands_have_options_that_exist(
    name: str, module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"python -m model.{'chat' if name == 'Chat' else 'serve'}"
    lines = [line for block in blocks(section(name), "bash") for line in block.splitlines()]
    mine = [line.split("| ")[-1] for line in lines if command in line]
    assert mine
    parser = chat.options() if module is chat else serve.options()
    for line in mine:
        parser.parse_args(shlex.split(line.removeprefix(command)))


def test_options_that_are_named_exist() -> None:
    for name, parser in (("Chat", chat.options()), ("Server", serve.options())):
        known = parser.format_help()
        for option in re.findall(r"`(--[a-z-]+)", section(name)):
            assert option in known, option


def test_commands_of_the_chat_are_those_of_its_help() -> None:
    named = set(re.findall(r"`(/[a-z]+)", section("Chat")))
    assert named == set(re.findall(r"^(/[a-z]+)", HELP, flags=re.M))


def test_the_defaults_that_are_named_are_the_limits() -> None:
    from model.engine import Sampling
    from model.serve.limits import Limits

    limits, text = Limits(), " ".join(section("Server").split())
    for phrase in (
        f"`--waiting` replies ({limits.waiting})",
        f"`--max-body` ({limits.body >> 20} MiB)",
        f"`--max-n` ({limits.choices})",
        f"{limits.stops} stop strings of {limits.stop_length} characters",
        f"{limits.connections} connections",
        f"{limits.header_seconds:g} s for headers, {limits.body_seconds:g} s for a body",
        f"{limits.stalled_seconds:g} s without reading",
        f"up to {limits.top_logprobs} tokens",
        f"live replies {limits.grace_seconds:g} s to end",
        f"`temperature` (default {Sampling().temperature})",
    ):
        assert phrase in text, phrase


def test_files_that_it_links_to_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / "model" / target).exists(), target


def test_the_extra_of_the_installation_is_there() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "pip install -e '.[serve]'" in section("Server")
    assert re.search(r'^serve = \["fastapi', project, flags=re.M)
