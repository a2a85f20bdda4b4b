"""The real `dvc repro` and `dvc exp run` in a clone with small params, and what they leave."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from model import generate_with_cache, load
from stages.params import read_yaml
from tests.conftest import TINY, Run, environment, make_clone, set_params
from tests.wandb_server import wandb_server

OUTPUTS = ["data/conversations", "data/tokenizer", "data/shards", "models/chat"]
METRICS = ["data", "tokenizer", "shards", "train", "eval"]


def hashes(folder: Path) -> dict[str, dict[str, str]]:
    """What dvc.lock says of each stage's outputs."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))
    return {
        name: {out["path"]: out["md5"] for out in stage.get("outs", [])}
        for name, stage in lock["stages"].items()
    }


def stages_run(output: str) -> list[str]:
    """Names of the stages that DVC ran or restored."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def files(folder: Path, *roots: str) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for root in roots
        for path in sorted((folder / root).rglob("*"))
        if path.is_file() and ".local." not in path.name
    }


def test_repro_leaves_a_model_that_talks_and_its_measurements(clone: tuple[Path, Run]) -> None:
    folder, _ = clone
    model, tokenizer = load(folder / "models/chat")
    reply = generate_with_cache(model, tokenizer, "Hello!", max_length=5, temperature=0)
    assert isinstance(reply, str)
    assert model.config.kv_heads == 1

    read = {name: json.loads((folder / f"metrics/{name}.json").read_text()) for name in METRICS}
    assert read["data"]["rows"]["kept"] == TINY["data.subset"]
    assert read["tokenizer"]["vocab_size"] == TINY["tokenizer.vocab_size"]
    assert read["shards"]["train"]["documents"] == read["data"]["train"]["conversations"]
    assert read["train"]["steps"] == TINY["train.max_steps"]
    evaluation = read["eval"]
    for measure in ("loss", "perplexity", "bits_per_byte"):
        assert evaluation[measure] > 0
        assert evaluation["assistant"][measure] > 0
    assert set(evaluation["baselines"]) == {"uniform", "unigram", "bigram", "bzip2"}
    assert len(evaluation["validation_sha256"]) == 64

    with (folder / "metrics/history.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [4, 8, 12]
    assert all(row[column] for row in rows for column in row)
    assert read["train"]["val_loss"] < read["train"]["initial_val_loss"]
    # Training left its last state until its results were safe, which they now are.
    assert list((folder / ".checkpoints").iterdir()) == []
    assert "Do you have any pets?" in (folder / "metrics/samples.md").read_text(encoding="utf-8")
    report = (folder / "metrics/report.md").read_text(encoding="utf-8")
    assert str(evaluation["bits_per_byte"]) in report
    assert "prefers-color-scheme" in (folder / "metrics/conversations.html").read_text("utf-8")


def test_the_model_is_exported_with_what_dvc_recorded_of_it(
    clone: tuple[Path, Run], tmp_path: Path
) -> None:
    folder, run = clone
    run("python", "-m", "model.export", str(tmp_path / "mine"))
    card = (tmp_path / "mine/README.md").read_text(encoding="utf-8")
    commit = run("git", "rev-parse", "HEAD").stdout.strip()
    assert f"Commit `{commit}`, nothing changed." in card
    assert hashes(folder)["train"]["models/chat"] in card
    assert files(tmp_path / "mine", ".").keys() - {"README.md"} == {
        path.name for path in (folder / "models/chat").iterdir()
    }


def test_an_unchanged_tree_needs_nothing_and_git_is_clean(clone: tuple[Path, Run]) -> None:
    _, run = clone
    again = run("dvc", "repro").stdout
    assert stages_run(again) == []
    assert "Data and pipelines are up to date." in again
    assert run("git", "status", "--porcelain").stdout == ""
    # Bytecode and tool caches are no change.
    run("python", "-m", "compileall", "-q", "stages", "model")
    assert "up to date" in run("dvc", "repro").stdout


def test_twice_from_nothing_gives_the_same_bytes(clone: tuple[Path, Run], tmp_path: Path) -> None:
    folder, _ = clone
    run = make_clone(tmp_path, TINY)
    run("dvc", "repro")
    assert hashes(tmp_path) == hashes(folder)
    assert files(tmp_path, *OUTPUTS, "metrics") == files(folder, *OUTPUTS, "metrics")


def test_a_server_of_wandb_has_training_and_evaluation_as_one_run_and_no_byte_is_changed(
    clone: tuple[Path, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = clone
    before = hashes(folder), files(folder, "models", "metrics")
    for name in ("CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    set_params(folder, {"wandb.enabled": "true", "wandb.mode": "online", "wandb.run_name": "mine"})
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        done = run("dvc", "repro", "--force", "--single-item", "train", "evaluate")
    assert stages_run(done.stdout) == ["train", "evaluate"]
    assert "W&B" not in done.stderr
    assert (hashes(folder), files(folder, "models", "metrics")) == before
    logged = server.the_run()
    params = read_yaml(folder / "params.yaml")
    assert (logged.project, logged.name) == (params["wandb"]["project_name"], "mine")
    for section in ("seed", "model", "train", "wandb"):
        assert logged.config[section]["value"] == params[section]
    assert (logged.resumed, logged.exit_codes) == (1, [0, 0])
    trained = {row["step"]: row for row in logged.history if "step" in row}
    assert sorted(trained) == [*range(params["train"]["max_steps"] + 1)]
    with (folder / "metrics/history.csv").open(encoding="utf-8") as file:
        measured = {int(row["step"]): float(row["val_loss"]) for row in csv.DictReader(file)}
    validated = {step: row["val_loss"] for step, row in trained.items() if "val_loss" in row}
    assert sorted(validated) == [0, *measured]
    for step, val_loss in measured.items():
        assert validated[step] == pytest.approx(val_loss, abs=1e-4)
    for name in ("train", "eval"):
        metrics = json.loads((folder / f"metrics/{name}.json").read_text(encoding="utf-8"))
        assert logged.summary[name] == metrics
    samples = logged.table("samples")
    assert samples["columns"] == ["prompt", "kind", "reply"]
    assert len(samples["data"]) == logged.summary["samples"]["nrows"] > 0
    run("git", "checkout", "--", ".")
    assert run("git", "status", "--porcelain").stdout == ""


def test_a_training_parameter_redoes_training_alone_and_back_is_restored(
    clone: tuple[Path, Run],
) -> None:
    folder, run = clone
    before = hashes(folder)
    default = read_yaml(folder / "params.yaml")["train"]["lr"]
    changed = run("dvc", "exp", "run", "--set-param", "train.lr=1e-3").stdout
    assert stages_run(changed) == ["check", "preflight", "train", "evaluate", "report"]
    after = hashes(folder)
    assert after["train"] != before["train"]
    changed_too = {name for name in before if before[name] != after[name]}
    assert changed_too == {"train", "evaluate", "report"}

    diff = json.loads(run("dvc", "metrics", "diff", "--json").stdout)
    assert diff["metrics/eval.json"]["bits_per_byte"]["diff"] != 0
    params = json.loads(run("dvc", "params", "diff", "--json").stdout)
    assert list(params["params.yaml"]) == ["train.lr"]
    assert params["params.yaml"]["train.lr"]["new"] == 0.001
    assert "index.html" in run("dvc", "plots", "diff").stdout
    # The page needs no network, and shows both revisions.
    page = (folder / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script[^>]+src=|<link[^>]+href=|cdn\.jsdelivr", page)
    for title in ("Training and validation loss", "Calibration", "Loss by message", "Replies"):
        assert f'"{title}"' in page
    assert '"rev": "HEAD"' in page
    assert '"rev": "workspace"' in page
    table = list(csv.DictReader(run("dvc", "exp", "show", "--csv").stdout.splitlines()))
    assert {row["train.lr"] for row in table} >= {str(default), "0.001"}

    back = run("dvc", "exp", "run", "--set-param", f"train.lr={default}").stdout
    assert "Stage 'train' is cached - skipping run, checking out outputs" in back
    assert "train" not in stages_run(back)
    assert hashes(folder) == before
    run("git", "checkout", "--", ".")


def test_vocabulary_leaves_the_download_alone_and_machine_settings_leave_all(
    clone: tuple[Path, Run],
) -> None:
    folder, run = clone
    set_params(folder, {"tokenizer.vocab_size": 500})
    assert stages_run(run("dvc", "repro", "shards").stdout) == ["check", "tokenizer", "shards"]
    run("git", "checkout", "--", ".")
    run("dvc", "checkout")
    set_params(folder, {"runtime.threads": 1, "wandb.enabled": "true", "wandb.run_name": "mine"})
    assert stages_run(run("dvc", "repro").stdout) == []
    run("git", "checkout", "--", ".")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.lr=fast", "train.lr: input should be a valid number, not 'fast'"),
        ("+train.learning_rate=1", "unknown key 'train.learning_rate': did you mean 'train.lr'?"),
        ("model.num_heads=3", "model.d_model: 32 is not divisible by num_heads 3"),
        ("model.kv_heads=4", "model.num_heads: 2 is not divisible by kv_heads 4"),
        ("tokenizer.vocab_size=100", "tokenizer.vocab_size: 100 is below 263"),
        ("data.path=no/such/file", "data.path: 'no/such/file' does not exist"),
        ("model.seq_len=10000000", "model.seq_len 10,000,000 needs 10,000,001 tokens"),
        ("data.val_fraction=1e-9", "data.val_fraction leaves no validation conversation of 300"),
        ("train.loss_on=assistant train.eval_tokens=1", "train.eval_tokens 1: the beginning of"),
        (
            "train.init_from=model",
            "train.init_from: 'model' is no model folder: no config.json in 'model'",
        ),
        ("train.init_from=no/such", "train.init_from: 'no/such' is no folder"),
        ("train.epochs=1e308", "train.epochs: input should be less than or equal to 1000000"),
        pytest.param(
            "train.weight_decay=0.2 runtime.device=cuda",
            "runtime.device: this machine has no 'cuda'",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="it has"),
        ),
    ],
)
def test_a_failed_experiment_says_why_in_one_line_and_loses_nothing(
    setting: str, message: str, clone: tuple[Path, Run]
) -> None:
    folder, run = clone
    kept = files(folder, "models", "metrics")
    settings = [part for item in setting.split() for part in ("--set-param", item)]
    failed = run("dvc", "exp", "run", *settings, check=False)
    assert failed.returncode != 0
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert errors[0].endswith("(exit code 2)")
    assert "Traceback" not in failed.stderr
    left = files(folder, "models", "metrics")
    assert left.keys() == kept.keys()
    reports = {f"metrics/{name}.json" for name in ("data", "tokenizer", "shards")}
    reports.add("metrics/lengths.csv")
    assert {name for name in kept if left[name] != kept[name]} <= reports
    run("git", "checkout", "--", ".")
    run("dvc", "checkout")


def test_dvc_killed_amid_training_costs_no_byte(clone: tuple[Path, Run], tmp_path: Path) -> None:
    folder, _ = clone
    # Long enough to be killed in; a short cosine would be over.
    longer = {**TINY, "train.max_steps": 200, "train.eval_interval": 100}
    run = make_clone(tmp_path / "killed", {**longer, "runtime.checkpoint_steps": 20})
    shutil.copytree(folder / ".dvc/cache", tmp_path / "killed/.dvc/cache")
    process = subprocess.Popen(
        [Path(sys.executable).parent / "dvc", "repro"],
        cwd=tmp_path / "killed",
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 300
    while not list((tmp_path / "killed/.checkpoints").glob("*/step-*")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.wait()
    again = run("dvc", "repro", "train")
    assert "train: resumed from step " in again.stderr
    other = make_clone(tmp_path / "undisturbed", longer)
    shutil.copytree(folder / ".dvc/cache", tmp_path / "undisturbed/.dvc/cache")
    other("dvc", "repro", "train")
    assert hashes(tmp_path / "killed")["train"] == hashes(tmp_path / "undisturbed")["train"]
    assert run("git", "status", "--porcelain", ".checkpoints").stdout == ""


def test_ones_own_files_in_a_temporary_experiment_and_changed(
    clone: tuple[Path, Run], tmp_path: Path
) -> None:
    folder, run = clone
    source = tmp_path / "chats.jsonl"
    lines = [
        json.dumps({"prompt": f"What is {i} plus {i}?", "response": f"It is {2 * i}."})
        for i in range(400)
    ]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = tmp_path / "own.json"
    shutil.copyfile(folder / "data/tokenizer/tokenizer.json", tokenizer)
    settings = ["--set-param", "data.name=local", "--set-param", f"data.path={source}"]
    settings += ["--set-param", f"tokenizer.path={tokenizer}"]
    settings += ["--set-param", "train.loss_on=assistant", "--set-param", "model.seq_len=32"]
    run("dvc", "exp", "run", "--temp", *settings)
    # The workspace has all from the cache, but evaluation, whose samples live in git.
    assert stages_run(run("dvc", "exp", "run", *settings).stdout) == ["evaluate", "report"]
    assert stages_run(run("dvc", "repro").stdout) == []
    assert (folder / "data/tokenizer/tokenizer.json").read_bytes() == tokenizer.read_bytes()
    with source.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "One more?", "response": "Yes."}) + "\n")
    assert "download" in stages_run(run("dvc", "repro", "--dry").stdout)
    run("git", "checkout", "--", ".")
    run("dvc", "checkout")


def test_a_clone_without_the_cache_is_up_to_date_with_its_lock(
    clone: tuple[Path, Run], tmp_path: Path
) -> None:
    folder, run = clone
    run("git", "clone", "--quiet", str(folder), str(tmp_path / "fresh"))
    fresh = tmp_path / "fresh"

    def run_fresh(*command: str) -> str:
        return run("git", "-C", str(fresh), *command).stdout

    assert run_fresh("status", "--porcelain") == ""
    dry = run("dvc", "--cd", str(fresh), "repro", "--dry", "--allow-missing").stdout
    assert "Data and pipelines are up to date." in dry
    run("dvc", "--cd", str(fresh), "repro", "shards")
    assert run_fresh("diff", "--name-only") == ""
