"""The commands beside training: the largest pass that fits, and what an update read."""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.tokenizer import ChatTokenizer
from stages.conversations import CONVERSATIONS, read_split
from stages.corpus import TokenStream, read_manifest
from stages.errors import SettingsError
from stages.scoring import IGNORED
from stages.train import batch, fit
from stages.train.data_order import DataOrder
from tests.builders import (
    build_data,
    call_stage,
    run_stage,
    stage_environment,
    tiny_params,
    write_params,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("world"))


def test_fit_halves_until_a_size_fits(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(world, tiny_params({"train.batch_size": 24}))
    tried: list[int] = []

    def attempt(size: int) -> dict[str, int] | None:
        tried.append(size)
        return {"peak_mib": 100, "tokens_per_second": 5000} if size <= 6 else None

    monkeypatch.setattr(fit, "attempt_apart", attempt)
    monkeypatch.chdir(world)
    fit.main()
    assert tried == [24, 12, 6]
    assert capsys.readouterr().out.rstrip().endswith("-S train.micro_batch_size=6")


def test_fit_gives_no_command_where_the_whole_batch_fits(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(world, tiny_params({"train.batch_size": 24}))
    monkeypatch.setattr(
        fit, "attempt_apart", lambda size: {"peak_mib": 100, "tokens_per_second": 5000}
    )
    monkeypatch.chdir(world)
    fit.main()
    said = capsys.readouterr().out
    assert "100 MiB" in said
    assert said.rstrip().endswith("train.micro_batch_size is not needed")


def test_fit_says_so_when_nothing_fits(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params(world, tiny_params({"train.batch_size": 12}))
    monkeypatch.setattr(fit, "attempt_apart", lambda size: None)
    monkeypatch.chdir(world)
    with pytest.raises(SettingsError, match="not even 3 of its sequences fit"):
        fit.main()


def test_an_attempt_measures_what_it_takes_and_one_too_large_does_not_fit(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    write_params(world, tiny_params())
    result = fit.attempt_apart(2)
    assert result is not None
    assert result["peak_mib"] > 50
    assert result["tokens_per_second"] > 0
    # 2^40 tokens of an update are more than any limit.
    write_params(world, tiny_params({"train.batch_size": 2**35}))
    assert fit.attempt_apart(2**35) is None


def test_batch_names_the_conversations_of_an_update(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(world, tiny_params())
    monkeypatch.chdir(world)
    monkeypatch.setattr("sys.argv", ["batch", "3"])
    batch.main()
    shown = [int(n) for n in re.findall(r"^ *(\d+)  ", capsys.readouterr().out, flags=re.M)]
    stream = TokenStream(read_manifest(), "train")
    order = DataOrder(stream, 32, 4, 1, assistant_only=False)
    assert shown == order.documents(2).tolist()
    # By brute force: the document of each token is the number of beginnings up to it.
    documents = np.cumsum(stream.read(0, len(stream)) == stream.roles.bos)
    read = [documents[start : start + 32] for start in order.starts(2)]
    assert shown == sorted(set(np.concatenate(read).tolist()))


def show(
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    changes: Mapping[str, Any] | None = None,
) -> str:
    """What ``python -m stages.train.batch`` prints."""
    write_params(world, tiny_params(changes))
    monkeypatch.chdir(world)
    monkeypatch.setattr("sys.argv", ["batch", *arguments])
    batch.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("loss_on", ["all", "assistant"])
def test_batch_marks_what_is_learnt_of_each_sequence(
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    loss_on: str,
) -> None:
    changes = {"train.loss_on": loss_on}
    shown = show(world, monkeypatch, capsys, ["2", "--tokens"], changes)
    order = DataOrder(TokenStream(read_manifest(), "train"), 32, 4, 1, loss_on == "assistant")
    tokenizer = ChatTokenizer.load("data/tokenizer")
    sequences = re.split(r"\nsequence \d+, tokens [\d,]+ to [\d,]+, ([\d,]+) learnt:\n", shown)[1:]
    counts, texts = sequences[::2], sequences[1::2]
    learnt = order.batch(1).labels != IGNORED
    assert [int(count) for count in counts] == learnt.sum(1).tolist()
    for start, text in zip(order.starts(1), texts, strict=True):
        tokens = order.stream.read(start, start + 33)
        plain = text.replace("{+", "").replace("+}", "")
        assert plain == tokenizer.decode(tokens.tolist(), control=True) + "\n"


@pytest.mark.parametrize("row", [1, 2, 7, -1])
def test_batch_shows_a_conversation_with_the_assistants_words_marked(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], row: int
) -> None:
    lines = list(read_split("train", world / CONVERSATIONS))
    number = row if row > 0 else len(lines)
    changes = {"train.loss_on": "assistant"}
    shown = show(world, monkeypatch, capsys, ["--row", str(number)], changes)
    expected = "<|bos|>"
    for message in lines[number - 1]:
        words = message["content"] + "<|end|>"
        words = "{+" + words + "+}" if message["role"] == "assistant" else words
        expected += f"<|{message['role']}|>{words}"
    assert shown.partition("\n")[2] == expected + "\n"


def test_batch_prints_nothing_that_steers_a_terminal() -> None:
    assert batch.printable("\x1b[2Jé\n\t\u202e😀\r") == "\\x1b[2Jé\n\t\\u202e😀\\r"


@pytest.mark.parametrize(
    "arguments",
    [["0"], ["-1"], ["x"], [], ["1", "--row", "1"], ["--row", "0"], ["--row", "x"], ["1", "--no"]],
)
def test_batch_wants_a_number_from_1(
    world: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setattr("sys.argv", ["batch", *arguments])
    with pytest.raises(SettingsError, match="number of a step"):
        batch.main()


def test_batch_knows_how_many_steps_there_are(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "step 6 reads" in show(world, monkeypatch, capsys, ["6"])
    with pytest.raises(SettingsError, match="step 7: with these params training has 6"):
        show(world, monkeypatch, capsys, ["7"])


def test_batch_ends_quietly_when_its_reader_does(world: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m stages.train.batch 1 --tokens | head -n 1",
        shell=True, cwd=world, env=stage_environment(world), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "step 1 reads" in done.stdout
    assert done.stderr == ""


def test_batch_knows_how_many_rows_there_are(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SettingsError, match=r"--row 1,000,000: .* has no line of this number"):
        show(world, monkeypatch, capsys, ["--row", "1000000"])


def test_out_of_memory_is_one_line_with_a_hint(world: Path) -> None:
    write_params(world, tiny_params({"model.d_ff": 2**33, "model.num_layers": 1}))
    code, stderr = run_stage("train", world)
    assert code == 2, stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert "out of memory" in line
    assert "python -m stages.train.fit" in line
    assert "Traceback" not in stderr
    write_params(world, tiny_params())
    call_stage("train", world)
