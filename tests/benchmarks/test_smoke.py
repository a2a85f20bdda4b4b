"""The benchmarks run, and their arithmetic is right. What they measure is not judged here."""

import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from stages.errors import SettingsError
from tests.benchmarks import data_chain, encoding, generation, generation_measure, lmsys, scale
from tests.benchmarks.contenders import MODELS, PEERS, make_model, missing
from tests.benchmarks.measure import measure
from tests.benchmarks.overhead import shares
from tests.benchmarks.parley import settle
from tests.benchmarks.results import Run, rows_of, table
from tests.benchmarks.shapes import SHAPES, Shape
from tests.builders import chats, write_conversations

TINY = Shape(32, 2, 2, 1, 64, 64, 16, 2, steps=2)


def made_up(*milliseconds: float, peak_mib: int = 100, gemm: float = 1e12) -> Run:
    return Run(list(milliseconds), peak_mib, 7, 2e6, gemm, "a machine")


@pytest.mark.parametrize("contender", ["parley-eager", "transformers-eager"])
def test_a_contender_is_measured(contender: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Minutes where bfloat16 is emulated.
    monkeypatch.setattr("stages.train.meter.peak_flops", lambda device, dtype: 1e12)
    run = measure(contender, TINY, TINY.steps, [])
    assert len(run.milliseconds) == TINY.steps
    assert min(run.milliseconds) > 0
    assert run.parameters == TINY.config().num_parameters()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MODELS)
def test_all_have_the_parameters_of_the_shape(name: str, shape: str) -> None:
    if missing(f"{name}-eager"):
        pytest.skip(f"{PEERS[name]} is not installed")
    this = SHAPES[shape]
    with torch.device("meta"):
        model = make_model(name, this)
    expected = this.config().num_parameters()
    if name == "nanogpt":
        d = this.d_model
        embeddings = (this.vocab_size + this.seq_len) * d
        expected = embeddings + this.num_layers * (12 * d * d + 13 * d) + 2 * d
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize(
    "contender", ["plain-fp32", "litgpt-fp32", "transformers-dynamic-fp32", "parley-torch-fp32"]
)
def test_generators_of_the_same_weights_make_the_same_greedy_tokens(
    contender: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if contender.startswith("litgpt") and missing("litgpt-eager"):
        pytest.skip("litgpt is not installed")
    monkeypatch.setattr(generation_measure, "PROMPT", 6)
    monkeypatch.setattr(generation_measure, "NEW", 8)
    monkeypatch.setattr(generation_measure, "GREEDY", 8)
    shape = replace(TINY, vocab_size=320)
    run = generation_measure.measure(contender, shape, 2, 1)
    assert len(run["seconds"]) == 1
    assert min(run["seconds"]) > 0
    model = generation_measure.make_model(shape)
    ids = generation_measure.prompts(shape, 2)
    expected = generation_measure.without_cache(model)(ids, 8, True).tolist()
    assert run["greedy"] == expected
    assert len(set(map(tuple, expected))) == 2


def test_the_table_of_generation_compares_with_the_best_peer_and_the_limit() -> None:
    results = {
        "plain-fp32": generation.Result([[1.0]], [[1, 2, 3, 4]]),
        "litgpt-fp32": generation.Result([[0.5, 0.5, 9.0], [0.4]], [[1, 2, 3, 4]]),
        "parley-native-bf16": generation.Result([[0.1]], [[1, 2, 9, 4]]),
    }
    lines = generation.table(results, 1, parameters=1000, speed=4e6).splitlines()
    assert lines[2].startswith("| plain-fp32 | 128 (128) | 0.45 |  | 100% |")
    assert lines[3] == "| litgpt-fp32 | 284 (320) | 1.00 |  | 100% |"
    assert lines[4] == "| parley-native-bf16 | 1,280 (1,280) | 4.50 | 64% of 2,000 | 50% |"


def test_the_table_compares_medians_of_rounds() -> None:
    runs = {
        "parley-compiled": [made_up(100, 100, 900, peak_mib=50), made_up(80, 90, 120, peak_mib=70)],
        "litgpt-eager": [made_up(300, 300), made_up(300, 300)],
        # The median of its rounds is 190; that of all its steps would be 200.
        "litgpt-compiled": [made_up(200, 200, 200, 200), made_up(180, gemm=3e12)],
    }
    ours, eager, best = rows_of(runs, tokens=1900)
    assert ours.median_ms == 95
    assert ours.minimum_ms == 80
    assert ours.tokens_per_second == 20_000
    assert ours.to_peer == 2
    assert ours.peak_mib == 60
    assert ours.share_of_gemm == pytest.approx(20_000 * 2e6 / 1e12)
    assert eager.to_peer == pytest.approx(190 / 300)
    assert (best.median_ms, best.tokens_per_second, best.to_peer) == (190, 10_000, 1)
    assert table(runs, tokens=1900).splitlines()[2] == (
        "| parley-compiled | 95.0 (80.0) | 20,000 | 2.00 | 4% | 60 | 7 |"
    )


def test_without_peers_there_is_no_ratio() -> None:
    (row,) = rows_of({"parley-eager": [made_up(100)]}, tokens=1900)
    assert row.to_peer is None
    assert "| 19,000 |  |" in str(row)


def test_shares_of_a_run_add_up() -> None:
    local: dict[str, Any] = {
        "seconds": 100.0,
        "data_ms": 1.0,
        "forward_ms": 89.0,
        "validation_seconds": 5.0,
        "save_seconds": 4.0,
    }
    assert shares(local, {"steps": 1000}) == pytest.approx(
        {"validation": 0.05, "saving": 0.04, "logging and the rest": 0.01}
    )


def test_encoding_compares_every_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_conversations(tmp_path, {"train": chats(30, 1), "validation": []})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["encoding", "--vocabulary", "400", "--rounds", "1"])
    with pytest.raises(SystemExit) as exit_:
        encoding.main()
    assert exit_.value.code == 0
    assert "the ids are the same." in capsys.readouterr().out


