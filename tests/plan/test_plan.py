"""The plan says before a run what the run then takes."""

import copy
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import ByteLevelBPETokenizer

from model.config import ModelConfig
from model.saving import save_model
from model.template import CONTROL_TOKENS
from model.transformer import Transformer
from stages.errors import SettingsError
from stages.plan.__main__ import Plan, options, reckon, show_gpu
from stages.plan.burst import measure
from stages.plan.cautions import usual_lr
from stages.plan.memory import Memory, _Alive, estimate
from stages.plan.settings import overridden, settle
from stages.plan.sizes import optimizer_bytes, parameters
from stages.runtime import RuntimeParams
from stages.train import loss, muon
from stages.train.eager import train_eagerly
from stages.train.fit import attempt_apart
from stages.train.loss import TrainingLoss
from stages.train.optimizer import OPTIMIZERS, make_optimizers
from tests.builders import (
    ROOT,
    WORDS,
    build_data,
    error_lines,
    run_stage,
    stage_environment,
    tiny_model,
    tiny_params,
    train_params,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny shards, and a dvc.lock that says they are of these settings."""
    root = build_data(tmp_path_factory.mktemp("plan"))
    for name in ("stages/tokenizer/learn.py", "stages/download/chitchat.json", "model/init.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    values = tiny_params()
    stages = {
        stage: {"params": {"params.yaml": {section: values[section]}}}
        for stage, section in (
            ("download", "data"),
            ("tokenizer", "tokenizer"),
            ("shards", "shards"),
        )
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    return root


def plan(
    world: Path, monkeypatch: pytest.MonkeyPatch, tokens: int | None = None, **changes: Any
) -> Plan:
    """Of TINY settings with changes, whose names have ``__`` for the dot."""
    monkeypatch.chdir(world)
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return reckon(settle(tiny_params(dotted)), tokens)


SHAPES = [{}, {"tie_embeddings": False}, {"qk_norm": True, "kv_heads": 2}, {"num_layers": 5}]


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_by_part_are_those_of_the_network(shape: dict[str, Any]) -> None:
    model = tiny_model(**shape)
    of = parameters(model.config)
    assert of.total == model.num_parameters()
    count = {name: p.numel() for name, p in model.named_parameters()}
    assert of.embedding == count["embedding.weight"]
    assert of.feed_forward == sum(n for name, n in count.items() if ".feed_forward." in name)
    assert of.norms == sum(n for name, n in count.items() if "norm" in name)
    assert of.head == (0 if model.config.tie_embeddings else of.embedding)
    blocks = [p for name, p in model.named_parameters() if "blocks." in name and p.ndim == 2]
    assert of.neurons == sum(len(matrix) for matrix in blocks)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stays_in_memory_is_what_training_keeps(optimizer: str, dtype: torch.dtype) -> None:
    model, train = tiny_model(), train_params(optimizer=optimizer, mixed_precision=False)
    optimizers = make_optimizers(model, train)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for one in optimizers:
        one.step()
    held = sum(
        value.numel() * value.element_size()
        for one in optimizers
        for state in one.state.values()
        for value in state.values()
        if value.numel() > 1  # not its count of steps
    )
    assert held == optimizer_bytes(parameters(model.config), train)
    runtime = RuntimeParams(**tiny_params()["runtime"])
    memory = estimate(model.config, train, runtime, dtype, 1)
    assert memory.weights == memory.gradients == 4 * model.num_parameters()
    # Besides, the rotary tables and the counts of steps.
    assert held <= memory.optimizer <= held + 4096
    assert memory.activations > 0


def test_activations_grow_with_a_pass_and_shrink_with_checkpointing() -> None:
    runtime = RuntimeParams(**tiny_params()["runtime"])
    config = ModelConfig(200, 64, 4, 4, 2, 128, 64)

    def activations(**changes: Any) -> int:
        train = train_params(batch_size=16, grad_accum_steps=1, **changes)
        return estimate(config, train, runtime, torch.float32, 1).activations

    whole = activations()
    assert activations(micro_batch_size=4) < 0.5 * whole
    selective, full = (activations(activation_checkpointing=how) for how in ("selective", "full"))
    assert full < selective < whole
    half = estimate(config, train_params(batch_size=16), runtime, torch.float32, 2)
    assert half.activations < estimate(
        config, train_params(batch_size=16), runtime, torch.float32, 1
    ).activations * 1.01  # fmt: skip


def test_what_an_optimiser_takes_in_its_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 2**28

    class Greedy(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            torch.zeros(taken, dtype=torch.uint8)

    monkeypatch.setitem(
        OPTIMIZERS, "adamw", lambda model, params: [Greedy(model.parameters(), params.lr)]
    )
    runtime = RuntimeParams(**tiny_params()["runtime"])
    config = ModelConfig(200, 64, 4, 4, 2, 128, 64)
    memory = estimate(config, train_params(), runtime, torch.float32, 1)
    assert taken <= memory.stepping < taken + 4096
    assert memory.peak == memory.weights + memory.optimizer + memory.gradients + memory.stepping


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_fsdp_divides_what_stays_and_gathers_a_block(
    optimizer: str, dtype: torch.dtype, width: int
) -> None:
    """Its figures are a process's own; DDP's are those of one process alone."""
    config = ModelConfig(256, 128, 6, 4, 2, 256, 64)

    def of(processes: int, parallel: str, **changes: Any) -> Memory:
        train = train_params(optimizer=optimizer, batch_size=8, micro_batch_size=1, **changes)
        runtime = RuntimeParams(**tiny_params({"runtime.parallel": parallel})["runtime"])
        return estimate(config, train, runtime, dtype, processes)

    alone, divided = of(1, "fsdp"), of(4, "fsdp")
    assert of(4, "ddp") == alone
    for part in ("weights", "gradients", "optimizer"):
        # The rotary tables and the counts of steps are whole everywhere.
        assert getattr(divided, part) == pytest.approx(getattr(alone, part) / 4, abs=40_000)
    # No more than two blocks are whole at a time, one of them with its gradients.
    block = parameters(config).blocks // config.num_layers
    in_blocks = width * parameters(config).blocks if dtype == torch.bfloat16 else 0
    gathered = divided.activations - (alone.activations - in_blocks)
    assert width * block < gathered < (2 * width + 8) * block
    assert divided.stepping >= 0
    assert divided.peak < 0.75 * alone.peak
    assert of(2, "fsdp").peak > divided.peak > of(8, "fsdp").peak
    assert not torch.distributed.is_initialized()


def test_no_contents_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 70 billion parameters is reckoned in a moment, in no memory."""
    config = ModelConfig(32_000, 8192, 2, 64, 8, 28_672, 2048)
    runtime = RuntimeParams(**tiny_params()["runtime"])
    memory = estimate(config, train_params(batch_size=64), runtime, torch.bfloat16, 1)
    assert memory.peak > 16 * config.num_parameters()


@pytest.mark.parametrize(
    ("measured", "config", "changes"),
    [
        (247, ModelConfig(4096, 128, 3, 2, 1, 384, 256), {"optimizer": "muon"}),
        (
            214,
            ModelConfig(4096, 128, 3, 2, 1, 384, 256),
            {"optimizer": "muon", "activation_checkpointing": "selective"},
        ),
        (
            159,
            ModelConfig(4096, 128, 3, 2, 1, 384, 256),
            {"optimizer": "muon", "micro_batch_size": 4},
        ),
        (7108, ModelConfig(4096, 768, 12, 12, 4, 2048, 1024), {"optimizer": "muon"}),
        (7015, ModelConfig(4096, 768, 12, 12, 4, 2048, 1024), {"document_mask": False}),
        (
            2437,
            ModelConfig(4096, 768, 12, 12, 4, 2048, 1024),
            {
                "optimizer": "muon",
                "batch_size": 32,
                "document_mask": False,
                "activation_checkpointing": "full",
            },
        ),
        (6784, ModelConfig(16384, 512, 8, 8, 2, 1408, 1024), {"batch_size": 32}),
    ],
)
def test_a_gpu_takes_what_was_measured_there(
    measured: int, config: ModelConfig, changes: dict[str, Any]
) -> None:
    """MiB that training took of an H100, uncompiled in bfloat16 (torch 2.11)."""
    usual = {"batch_size": 16, "grad_accum_steps": 1, "document_mask": True}
    train = train_params(**{**usual, **changes, "eval_tokens": 32_768})
    runtime = RuntimeParams(**tiny_params()["runtime"])
    sizes = copy.deepcopy([loss.LOGITS_PER_PIECE, muon.TOGETHER])
    peak = estimate(config, train, runtime, torch.bfloat16, 1, "cuda").peak
    assert peak / 2**20 == pytest.approx(measured, rel=0.05)
    assert sizes == [loss.LOGITS_PER_PIECE, muon.TOGETHER]


def test_steps_and_epochs_are_those_of_training(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((world / "data/shards/manifest.json").read_text())
    tokens = manifest["splits"]["train"]["tokens"]
    of_epochs = plan(world, monkeypatch, train__max_steps=None, train__epochs=2.0)
    assert of_epochs.data.train_tokens == tokens
    assert of_epochs.data.documents == 60
    assert of_epochs.steps == math.ceil(2 * ((tokens - 1) // 32) / 4)
    assert plan(world, monkeypatch, train__max_steps=7).tokens == 7 * 4 * 32
    bodies = (world / "data/conversations/train.jsonl").read_text().splitlines()
    assert len(bodies) == 60
    assert plan(world, monkeypatch, model__seq_len=2).data.cut == 1.0
    assert plan(world, monkeypatch, model__seq_len=1000).data.cut == 0.0


def test_other_data_is_estimated_from_the_report_or_asked_for(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = {"bytes": 40_000, "messages": 300, "conversations": 60}
    (world / "metrics").mkdir(exist_ok=True)
    (world / "metrics/data.json").write_text(json.dumps({"train": report, "validation": report}))
    other = plan(world, monkeypatch, tokenizer__vocab_size=4096)
    assert other.data.train_tokens == round(40_000 / 3.75 + 2 * 300 + 60)
    assert "estimated" in other.data.source
    with pytest.raises(SettingsError, match=r"run `dvc repro shards`.*--tokens"):
        plan(world, monkeypatch, data__min_turns=5)
    given = plan(world, monkeypatch, tokens=10**6, data__min_turns=5)
    assert given.data.train_tokens == 10**6
    with pytest.raises(SettingsError, match=r"model\.seq_len 50,000 needs 50,001"):
        plan(world, monkeypatch, model__seq_len=50_000)


def save_start(folder: Path, tokenizer: Path, head_dim: int) -> Transformer:
    """A model folder of TINY's shape but for the width of its heads."""
    config = ModelConfig(300, 16, 2, 2, 1, 32, 32, head_dim=head_dim)
    model = Transformer(config)
    save_model(folder, config, model.state_dict(), tokenizer, "")
    return model


def test_a_model_folder_says_how_wide_its_heads_are(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "start"
    model = save_start(folder, world / "data/tokenizer", 24)
    of = plan(world, monkeypatch, train__init_from=str(folder))
    assert of.parameters.total == model.num_parameters() > plan(world, monkeypatch).parameters.total
    assert of.flops > plan(world, monkeypatch).flops
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert measure(of.settings.values, of.data.vocab_size).step_seconds > 0
    with pytest.raises(SettingsError, match=r"has 300 ids, that of the data 290: set tokenizer"):
        plan(
            world, monkeypatch, 10**6, train__init_from=str(folder), tokenizer__vocab_size=290
        )  # fmt: skip


def test_a_tokenizer_from_elsewhere_has_its_own_number_of_ids(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = ByteLevelBPETokenizer()
    theirs.train_from_iterator(WORDS, vocab_size=280, min_frequency=1, show_progress=False)
    theirs.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        of = plan(world, monkeypatch, 10**6, tokenizer__path=str(path))
        assert of.data.vocab_size == theirs.get_vocab_size() + len(CONTROL_TOKENS) != 300
        assert of.parameters.embedding == of.data.vocab_size * 16
    report = {"bytes": 40_000, "messages": 300, "conversations": 60}
    (world / "metrics").mkdir(exist_ok=True)
    (world / "metrics/data.json").write_text(json.dumps({"train": report, "validation": report}))
    estimated = plan(world, monkeypatch, tokenizer__path=str(tmp_path))
    assert "estimated" in estimated.data.source
    assert estimated.data.vocab_size == of.data.vocab_size


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train__max_steps": 1}, "little data for the model"),
        ({"train__max_steps": 2000}, "beyond 4 the same data"),
        ({"model__tie_embeddings": False}, "vocabulary large for the model"),
        ({}, "vocabulary large for the data"),
        ({"train__lr": 1.0}, "train.lr 1 is far from"),
        ({"train__lr": 1e-6}, "train.lr 1e-06 is far from"),
        ({"model__seq_len": 8}, "longer than model.seq_len 8"),
        ({"train__warmup_steps": 6}, "all 6 steps are warm-up"),
        ({"train__eval_interval": 7}, "is never reached in 6 steps"),
        ({"train__batch_size": 500}, "more than an epoch"),
    ],
)
def test_it_warns(
    changes: dict[str, Any], says: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [line for line in plan(world, monkeypatch, **changes).cautions if says in line]
    sound = plan(
        world, monkeypatch, tokens=2 * 10**6, train__max_steps=4000, train__lr=5e-3,
        model__num_layers=8, model__d_ff=128,
    )  # fmt: skip
    assert [line for line in sound.cautions if says in line] == []


def test_the_usual_learning_rate_is_near_what_experiments_found() -> None:
    # The committed default, and what tests/benchmarks found for nanoGPT's recipe's shape.
    assert usual_lr(3.96e13, 2048) == pytest.approx(4e-3, rel=0.35)
    assert usual_lr(1e14, 4096) == pytest.approx(4e-3, rel=0.35)


def test_overrides_are_those_of_dvc(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    before = Path("params.yaml").read_bytes()
    values = overridden(
        ["train.lr=1e-5", "++data.filter.language=English", "train.betas=[0.8,0.9]"]
    )
    assert values["train"]["lr"] == 1e-5
    assert values["data"]["filter"] == {"language": "English"}
    assert values["train"]["betas"] == [0.8, 0.9]
    assert Path("params.yaml").read_bytes() == before
    for wrong in (["train.lrr=1"], ["train.lr=1e-3", "train.lrr=1", "seed=2"]):
        with pytest.raises(SettingsError, match=r"unknown key 'train\.lrr': did you mean"):
            overridden(wrong)
    with pytest.raises(SettingsError, match=r"use \+data\.filter\.language=English"):
        overridden(["data.filter.language=English"])  # DVC would refuse it, rightly
    with pytest.raises(SettingsError, match="-S nonsense"):
        overridden(["nonsense"])


def own_params(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """The committed params.yaml, changed as DVC does, in ``folder``."""
    from dvc.utils.hydra import apply_overrides

    monkeypatch.chdir(folder)
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    apply_overrides("params.yaml", list(overrides))


def test_a_mapping_that_changes_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_params(tmp_path, monkeypatch)
    assert overridden(["data.filter={}"])["data"]["filter"] == {}
    added = ["+data.filter.language=English", "data.filter={language: French}"]
    assert overridden(added)["data"]["filter"] == {"language": "French"}
    with pytest.raises(SettingsError, match=r"{}: changes nothing.*leave out the -S or"):
        overridden([*added, "data.filter={}"])
    own_params(tmp_path, monkeypatch, *added, "+data.filter.model=x")
    for same in ("{}", "{language: French}", "{}"):
        with pytest.raises(SettingsError, match=r"DVC merges.*edit data\.filter in params\.yaml"):
            overridden(["train.lr=1e-3", f"++data.filter={same}"])
    both = overridden(["data.filter={language: French, model: x}"])
    assert both["data"]["filter"] == {"language": "French", "model": "x"}
    assert overridden(["train.lr=8e-3"])["train"]["lr"] == 8e-3


def test_a_file_that_dvc_would_break_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_params(tmp_path, monkeypatch, "+data.filter.language=English")
    with pytest.raises(SettingsError, match=r"-S ~data\.filter\.language: DVC would write"):
        overridden(["~data.filter.language"])


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (["--gpu-tflops", "1", "--mfu", "2"], "--mfu 2 is not between"),
        (["--gpu-tflops", "1", "--gpus", "0"], "--gpus 0: one is the least"),
        (["--gpus", "2"], "--gpus 2 needs --gpu-tflops"),
        (["--mfu", "0.3"], "--mfu 0.3 needs --gpu-tflops"),
        (["--tokens", "-1"], "--tokens -1 is not positive"),
        (["--what"], "--what"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(bad: list[str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        options(bad)


def planned(world: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m stages.plan --no-measure`` with ``arguments``."""
    return subprocess.run(
        [sys.executable, "-m", "stages.plan", "--no-measure", *arguments],
        cwd=world,
        env=stage_environment(world),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_reader_that_goes_is_no_failure(world: Path) -> None:
    """As in `python -m stages.plan | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "stages.plan", "--no-measure"],
            cwd=world,
            env=stage_environment(world),
            stdout=gone,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == -signal.SIGPIPE
    assert done.stderr == b""


def test_several_gpus_hold_their_shares(world: Path) -> None:
    """The lines say of how many, and the memory is each one's."""
    done = planned(world, "--gpu-tflops", "100", "--gpus", "2", "-S", "runtime.parallel=fsdp")
    assert done.returncode == 0, done.stderr
    (gpu,) = [line for line in done.stdout.splitlines() if line.startswith("GPU")]
    assert " seconds on 2 GPUs of 100 TFLOP/s at " in gpu
    (memory,) = [line for line in done.stdout.splitlines() if line.startswith("memory")]
    assert "of tensors in each of 2 processes (fsdp)" in memory
    assert "activations and gathered weights" in memory
    assert "in the optimiser's step" in memory


@pytest.mark.parametrize(
    ("tflops", "expected"),
    [
        (1e-5, r"80 seconds on 2 GPUs of 0 TFLOP/s at 40% MFU \(estimated"),
        (1e5, r"1 seconds on 2 GPUs of 100,000 TFLOP/s at 10 ms a step, which a small model takes"),
    ],
)
def test_a_gpu_takes_as_long_as_its_work_or_its_launches(
    tflops: float,
    expected: str,
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    planned_ = plan(world, monkeypatch, train__max_steps=100)
    show_gpu(replace(planned_, flops=6.4e8), tflops, 0.4, 2)
    assert re.match(rf"GPU +{expected}", capsys.readouterr().out)


def test_the_command_tells_all_and_changes_nothing(world: Path) -> None:
    before = sorted(path for path in world.rglob("*") if path.is_file())
    done = planned(world, "--gpu-tflops", "989")
    assert done.returncode == 0, done.stderr
    for word in ("parameters", "embedding", "training", "FLOPs", "disk", "activations", "989"):
        assert word in done.stdout
    assert "\nhere " not in done.stdout
    assert sorted(path for path in world.rglob("*") if path.is_file()) == before
    failed = planned(world, "--gpu-tflops", "989", "-S", "model.num_heads=3")
    assert failed.returncode == 2
    assert len(error_lines(failed.stderr)) == 1
    assert "model.d_model: 16 is not divisible by num_heads 3" in failed.stderr


MEDIUM = {
    "model.d_model": 256,
    "model.num_layers": 4,
    "model.num_heads": 4,
    "model.kv_heads": 2,
    "model.d_ff": 768,
    "model.dropout": 0.0,
    "model.seq_len": 128,
    "train.batch_size": 16,
    "train.grad_accum_steps": 1,
    "train.max_steps": 4,
    "train.eval_tokens": 2000,
}
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"model.seq_len": 32}, marks=slow),
        pytest.param({"train.mixed_precision": "bf16"}, marks=slow),
        pytest.param({"train.bf16_weights": True, "train.mixed_precision": "bf16"}, marks=slow),
        pytest.param({"train.optimizer": "muon"}, marks=slow),
        pytest.param({"train.activation_checkpointing": "full"}, marks=slow),
        pytest.param({"train.activation_checkpointing": "selective"}, marks=slow),
        pytest.param({"train.micro_batch_size": 4}, marks=slow),
        pytest.param({"train.document_mask": True, "model.dropout": 0.1}, marks=slow),
        pytest.param(
            {"model.d_model": 768, "model.num_heads": 12, "model.kv_heads": 4}, marks=slow
        ),
        pytest.param({"model.num_layers": 12, "model.tie_embeddings": False}, marks=slow),
    ],
)
def test_the_memory_is_what_training_then_uses(changes: dict[str, Any], tmp_path: Path) -> None:
    changes = {**MEDIUM, **changes}
    root = build_data(tmp_path, changes)
    burst = measure(tiny_params(changes), 300)
    code, errors = run_stage("train", root)
    assert code == 0, errors
    local = json.loads((root / "metrics/train.local.json").read_text(encoding="utf-8"))
    assert burst.peak_mib == pytest.approx(local["peak_memory_mib"], rel=0.15)
    assert burst.step_seconds > 0
    assert burst.peak_flops > 1e6


def ends(monkeypatch: pytest.MonkeyPatch, code: int, stderr: str) -> None:
    """Every process that is run ends so."""

    def ended(args: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(args, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", ended)


SHORT = "error: {}: out of memory: it asked for 9 GB (exit code 2)\n"
BROKEN = "Traceback\nNameError: name 'memory' is not defined\n"


@pytest.mark.parametrize(
    ("code", "stderr"), [(-signal.SIGKILL, ""), (2, "a warning\n" + SHORT.format("burst"))]
)
def test_memory_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, code: int, stderr: str
) -> None:
    ends(monkeypatch, code, stderr)
    with pytest.raises(SettingsError, match=r"does not fit.*stages\.train\.fit"):
        measure(tiny_params(), 300)


@pytest.mark.parametrize(
    ("code", "stderr", "says"),
    [
        (1, BROKEN, "NameError"),
        (2, "error: burst: train.lr: no memory of it (exit code 2)\n", "no memory of it"),
        (-signal.SIGILL, "", "exit code -4"),
    ],
)
def test_another_failure_of_the_burst_is_no_want_of_memory(
    monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, says: str
) -> None:
    ends(monkeypatch, code, stderr)
    with pytest.raises(SettingsError, match=rf"the measured burst failed.*{says}"):
        measure(tiny_params(), 300)


def test_fit_tells_want_of_memory_from_other_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    for code, stderr in ((-signal.SIGKILL, ""), (2, SHORT.format("fit"))):
        ends(monkeypatch, code, stderr)
        assert attempt_apart(4) is None
    ends(monkeypatch, 1, BROKEN)
    with pytest.raises(SettingsError, match="the attempt failed: NameError"):
        attempt_apart(4)


def test_the_estimate_matches_the_largest_real_tensors() -> None:
    """Activations as counted on fake tensors are those of a real pass, by torch's own hooks."""
    config = ModelConfig(200, 64, 3, 4, 2, 128, 64)
    runtime = RuntimeParams(**tiny_params()["runtime"])
    train = train_params(batch_size=8, grad_accum_steps=1)
    counted = estimate(config, train, runtime, torch.float32, 1).activations
    network = TrainingLoss(Transformer(config), torch.float32)
    train_eagerly(network.model, torch.float32)
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(8, 64, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(ids, ids, None)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = sum(size for address, size in saved.items() if address not in weights)
    loss.backward()
    # What is kept from forward to backward, and a few temporaries.
    assert kept <= counted <= 1.5 * kept


def test_float16_on_a_cpu_attends_as_torch_does() -> None:
    """In bfloat16 it attends in chunks."""
    config = ModelConfig(64, 64, 1, 8, 8, 64, 1024)
    runtime = RuntimeParams(**tiny_params()["runtime"])
    train = train_params(batch_size=2, grad_accum_steps=1, document_mask=True)
    network = TrainingLoss(Transformer(config), torch.float16)
    train_eagerly(network.model, torch.float16)
    ids = torch.zeros(2, 1024, dtype=torch.int64)
    with _Alive() as alive:
        network(ids, ids, ids).backward()
        gradients = sum(4 * p.numel() for p in network.parameters())
        real = alive.most() - gradients
    counted = estimate(config, train, runtime, torch.float16, 1).activations
    assert counted == pytest.approx(real, rel=0.1)
