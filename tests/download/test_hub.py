"""Data sets of the Hugging Face hub, through the real `datasets` and a hub of the tests' own."""

import errno
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stages.download import hub as hub_source
from stages.errors import AccessError, DataError
from tests.download.conftest import (
    Ran,
    chat,
    data_params,
    jsonl,
    run_stage,
    stage_environment,
    workspace,
)
from tests.download.test_readers import parquet_bytes
from tests.hub import Hub, hub_environment

READER, OTHER, WRONG = "hf_of-a-reader", "hf_of-another", "hf_of-nobody"
CARD = b"# A data set\n"


def lmsys(count: int, word: str = "chat") -> list[dict[str, Any]]:
    """Rows with the columns of LMSYS-Chat-1M."""
    return [
        {
            "conversation_id": f"{number:032x}",
            "model": "vicuna-13b",
            "conversation": chat(f"{word} {number}?", "Yes."),
            "turn": 1,
            "language": "English" if number % 2 else "German",
            "openai_moderation": [{"flagged": False}],
            "redacted": False,
        }
        for number in range(count)
    ]


def parquet(count: int, word: str = "chat") -> dict[str, bytes]:
    return {
        "README.md": CARD,
        "data/train-00000-of-00001.parquet": parquet_bytes(lmsys(count, word)),
    }


def fill(hub: Hub) -> str:
    """Adds the data sets of these tests; returns the commit of acme/configs."""
    two = parquet_bytes(lmsys(4))
    question = {"instruction": "Add.", "input": "", "output": "3"}
    hub.add("acme/chats", parquet(20))
    hub.add("acme/chats", parquet(7, "second"), revision="v2")
    hub.add("acme/alpaca", {"train.jsonl": jsonl([{**question, "input": "1, 2"}, question])})
    hub.add("acme/alpaca-parquet", {"train.parquet": parquet_bytes([question])})
    hub.add("acme/tested", {**parquet(3), "data/test-00000-of-00001.parquet": two})
    hub.add("acme/gated", parquet(3), gated=True, reader=READER)
    hub.add("acme/gated-to-all", parquet(3), gated=True)
    hub.add("acme/gated-but-card", parquet(3), gated=True, open_files=frozenset(["README.md"]))
    hub.add("acme/private", parquet(3), private=True, reader=READER)
    hub.add("acme/aggregated-splits", {"README.md": CARD})
    hub.add("acme/damaged", {"train.parquet": two[:-20]})
    hub.add("acme/broken", {"train.jsonl": jsonl([question]) + b'{"instruction": \n'})
    hub.add("acme/empty", {"train.jsonl": b""})
    hub.add("stages/download", parquet(3))  # as a folder of every workspace
    hub.tokens.add(OTHER)
    configs = "".join(f"- config_name: {c}\n  data_files: {c}.parquet\n" for c in ("en", "de"))
    return hub.add(
        "acme/configs",
        {
            "README.md": f"---\nconfigs:\n{configs}---\n".encode(),
            "en.parquet": parquet_bytes(lmsys(3, "en")),
            "de.parquet": parquet_bytes(lmsys(5, "de")),
        },
    )


@dataclass(frozen=True)
class Case:
    """Params and token of a run, and what must come of it: rows kept, or a failure's parts."""

    changes: dict[str, Any]
    token: str = ""
    kept: int = 0
    code: int = 0
    parts: list[str] = field(default_factory=list)


