"""The stage as it is run: the embedded chats, local files, what it leaves and how it fails."""

import hashlib
import importlib.resources
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.conversations import CONVERSATIONS
from stages.download import __main__ as stage
from stages.download import sources
from stages.download.params import EMBEDDED_MARKER
from stages.download.rows import BadRow
from stages.errors import AccessError, DataError
from tests.download.conftest import (
    Ran,
    chat,
    chats,
    data_params,
    jsonl,
    read_collected,
    run_stage,
    stage_environment,
    workspace,
)

# --- the embedded chats ---


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run of the stage on the embedded chats."""
    return run_stage(workspace(tmp_path_factory.mktemp("embedded"), name="chitchat"))


def test_the_embedded_chats_are_the_human_ones_of_two(embedded: Ran) -> None:
    assert embedded.code == 0, embedded.lines
    assert embedded.report["source"] == {"name": "chitchat", "version": "0.9.0"}
    rows = embedded.report["rows"]
    assert (rows["read"], rows["malformed"]) == (7168, 0)
    assert rows["dropped"]["single_sender"] == 3150
    assert rows["read"] == rows["kept"] + sum(rows["dropped"].values())
    result = embedded.result()
    assert len(result.all) == rows["kept"]
    assert all(conversation[0]["role"] == "user" for conversation in result.all)
    assert {len({m["role"] for m in conversation}) for conversation in result.all} == {2}


def test_the_messages_of_an_embedded_turn_are_joined(embedded: Ran) -> None:
    """Against the package's own file, read here."""
    source = Path(str(importlib.resources.files("chitchat_dataset") / "dataset.json"))
    wanted: Counter[str] = Counter()
    for chat_ in json.loads(source.read_bytes()).values():
        turns = [
            "\n".join(m["text"] for m in turn if m["text"].strip()).strip()
            for turn in chat_["messages"]
        ]
        wanted["\n".join(turn for turn in turns if turn)] += 1
    said = [
        "\n".join(message["content"] for message in conversation)
        for conversation in embedded.result().all
    ]
    assert not Counter(said) - wanted


def test_the_embedded_chats_are_those_of_the_marker(tmp_path: Path) -> None:
    folder = workspace(tmp_path, name="chitchat")
    marker = json.loads((folder / EMBEDDED_MARKER).read_bytes())
    marker["sha256"] = hashlib.sha256(b"another version").hexdigest()
    (folder / EMBEDDED_MARKER).write_text(json.dumps(marker), encoding="utf-8")
    run_stage(folder).failed(3, marker["package"], f"{marker['package']}=={marker['version']}")


@pytest.mark.parametrize("missing", ["package", "file"])
def test_a_missing_package_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "package":
        monkeypatch.setitem(sys.modules, "chitchat_dataset", None)
    else:
        monkeypatch.setattr(importlib.resources, "files", lambda name: tmp_path)
    monkeypatch.chdir(workspace(tmp_path))
    with pytest.raises(AccessError, match=r"chitchat-dataset is not installed.*pip install") as at:
        next(sources.open_source(data_params(name="chitchat")))
    assert at.value.exit_code == 4


def test_an_embedded_chat_that_is_not_what_it_was_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dataset.json").write_bytes(b"{}")
    monkeypatch.setattr(importlib.resources, "files", lambda name: tmp_path)
    monkeypatch.chdir(workspace(tmp_path))
    with pytest.raises(DataError, match="chitchat-dataset"):
        next(sources.open_source(data_params(name="chitchat")))


# --- what a run leaves ---

LINES: list[object] = [
    *chats(40),
    {"messages": chat("Grüße 🙂\u2028", "Bitte.")},
    {"messages": chat("alone")},
    {"messages": None},
]


def corpus(folder: Path, *, name: str = "größe.jsonl") -> str:
    """Writes the corpus of these tests outside of the stage's own folder, and names it."""
    (folder / name).write_bytes(jsonl(LINES))
    return str(folder / name)


