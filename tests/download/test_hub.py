"""Data sets of the Hugging Face hub, through the real `datasets` and a hub of the tests' own."""

import errno
import gzip
import io
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from stages.download import hub as hub_source
from stages.download import transfer
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
from tests.hub import Asked, Fault, Hub, git_sha1, hub_environment, sha256

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


# What goes wrong with requests for the data set of that name, each of two files of three rows.
ATTEMPTS = len(transfer.DELAYS) + 1
EVER = 1000
BODY = r"resolve.*00001"
FAULTS: dict[str, list[Fault]] = {
    "commit-503": [Fault("", status=503, times=2)],
    "commit-429": [Fault("", status=429, headers={"Retry-After": "1000"}, times=2)],
    "commit-hangs": [Fault("", hang=True)],
    "commit-cut": [Fault("", sent=10)],
    "files-502": [Fault("paths-info", "POST", status=502, times=2)],
    "names-hang": [Fault("revision", hang=True)],
    "names-503": [Fault("tree", status=503, times=2)],
    "head-500": [Fault(BODY, "HEAD", status=500, times=2)],
    "body-503": [Fault(BODY, status=503, times=ATTEMPTS - 1)],
    "body-429": [Fault(BODY, status=429, headers={"RateLimit": '"api";r=0;t=300'})],
    "body-hangs": [Fault(BODY, hang=True)],
    "body-reset": [Fault(BODY, sent=1000, reset=True)],
    # More often than there are attempts, but each brings something.
    "body-cut": [Fault(BODY, sent=100, times=ATTEMPTS + 3)],
    "body-wrong": [Fault(BODY, wrong=True)],
    "small-wrong": [Fault("resolve.*jsonl", wrong=True)],
    "ever-503": [Fault("", status=503, times=EVER)],
    "body-ever-503": [Fault(BODY, status=503, times=EVER)],
    "body-ever-cut": [Fault(BODY, sent=0, times=EVER)],
    "body-ever-wrong": [Fault(BODY, wrong=True, times=EVER)],
    "small-ever-wrong": [Fault("resolve.*jsonl", wrong=True, times=EVER)],
    "interrupted": [Fault(BODY, sent=1000), Fault(BODY, status=503, times=ATTEMPTS)],
}


def shards(*counts: int) -> dict[str, bytes]:
    """A file of so many rows each."""
    return {
        f"data/train-{number:05}-of-{len(counts):05}.parquet": parquet_bytes(
            lmsys(count, f"file {number}")
        )
        for number, count in enumerate(counts)
    }


