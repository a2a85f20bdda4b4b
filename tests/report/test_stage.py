"""The report says what the stages found, and is a function of what they left."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from stages.conversations import SPLITS
from stages.errors import DataError
from stages.files import sha256_file, write_json
from stages.report.page import percent, scaled, shown
from tests.builders import (
    build_data,
    call_stage,
    error_lines,
    exit_code,
    tiny_params,
    write_params,
)

MARKDOWN = MarkdownIt("commonmark").enable("table")


def write_data_metrics(root: Path, source: dict[str, str] | None = None) -> None:
    """metrics/data.json as the download stage writes it."""
    counts = {"conversations": 60, "messages": 200, "bytes": 5000}
    write_json(
        root / "metrics/data.json",
        {
            "source": source or {"name": "chitchat", "version": "0.9.0"},
            "rows": {"read": 99, "kept": 72, "malformed": 3, "dropped": {"single_sender": 24}},
            "messages_mended": {},
            "turns": {"mean": 3.5, "median": 3, "max": 5},
            "characters": {"mean": 70.0, "median": 60, "max": 99},
            "train": counts,
            "validation": counts,
        },
    )


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = build_data(tmp_path_factory.mktemp("evaluated"))
    for stage in ("train", "evaluate"):
        call_stage(stage, root)
    write_data_metrics(root)
    return root


@pytest.fixture
def copy(evaluated: Path, tmp_path: Path) -> Path:
    root = tmp_path / "copy"
    shutil.copytree(evaluated, root)
    return root


def report(root: Path) -> str:
    call_stage("report", root)
    return (root / "metrics/report.md").read_text(encoding="utf-8")


def cells(text: str) -> list[list[str]]:
    """The rows of all tables."""
    rows: list[list[str]] = []
    for token in MARKDOWN.parse(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level > 3:
            rows[-1].append(token.content)
    return rows


def test_it_says_what_was_measured(copy: Path) -> None:
    text = report(copy)
    measured = json.loads((copy / "metrics/eval.json").read_text(encoding="utf-8"))
    train = json.loads((copy / "metrics/train.json").read_text(encoding="utf-8"))
    rows = cells(text)
    assert ["bits per byte", str(measured["bits_per_byte"]),
            str(measured["assistant"]["bits_per_byte"])] in rows  # fmt: skip
    assert ["parameters", f"{train['parameters']:,}"] in rows
    assert ["compute", f"{train['flops']:.3g} FLOPs"] in rows
    assert f"`{sha256_file(copy / 'models/chat/model.safetensors')}`" in text
    for name, values in measured["baselines"].items():
        (row,) = [row for row in rows if row[0] == name]
        assert row[2] == str(values["bits_per_byte"])
    assert ["licence", "MIT"] in rows
    assert ["dropped: single sender", "24"] in rows
    assert "lr: 0.01" in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## Data",
        "## Training",
        "## Beside baselines",
        "## Where the loss is",
        "## Calibration",
        "## Replies",
        "## Contamination",
        "## Samples",
        "## Parameters",
    ]
    assert text.count("\n# ") == 0
    assert "Hello \\*there\\*!" in text
    # Rows of a table have as many cells as its head; a bar or name never breaks one.
    widths = [len(row) for row in rows]
    assert all(width > 1 for width in widths)


def test_the_same_inputs_give_the_same_page_elsewhere(copy: Path, evaluated: Path) -> None:
    assert report(copy) == report(evaluated)
    assert str(copy) not in report(copy)


def test_what_is_not_known_of_the_data_is_not_guessed(copy: Path) -> None:
    write_data_metrics(copy, {"name": "somebody/chats", "revision": "0" * 40})
    text = report(copy)
    assert "not known: see the source" in text
    assert "somebody/chats" in text
    assert f"`{'0' * 40}`" in text


def test_weights_that_began_elsewhere_are_not_from_scratch(copy: Path) -> None:
    assert "\nTrained from scratch on " in report(copy)
    (copy / "models/first").mkdir()
    write_params(copy, tiny_params({"train.init_from": "models/first"}))
    text = report(copy)
    assert "\nTrained further from the weights of `first` on " in text
    assert "scratch" not in text


def test_the_folders_of_a_machine_are_not_told(copy: Path) -> None:
    secret = copy / "home/me/private/chats.jsonl"
    secret.parent.mkdir(parents=True)
    secret.touch()
    write_data_metrics(copy, {"name": "local"})
    write_params(copy, tiny_params({"data.name": "local", "data.path": str(secret)}))
    text = report(copy)
    assert "private" not in text
    assert "path: chats.jsonl" in text


def test_names_of_the_data_do_nothing_on_the_page(copy: Path) -> None:
    file = copy / "a|b <img src=x> *c* `d`.jsonl"
    file.touch()
    write_data_metrics(copy, {"name": "local", "split": "x | `y"})
    metrics = json.loads((copy / "metrics/data.json").read_text(encoding="utf-8"))
    metrics["languages"] = {"<i>h</i>": 3, "`t` | *u*": 2}
    write_json(copy / "metrics/data.json", metrics)
    prompts = ["\u202eevil", "``` | <b>"]
    write_params(
        copy,
        tiny_params({"data.name": "local", "data.path": str(file), "evaluate.prompts": prompts}),
    )
    text = report(copy)
    assert "\u202e" not in text
    tokens = MARKDOWN.parse(text)
    seen = ["".join(child.content for child in token.children or []) for token in tokens]
    for value in (file.name, "x | `y", "<i>h</i> 3, `t` | *u* 2"):
        assert value in seen
    inside = [child.type for token in tokens for child in token.children or []]
    assert "html_inline" not in inside
    assert "em_open" not in inside


def test_plain_text_has_a_report_without_replies(tmp_path: Path) -> None:
    splits: Any = {
        split: [[{"role": "text", "content": f"{split} {n}: " + "words " * 20}] for n in range(9)]
        for split in SPLITS
    }
    root = build_data(tmp_path, {"train.max_steps": 1}, splits)
    for stage in ("train", "evaluate"):
        call_stage(stage, root)
    write_data_metrics(root)
    text = report(root)
    assert "no reply to continue" in text
    assert [row[0] for row in cells(text) if row[0].startswith("loss,")] == ["loss, nats a token"]


def without(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def garble(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).write_text("{", encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without("metrics/eval.json"), "metrics/eval.json"),
        (garble("metrics/train.json"), "metrics/train.json"),
        (without("metrics/turns.csv"), "metrics/turns.csv"),
        (without("models/chat/model.safetensors"), "models/chat/model.safetensors"),
    ],
)
def test_a_missing_input_is_one_line_that_names_it(
    copy: Path, change: Callable[[Path], None], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "metrics/report.md").unlink(missing_ok=True)
    change(copy)
    with pytest.raises(DataError, match=named):
        call_stage("report", copy)
    assert exit_code("report", copy) == 3
    (line,) = error_lines(capsys.readouterr().err)
    assert "dvc repro" in line
    assert not (copy / "metrics/report.md").exists()


def test_numbers_are_shown_for_people() -> None:
    assert scaled(1_115_008) == "1.12 million"
    assert scaled(999) == "999"
    assert scaled(999_950_000) == "1 billion"
    assert percent(0.12345) == "12.3%"
    assert percent(None) is None
    assert [shown(value) for value in (None, "", 1234567, 1.5, "a|b", True)] == [
        "–", "–", "1,234,567", "1.5", "a\\|b", "true",
    ]  # fmt: skip