def local(folder: Path, file: str, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    return workspace(folder, **{"name": "local", "path": file, "max_bad_fraction": 0.1, **changes})


def test_a_run_writes_both_splits_a_manifest_and_the_report(tmp_path: Path) -> None:
    ran = run_stage(local(tmp_path / "run", corpus(tmp_path)))
    assert ran.code == 0, ran.lines
    assert sorted(ran.outputs()) == [
        "data/conversations/manifest.json",
        "data/conversations/rejected.jsonl",
        "data/conversations/train.jsonl",
        "data/conversations/validation.jsonl",
        "metrics/data.json",
    ]
    result = ran.result()
    assert result.report["source"] == {"name": "local"}
    for split in ("train", "validation"):
        written = (ran.conversations / f"{split}.jsonl").read_bytes()
        assert result.manifest["splits"][split] == {
            **result.report[split],
            "sha256": hashlib.sha256(written).hexdigest(),
        }
    assert result.rejected == [{"where": "größe.jsonl:43", "reason": "no_messages"}]
    assert result.report["rows"]["dropped"] == {"min_turns": 1, "no_messages": 1}
    assert any("41 conversations" in line or "43 rows" in line for line in ran.lines)


def test_another_run_gives_the_same_bytes_on_any_machine(tmp_path: Path) -> None:
    path = corpus(tmp_path, name="rows.jsonl")
    environments = [
        {"PYTHONHASHSEED": "1"},
        {"PYTHONHASHSEED": "2", "LC_ALL": "C", "TZ": "Asia/Tokyo"},
        # Without the C locale's own coercion to UTF-8.
        {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ]
    runs = [
        run_stage(local(tmp_path / str(number), path), environment)
        for number, environment in enumerate(environments)
    ]
    assert [ran.code for ran in runs] == [0, 0, 0]
    assert runs[0].outputs() == runs[1].outputs() == runs[2].outputs()


def test_the_embedded_chats_give_the_same_bytes_again(embedded: Ran, tmp_path: Path) -> None:
    folder = workspace(tmp_path, name="chitchat")
    again = run_stage(folder, {"PYTHONHASHSEED": "7", "LC_ALL": "C"})
    assert again.outputs() == embedded.outputs()


@pytest.mark.parametrize(
    ("changes", "content", "code", "parts"),
    [
        ({"min_turnes": 2}, b"", 2, ["data.min_turnes", "data.min_turns"]),
        ({"val_fraction": 1.5}, b"", 2, ["data.val_fraction"]),
        ({"path": "nowhere.jsonl"}, b"", 2, ["data.path", "nowhere.jsonl"]),
        ({"filter": {"lang": "en"}}, jsonl(LINES), 2, ["data.filter", "lang"]),
        ({"max_bad_fraction": 0.0}, jsonl(LINES), 3, ["data.max_bad_fraction", "a.jsonl:43"]),
        ({}, b"{", 3, ["a.jsonl:1", "not_json"]),
        ({}, b"", 3, ["the source is empty"]),
        ({"subset": 5, "min_turns": 9}, jsonl(chats(9)), 3, ["9 min_turns"]),
    ],
)
def test_a_failure_is_one_line_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], content: bytes, code: int, parts: list[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    folder = local(tmp_path / "run", str(tmp_path / "a.jsonl"), **changes)
    run_stage(folder).failed(code, *parts)


def test_a_failure_of_reading_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    folder = local(tmp_path / "run", str(tmp_path / "a.parquet"))
    run_stage(folder).failed(3, "a.parquet")


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a finished run, where the stage's ``main`` can be called."""
    folder = local(tmp_path / "run", corpus(tmp_path))
    monkeypatch.chdir(folder)
    stage.main()
    return folder


def _outputs(folder: Path) -> dict[str, bytes]:
    return Ran(0, [], folder).outputs()


def test_a_failed_run_leaves_the_last_one_as_it_was(inside: Path, tmp_path: Path) -> None:
    before = _outputs(inside)
    local(inside, corpus(tmp_path), max_bad_fraction=0.0)
    with pytest.raises(DataError):
        stage.main()
    assert _outputs(inside) == before
    assert not list(inside.rglob(".*.partial"))


def test_the_last_run_stands_until_the_new_one_is_whole(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _outputs(inside)
    seen: list[dict[str, bytes]] = []

    def watched(*_: object) -> Iterator[tuple[str, BadRow | dict[str, Any]]]:
        for number, row in enumerate(chats(20)):
            seen.append({k: v for k, v in _outputs(inside).items() if ".partial" not in k})
            yield f"rows:{number}", row

    monkeypatch.setattr(sources, "read_path", watched)
    stage.main()
    assert seen == [before] * 20
    after = _outputs(inside)
    assert after != before
    assert not any(".partial" in name for name in after)
    report = json.loads(after["metrics/data.json"])
    assert len(read_collected(inside / CONVERSATIONS, report).all) == 20


def test_what_a_killed_run_left_is_cleared_away(inside: Path) -> None:
    before = _outputs(inside)
    left = CONVERSATIONS.with_name(f".{CONVERSATIONS.name}.partial")
    left.mkdir()
    (left / "stale.jsonl").write_bytes(b"half a li")
    stage.main()
    assert _outputs(inside) == before


# The stage, whose source is a pipe.
HELD = """
import sys
import stages.download.__main__ as stage
from stages.errors import run
pipe = sys.argv.pop()  # a stage takes no options
stage.open_source = lambda params: open(pipe)
run("download", stage.main)
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_a_run_that_is_told_to_stop_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM while it reads: a pipe that nobody ends holds it there."""
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    (tmp_path / "a.jsonl").touch()
    folder = local(tmp_path / "run", str(tmp_path / "a.jsonl"))
    running = subprocess.Popen(
        [sys.executable, "-P", "-c", HELD, str(pipe)],
        cwd=folder,
        env=stage_environment({}),
        stderr=subprocess.PIPE,
    )
    with pipe.open("wb"):  # returns when the stage has opened it to read
        running.send_signal(signal.SIGTERM)
        _, told = running.communicate(timeout=60)
    Ran(running.returncode, told.decode().splitlines(), folder).failed(143, "terminated")