CASES = {
    "lmsys": Case({"name": "acme/chats"}, kept=20),
    "filter": Case({"name": "acme/chats", "filter": {"language": "English"}}, kept=10),
    "alpaca": Case({"name": "acme/alpaca"}, kept=2),
    "alpaca-parquet": Case({"name": "acme/alpaca-parquet"}, kept=1),
    "branch": Case({"name": "acme/chats", "revision": "v2"}, kept=7),
    "main": Case({"name": "acme/chats", "revision": "main"}, kept=20),
    "config": Case({"name": "acme/configs", "config": "en"}, kept=3),
    "other-config": Case({"name": "acme/configs", "config": "de"}, kept=5),
    "split": Case({"name": "acme/tested", "split": "test"}, kept=4),
    "splits": Case({"name": "acme/chats", "split": "train[:3]+train[-1:]"}, kept=4),
    "gated-with-access": Case({"name": "acme/gated"}, token=READER, kept=3),
    "private-with-access": Case({"name": "acme/private"}, token=READER, kept=3),
    "a-folder-here": Case({"name": "stages/download"}, kept=3),
    "unknown-revision": Case(
        {"name": "acme/chats", "revision": "v3"}, code=4, parts=["data.revision", "'v3'"]
    ),
    "unknown-config": Case(
        {"name": "acme/configs", "config": "fr"}, code=2, parts=["data.config", "'fr'", "en", "de"]
    ),
    "no-config": Case({"name": "acme/configs"}, code=2, parts=["data.config", "en", "de"]),
    "unknown-split": Case(
        {"name": "acme/chats", "split": "test"}, code=2, parts=["data.split", "'test'", "train"]
    ),
    "not-a-split": Case(
        {"name": "acme/chats", "split": "train["}, code=2, parts=["data.split", "'train['"]
    ),
    **{
        f"{name} to {who}": Case(
            {"name": f"acme/{name}"},
            token=token,
            code=4,
            parts=[f"https://huggingface.co/datasets/acme/{name} ", "HF_TOKEN"],
        )
        for name in ("gated-to-all", "gated-but-card")
        for who, token in (("anyone", ""), ("a reader", OTHER))
    },
    "private": Case({"name": "acme/private"}, code=4, parts=["data.name", "acme/private"]),
    "private-to-this-token": Case(
        {"name": "acme/private"}, token=OTHER, code=4, parts=["data.name", "acme/private"]
    ),
    "missing": Case({"name": "acme/none"}, code=4, parts=["data.name", "no data set 'acme/none'"]),
    "missing-to-a-token": Case(
        {"name": "acme/none"}, token=READER, code=4, parts=["no data set 'acme/none'"]
    ),
    "misspelt": Case({"name": "chitchta"}, code=4, parts=["data.name", "'chitchta'"]),
    "packaged-loader": Case({"name": "json"}, code=4, parts=["data.name", "'json'"]),
    "invalid-token": Case({"name": "acme/chats"}, token=WRONG, code=4, parts=["HF_TOKEN"]),
    "not-an-id": Case({"name": "a/b/c"}, code=2, parts=["data.name", "'a/b/c'"]),
    "spaces": Case({"name": "my chats"}, code=2, parts=["data.name", "'my chats'"]),
    "no-data": Case(
        {"name": "acme/aggregated-splits"}, code=3, parts=["acme/aggregated-splits", "data files"]
    ),
    "damaged": Case({"name": "acme/damaged"}, code=3, parts=["acme/damaged", "corrupted"]),
    "broken-line": Case({"name": "acme/broken"}, code=3, parts=["acme/broken", "JSON"]),
    "empty": Case({"name": "acme/empty"}, code=3, parts=["acme/empty"]),
}


@dataclass(frozen=True)
class World:
    """A hub, the caches that runs against it have filled, and those runs by name of case."""

    hub: Hub
    home: Path
    commit: str
    runs: dict[str, Ran]

    def environment(self, **more: str) -> dict[str, str]:
        return self.hub.environment(self.home, **more)


def run_all(
    cases: dict[str, Case], environment: dict[str, str], new_folder: Callable[[str], Path]
) -> dict[str, Ran]:
    """The stage's runs of ``cases``, one after the other in one process."""
    folders = {name: workspace(new_folder("run"), **case.changes) for name, case in cases.items()}
    told = [{"folder": str(folders[name]), "token": case.token} for name, case in cases.items()]
    subprocess.run(
        [sys.executable, "-P", "-m", "tests.download.many"],
        input=jsonl(told),
        env=stage_environment(environment),
        check=True,
        timeout=300,
    )
    return {
        name: Ran(
            int((folder / "exit_code").read_text(encoding="utf-8")),
            (folder / "stderr").read_text(encoding="utf-8").splitlines(),
            folder,
        )
        for name, folder in folders.items()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("home")
    with Hub() as hub:
        commit = fill(hub)
        runs = run_all(CASES, hub.environment(home), tmp_path_factory.mktemp)
        yield World(hub, home, commit, runs)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.code == 0])