@pytest.fixture
def small_chats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest conversation of the corpus in LMSYS's shape has a thousandth of its tokens."""
    monkeypatch.setattr(lmsys, "LONGEST", 1_500)


def test_a_corpus_has_the_columns_and_the_lengths_of_lmsys(
    tmp_path: Path, small_chats: None
) -> None:
    characters = lmsys.write(tmp_path / "a", 400)
    rows = pyarrow.parquet.read_table(tmp_path / "a").to_pylist()
    lengths = [sum(len(m["content"]) for m in row["conversation"]) for row in rows]
    assert (len(rows), sum(lengths)) == (400, characters)
    assert statistics.median(lengths) / lmsys.CHARS_PER_TOKEN == pytest.approx(345, rel=0.2)
    assert list(rows[0]) == [
        *("conversation_id", "model", "conversation", "turn", "language", "openai_moderation"),
        "redacted",
    ]
    assert all(len(row["openai_moderation"]) == len(row["conversation"]) for row in rows)
    lmsys.write(tmp_path / "b", 400)
    assert pyarrow.parquet.read_table(tmp_path / "b").to_pylist() == rows


def test_data_stages_are_measured_as_the_corpus_grows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_chats: None
) -> None:
    options = ["--conversations", "60", "--vocab-size", "300"]
    monkeypatch.setattr("sys.argv", ["scale", *options])
    scale.main()
    shown = capsys.readouterr().out
    stages = re.findall(r"^\| 60 \| [\d,]+ \| (\w+) \| [\d.]+ \| [\d,]+ \| (\d+) \|$", shown, re.M)
    assert [stage for stage, _ in stages] == ["download", "tokenizer", "shards"]
    assert all(int(peak) > 10 for _, peak in stages)
    monkeypatch.setattr("sys.argv", ["data_chain", *options, "--rounds", "1"])
    data_chain.main()
    assert re.search(r"the usual way [\d.]+ s: [\d.]+ times as fast", capsys.readouterr().out)


def test_settings_stand_over_the_recipe_and_the_recipe_over_the_file() -> None:
    own = {"train": {"batch_size": 3, "optimizer": "adamw"}}
    model, train = settle(own, ["train.optimizer=muon", "train.lr=2e-3", "model.qk_norm=true"])
    assert (train.batch_size, train.optimizer, train.lr, model.qk_norm) == (3, "muon", 2e-3, True)
    with pytest.raises(SettingsError, match=r"train\.lr"):
        settle({}, ["train.lrr=1"])
    with pytest.raises(SettingsError, match="neither"):
        settle({}, ["lr=1"])