def arrow(rows: list[dict[str, Any]]) -> bytes:
    table, buffer = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def card(*configs: str) -> bytes:
    """A card that names a file for each configuration, as ``"name: file"``."""
    lines = (config.split(": ") for config in configs)
    listed = "".join(f"- config_name: {name}\n  data_files: {file}\n" for name, file in lines)
    return f"---\nconfigs:\n{listed}---\n".encode()


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
    hub.add("acme/three", shards(5, 5, 5))
    hub.add("acme/lines", {"train.json": jsonl(lmsys(3)) + b"{\n"})
    hub.add("acme/array", {"train.json.gz": gzip.compress(json.dumps(lmsys(3)).encode(), mtime=0)})
    hub.add("acme/object", {"train.json": json.dumps({"data": lmsys(3)}).encode()})
    hub.add("acme/arrow", {"train.arrow": arrow(lmsys(3))})
    hub.add("acme/tsv", {"train.tsv": b"question\tanswer\nTwo, please?\tHere.\n"})
    hub.add("acme/strange", {"train.tsv": b"a\tb\n1\t2\n"})
    # Dates that Python cannot hold, in a column that nothing reads.
    rows = pa.Table.from_pylist(lmsys(3))
    dates = pa.array([2**62] * 3, pa.timestamp("us"))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(rows.append_column("made", dates), buffer)
    hub.add("acme/unread", {"train.parquet": buffer.getvalue()})
    hub.add("acme/elsewhere", {"README.md": card("a: hf://datasets/acme/chats/data/*.parquet")})
    hub.add("acme/odd", {"data/train größe #1 %41?.jsonl": jsonl(lmsys(5))})
    hub.add("acme/half", {"train.json.gz": gzip.compress(jsonl(lmsys(9)), mtime=0)[:-9]})
    hub.add("acme/script", parquet(2), revision="refs/convert/parquet")
    hub.add("acme/script", {"script.py": b"", **parquet(3)})
    for name, faults in FAULTS.items():
        small = {"train.jsonl": jsonl(lmsys(3))}
        hub.add(f"acme/{name}", small if "small" in name else shards(3, 3))
        hub.faults += [replace(f, pattern=f"acme/{name}(/|$).*{f.pattern}") for f in faults]
    hub.tokens.add(OTHER)
    return hub.add(
        "acme/configs",
        {
            "README.md": card("en: en.parquet", "de: de.parquet"),
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
    "slice": Case({"name": "acme/three", "split": "train[2:4]"}, kept=2),
    "share": Case({"name": "acme/chats", "split": "train[:50%]"}, kept=10),
    "all": Case({"name": "acme/tested", "split": "all"}, kept=4),
    "subset": Case({"name": "acme/three", "subset": 6, "revision": "main"}, kept=6),
    "broken-line-allowed": Case({"name": "acme/broken", "max_bad_fraction": 0.5}, kept=1),
    "lines": Case({"name": "acme/lines", "max_bad_fraction": 0.5}, kept=3),
    "array": Case({"name": "acme/array"}, kept=3),
    "object": Case({"name": "acme/object"}, kept=3),
    "arrow": Case({"name": "acme/arrow", "filter": {"turn": 1}}, kept=3),
    "tsv": Case({"name": "acme/tsv"}, kept=1),
    "unread-column": Case({"name": "acme/unread"}, kept=3),
    "converted": Case({"name": "acme/script", "revision": "refs/convert/parquet"}, kept=2),
    "odd-names": Case({"name": "acme/odd"}, kept=5),
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
    "misspelt": Case({"name": "acme/chtas"}, code=4, parts=["data.name", "'acme/chtas'"]),
    "packaged-loader": Case({"name": "json"}, code=4, parts=["data.name", "'json'"]),
    "invalid-token": Case({"name": "acme/chats"}, token=WRONG, code=4, parts=["HF_TOKEN"]),
    "not-an-id": Case({"name": "a/b/c"}, code=2, parts=["data.name", "'a/b/c'"]),
    "spaces": Case({"name": "my chats"}, code=2, parts=["data.name", "'my chats'"]),
    "no-data": Case(
        {"name": "acme/aggregated-splits"}, code=3, parts=["acme/aggregated-splits", "data files"]
    ),
    "damaged": Case({"name": "acme/damaged"}, code=3, parts=["acme/damaged", "corrupted"]),
    "half": Case({"name": "acme/half"}, code=3, parts=["acme/half/train.json.gz", "gzip"]),
    "broken-line": Case(
        {"name": "acme/broken"},
        code=3,
        parts=["data.max_bad_fraction", "acme/broken/train.jsonl:2: not_json"],
    ),
    "file-elsewhere": Case({"name": "acme/elsewhere"}, code=3, parts=["acme/elsewhere", "belong"]),
    "script": Case({"name": "acme/script"}, code=3, parts=["script.py", "refs/convert/parquet"]),
    **{
        name: Case({"name": f"acme/{name}"}, kept=3 if "small" in name else 6)
        for name in FAULTS
        if "ever" not in name and name != "interrupted"
    },
    "ever-503": Case(
        {"name": "acme/ever-503"}, code=4, parts=["acme/ever-503", "503", f"{ATTEMPTS} attempts"]
    ),
    "body-ever-503": Case(
        {"name": "acme/body-ever-503"}, code=4, parts=["acme/body-ever-503", "503", "is kept"]
    ),
    "body-ever-cut": Case(
        {"name": "acme/body-ever-cut"}, code=4, parts=["acme/body-ever-cut", f"{ATTEMPTS} attempts"]
    ),
    "body-ever-wrong": Case(
        {"name": "acme/body-ever-wrong"},
        code=4,
        parts=["data/train-00001-of-00002.parquet of acme/body-ever-wrong", "other contents"],
    ),
    "small-ever-wrong": Case(
        {"name": "acme/small-ever-wrong"}, code=4, parts=["train.jsonl", "other contents"]
    ),
    "interrupted": Case({"name": "acme/interrupted"}, code=4, parts=["acme/interrupted", "503"]),
    "interrupted-again": Case({"name": "acme/interrupted"}, kept=6),
    "empty": Case({"name": "acme/empty"}, code=3, parts=["the source is empty"]),
}


@dataclass(frozen=True)
class World:
    """A hub, the caches that runs against it have filled, those runs and what they asked."""

    hub: Hub
    home: Path
    commit: str
    runs: dict[str, Ran]
    asked: list[Asked]

    def bodies(self, name: str) -> list[Asked]:
        """The requests for contents of files of acme/``name`` with rows."""
        start = f"/datasets/acme/{name}/resolve/"
        return [
            asked
            for asked in self.asked
            if asked.method == "GET"
            and asked.path.startswith(start)
            and asked.path.endswith((".parquet", ".jsonl"))
        ]

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
        yield World(hub, home, commit, runs, list(hub.asked))


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
    sent = {asked.token for asked in world.asked}
    assert sent == {None, READER, OTHER, WRONG}
    for ran in world.runs.values():
        assert not any("hf_of" in line for line in ran.lines)
        assert not any(b"hf_of" in content for content in ran.outputs().values())


def test_the_report_names_the_commit(world: World) -> None:
    for name in ("lmsys", "branch", "config"):
        source = world.runs[name].report["source"]
        files = world.hub.repositories[source["name"]].commits
        assert source["revision"] in files
    assert world.runs["config"].report["source"]["revision"] == world.commit
    assert world.runs["branch"].report["source"] != world.runs["lmsys"].report["source"]


def test_a_broken_line_is_named(world: World) -> None:
    assert world.runs["broken-line-allowed"].result().rejected == [
        {"where": "acme/broken/train.jsonl:2", "reason": "not_json"}
    ]


def test_rows_of_columns_that_no_format_has_are_malformed(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case = Case({"name": "acme/strange"})
    runs = run_all({"cold": case, "warm": case}, world.environment(), tmp_path_factory.mktemp)
    assert "bytes" in runs["cold"].lines[0]
    runs["warm"].failed(3, "acme/strange:train:1: unknown_columns")


# --- what is asked for ---


def test_only_files_of_the_split_are_downloaded(world: World) -> None:
    """Of a set whose splits were read one at a time before all."""
    paths = [asked.path.rpartition("/")[2] for asked in world.bodies("tested")]
    assert paths == ["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"]


def test_files_are_downloaded_as_their_rows_are_wanted(world: World) -> None:
    paths = [asked.path.rpartition("/")[2] for asked in world.bodies("three")]
    # A slice of the first, then six rows.
    assert paths == ["train-00000-of-00003.parquet", "train-00001-of-00003.parquet"]


def test_a_download_continues_where_it_was_cut(world: World) -> None:
    assert [asked.range for asked in world.bodies("body-cut")] == [
        None,
        None,
        *(f"bytes={100 * n}-" for n in range(1, ATTEMPTS + 4)),
    ]


def test_a_second_run_continues_the_download(world: World) -> None:
    first, *others = world.bodies("interrupted")
    assert first.path.endswith("00000-of-00002.parquet")
    assert {asked.path.rpartition("/")[2] for asked in others} == {"train-00001-of-00002.parquet"}
    assert [asked.range for asked in others] == [None, *["bytes=1000-"] * (ATTEMPTS + 1)]


def test_wrong_bytes_are_fetched_once_more_and_never_kept(world: World) -> None:
    for name, fetched in {"body-wrong": 3, "body-ever-wrong": 3, "small-ever-wrong": 2}.items():
        assert len(world.bodies(name)) == fetched
        for blob in (world.home / f"hub/datasets--acme--{name}/blobs").iterdir():
            assert blob.name in (sha256(blob.read_bytes()), git_sha1(blob.read_bytes()))


def pinned(world: World, name: str) -> Case:
    """The case of that name, at the commit that its report gives."""
    source = world.runs[name].report["source"]
    return Case({**CASES[name].changes, "revision": source["revision"]})


def test_a_commit_that_is_in_the_cache_asks_nothing(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = ["lmsys", "other-config", "branch", "alpaca", "splits", "arrow"]
    before = len(world.hub.asked)
    runs = run_all(
        {name: pinned(world, name) for name in names}, world.environment(), tmp_path_factory.mktemp
    )
    for name, ran in runs.items():
        assert ran.code == 0, ran.lines
        assert ran.outputs() == world.runs[name].outputs()
    assert world.hub.asked[before:] == []


def test_a_damaged_file_of_the_cache_is_fetched_anew(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (file,) = (world.home / "hub/datasets--acme--alpaca-parquet").glob("snapshots/*/*.parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    cases = {"alpaca-parquet": pinned(world, "alpaca-parquet")}
    offline = run_all(cases, world.environment(HF_HUB_OFFLINE="1"), tmp_path_factory.mktemp)
    offline["alpaca-parquet"].failed(4, "train.parquet of acme/alpaca-parquet", "damaged")
    ran = run_all(cases, world.environment(), tmp_path_factory.mktemp)["alpaca-parquet"]
    assert ran.outputs() == world.runs["alpaca-parquet"].outputs()


def test_a_redirect_to_another_host_goes_without_the_token(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with Hub() as storage, Hub() as hub:
        hub.storage = storage
        storage.faults.append(Fault("stored", sent=1000))
        storage.faults.append(Fault("stored", status=503))
        hub.add("acme/gated", parquet(3), gated=True, reader=READER)
        cases = {"gated": Case({"name": "acme/gated"}, token=READER)}
        environment = hub.environment(tmp_path_factory.mktemp("home"))
        (ran,) = run_all(cases, environment, tmp_path_factory.mktemp).values()
        assert ran.report["rows"]["kept"] == 3
        assert {asked.token for asked in hub.asked} == {READER}
        assert [(a.token, a.range) for a in storage.asked] == [
            (None, None),
            (None, "bytes=1000-"),
            (None, "bytes=1000-"),
        ]
        assert not any("secret" in line for line in ran.lines)


def test_a_signed_address_is_not_printed(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Hub() as storage, Hub() as hub:
        hub.storage = storage
        storage.faults.append(Fault("stored", status=403, times=EVER))
        hub.add("acme/chats", parquet(3))
        environment = hub.environment(tmp_path_factory.mktemp("home"))
        cases = {"chats": Case({"name": "acme/chats"})}
        (ran,) = run_all(cases, environment, tmp_path_factory.mktemp).values()
        ran.failed(4, "acme/chats", "403", f"{storage.other_url}/stored/")
        assert "secret" not in ran.lines[0]


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
    world: World, closed: str, tmp_path_factory: pytest.TempPathFactory, cached: bool
) -> None:
    """Whether or not something is in the cache: it may be another commit."""
    home = world.home if cached else tmp_path_factory.mktemp("home")
    environment = {**hub_environment(home), "HF_ENDPOINT": closed}
    cases = {"branch": Case({"name": "acme/chats", "revision": "v2"})}
    ran = run_all(cases, environment, tmp_path_factory.mktemp)["branch"]
    ran.failed(4, "acme/chats", f"{ATTEMPTS} attempts", "HF_HUB_OFFLINE=1")


def test_offline_the_cache_gives_the_commit_that_the_hub_named_last(
    world: World, closed: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    configs = {"name": "acme/configs", "config": "de"}
    kept = {
        "other-config": Case(configs),
        "branch": Case({"name": "acme/chats", "revision": "v2"}),
        "arrow": pinned(world, "arrow"),
    }
    lacking = {
        "revision": Case({**configs, "revision": "v2"}, parts=["data.revision", "'v2'"]),
        "commit": Case({**configs, "revision": "0" * 40}, parts=["acme/configs", "0" * 40]),
        "config": Case({**configs, "config": "fr"}, parts=["acme/configs", "'fr'"]),
        "file": Case({"name": "acme/three"}, parts=["train-00002-of-00003.parquet", "not in"]),
        "name": Case({"name": "acme/none"}, parts=["acme/none"]),
    }
    environment = world.environment(HF_HUB_OFFLINE="1", HF_ENDPOINT=closed)
    for name, ran in run_all({**kept, **lacking}, environment, tmp_path_factory.mktemp).items():
        if name in kept:
            assert ran.outputs() == world.runs[name].outputs(), ran.lines
        else:
            ran.failed(4, "HF_HUB_OFFLINE", *lacking[name].parts)


# --- patience ---


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", seconds.append)
    return seconds


def test_waits_grow_and_end(slept: list[float]) -> None:
    patience = transfer.Patience()
    for _ in range(ATTEMPTS - 1):
        patience.wait("no")
    assert slept == sorted(slept)
    assert slept == list(transfer.DELAYS)
    with pytest.raises(transfer.GaveUp, match=f"no .{ATTEMPTS} attempts; what has come is kept"):
        patience.wait("no")
    patience.renew()
    patience.wait("no")
    assert slept[-1] == transfer.DELAYS[0]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 1.0),
        ({"Retry-After": "17"}, 17.0),
        ({"Retry-After": "0"}, 1.0),
        ({"Retry-After": "86400"}, transfer.LONGEST_WAIT),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1.0),
        ({"Retry-After": "Wed, 21 Oct 9015 07:28:00 GMT"}, transfer.LONGEST_WAIT),
        ({"Retry-After": "soon"}, 1.0),
        ({"Retry-After": "²"}, 1.0),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api";r=3;t=55'}, 1.0),
    ],
)
def test_what_the_server_asks_for_is_waited_up_to_a_limit(
    slept: list[float],
    capsys: pytest.CaptureFixture[str],
    headers: dict[str, str],
    seconds: float,
) -> None:
    asked = transfer._asked_seconds(httpx2.Headers(headers, encoding="utf-8"))
    transfer.Patience().wait("the hub answers 429", asked)
    assert slept == [seconds]
    said = capsys.readouterr().err
    assert said == (
        f"download: the hub answers 429: next attempt in {seconds:.0f} s\n" if seconds > 5 else ""
    )


# --- failures that no server can bring about at will ---


def test_a_full_disk_keeps_its_own_exit_code() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    wrapped = RuntimeError("An error occurred while generating the dataset")
    wrapped.__cause__ = full
    assert hub_source._failure(data_params(name="acme/chats"), wrapped) is full


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
    failure = hub_source._failure(data_params(name="acme/chats"), error)
    assert isinstance(failure, kind)
    assert "acme/chats" in str(failure)
    assert "\n" not in str(failure)