def test_a_data_set_of_the_hub_becomes_conversations(world: World, name: str) -> None:
    ran, case = world.runs[name], CASES[name]
    assert ran.code == 0, ran.lines
    assert ran.report["rows"]["kept"] == case.kept
    # The count of rows and the closing line: no bars and no chatter of the libraries.
    assert {line.split(":")[0] for line in ran.lines} == {"download"}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.code != 0])
def test_what_the_hub_refuses_or_lacks_is_said_in_one_line(world: World, name: str) -> None:
    world.runs[name].failed(CASES[name].code, *CASES[name].parts)


def test_the_rows_are_those_of_the_revision_and_the_config(world: World) -> None:
    words = {"main": "chat", "branch": "second", "config": "en", "other-config": "de"}
    for name, word in words.items():
        said = {c[0]["content"].split()[0] for c in world.runs[name].result().all}
        assert said == {word}, name


def test_the_token_is_sent_and_never_printed(world: World) -> None:
    sent = {asked.token for asked in world.hub.asked}
    assert sent == {None, READER, OTHER, WRONG}
    for ran in world.runs.values():
        assert not any("hf_of" in line for line in ran.lines)
        assert not any(b"hf_of" in content for content in ran.outputs().values())


def test_the_stage_alone_gives_the_same(world: World, tmp_path: Path) -> None:
    """In a process and with caches of its own: all is downloaded again."""
    world.hub.asked.clear()
    ran = run_stage(
        workspace(tmp_path / "run", name="acme/chats"), world.hub.environment(tmp_path / "home")
    )
    assert ran.code == 0, ran.lines
    assert ran.outputs() == world.runs["lmsys"].outputs()
    assert any(asked.path.endswith(".parquet") for asked in world.hub.asked)


# --- without the hub ---


@pytest.fixture(scope="module")
def closed() -> str:
    """The address of a port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("cached", [False, True])
def test_a_hub_that_cannot_be_reached_is_said_in_one_line(
    world: World, closed: str, tmp_path: Path, cached: bool
) -> None:
    """Whether or not something is in the cache: it may be another commit."""
    home = world.home if cached else tmp_path / "home"
    environment = {**hub_environment(home), "HF_ENDPOINT": closed}
    folder = workspace(tmp_path / "run", name="acme/chats", revision="v2")
    run_stage(folder, environment).failed(4, "acme/chats", "HF_HUB_OFFLINE=1")


def test_offline_the_cache_is_read_where_it_surely_holds_what_is_asked(
    world: World, closed: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    configs = {"name": "acme/configs", "config": "de"}
    chats = {"name": "acme/chats"}
    cases = {
        "any": Case(configs),
        "pinned": Case({**configs, "revision": world.commit}),
        "branch": Case({**chats, "revision": "v2"}, code=4, parts=["data.revision", "'v2'"]),
        "other": Case({**chats, "revision": world.commit}, code=4, parts=["data.revision"]),
        "config": Case({**configs, "config": "fr"}, code=4, parts=["acme/configs", "'fr'"]),
        "missing": Case({"name": "acme/none"}, code=4, parts=["acme/none"]),
    }
    environment = world.environment(HF_HUB_OFFLINE="1", HF_ENDPOINT=closed)
    for name, ran in run_all(cases, environment, tmp_path_factory.mktemp).items():
        if cases[name].code:
            ran.failed(cases[name].code, *cases[name].parts)
        else:
            assert ran.outputs() == world.runs["other-config"].outputs(), ran.lines


# --- failures that no server can bring about at will ---


def test_a_full_disk_keeps_its_own_exit_code() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    wrapped = RuntimeError("An error occurred while generating the dataset")
    wrapped.__cause__ = full
    assert hub_source._load_failure(data_params(name="acme/chats"), wrapped) is full


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError("read timed out"), AccessError),
        (ConnectionResetError("reset by peer"), AccessError),
        (StopIteration(), DataError),
        (ValueError("unsupported\nfeature type"), DataError),
        (ImportError("To support decoding images, please install 'Pillow'."), DataError),
    ],
)
def test_any_other_failure_to_load_is_one_line(error: Exception, kind: type[Exception]) -> None:
    failure = hub_source._load_failure(data_params(name="acme/chats"), error)
    assert isinstance(failure, kind)
    assert "acme/chats" in str(failure)
    assert "\n" not in str(failure)
