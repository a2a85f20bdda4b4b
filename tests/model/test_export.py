"""An exported folder is whole, opens everywhere, and its card speaks of the model in it."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from model import load
from model.card import front_matter, metadata
from model.export import ExportError, file_md5, folder_md5, main
from tests.builders import build_data, call_stage, contents, stage_environment
from tests.report.test_stage import write_data_metrics


def write_lock(root: Path) -> None:
    """dvc.lock as DVC writes it after a run."""

    def entry(path: str) -> dict[str, Any]:
        full = root / path
        return {"path": path, "md5": folder_md5(full) if full.is_dir() else file_md5(full)}

    metrics = [entry(f"metrics/{name}.json") for name in ("data", "eval", "train")]
    stages = {
        "train": {"outs": [entry("models/chat")]},
        "report": {
            "deps": [*metrics, entry("models/chat")],
            "outs": [entry("metrics/report.md")],
        },
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = build_data(tmp_path_factory.mktemp("reported"))
    for stage in ("train", "evaluate"):
        call_stage(stage, root)
    write_data_metrics(root)
    call_stage("report", root)
    write_lock(root)
    return root


@pytest.fixture
def project(reported: Path, tmp_path: Path) -> Path:
    root = tmp_path / "project"
    shutil.copytree(reported, root)
    return root


def test_the_sum_of_a_folder_is_dvcs(tmp_path: Path) -> None:
    """Computed here as DVC's own library does it."""
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB
    from dvc_objects.fs.local import LocalFileSystem

    folder = tmp_path / "folder"
    for name in ("b.txt", "a/c.bin", "a.txt", "a/b/d", "é"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 1000)
    fs = LocalFileSystem()
    _, _, found = build(HashFileDB(fs, str(tmp_path / "cache")), str(folder), fs, "md5")
    assert folder_md5(folder) == found.hash_info.value


def test_the_folder_is_the_model_with_its_card(project: Path, tmp_path: Path) -> None:
    target = tmp_path / "out/my-model"
    assert main([str(target)], project) == target
    files = contents(target)
    card = files.pop("README.md").decode()
    assert files == contents(project / "models/chat")

    report = (project / "metrics/report.md").read_text(encoding="utf-8")
    assert report.rstrip() in card
    about = front_matter(card)
    assert about["license"] == "mit"
    assert about["language"] == "en"
    assert about["library_name"] == "transformers"
    assert about["pipeline_tag"] == "text-generation"
    assert "conversational" in about["tags"]
    assert "datasets" not in about  # not on the hub
    measured = json.loads((project / "metrics/eval.json").read_text(encoding="utf-8"))
    (index,) = about["model-index"]
    assert index["name"] == "my-model"
    values = {m["type"]: m["value"] for r in index["results"] for m in r["metrics"]}
    assert values == {
        key: measured[key]
        for key in ("bits_per_byte", "perplexity", "loss", "accuracy", "calibration_error")
    }
    # Where it comes from stands in the card alone.
    assert folder_md5(project / "models/chat") in card
    assert f"torch {torch.__version__.split('+')[0]}" in card
    assert "torch 2" not in report
    # As the hub's own library reads it.
    assert ModelCard.load(target / "README.md").data.to_dict()["license"] == "mit"


def test_it_opens_here_and_in_transformers(project: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    main([str(tmp_path / "out")], project)
    model, tokenizer = load(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "the cat"}]
    ids = tokenizer.encode_chat(chat, add_generation_prompt=True)
    rendered = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(
        chat, add_generation_prompt=True, return_dict=True
    )
    assert rendered["input_ids"] == ids
    batch = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(model(batch), theirs(batch).logits, atol=1e-4, rtol=1e-4)


def test_the_commit_is_named_and_whether_all_was_committed(project: Path, tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        done = subprocess.run(
            ["git", *who, *arguments], cwd=project, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    main([str(tmp_path / "a")], project)
    assert "not under git" in (tmp_path / "a/README.md").read_text(encoding="utf-8")
    git("init", "-q")
    git("add", "params.yaml")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD")
    main([str(tmp_path / "b")], project)
    card = (tmp_path / "b/README.md").read_text(encoding="utf-8")
    assert f"Commit `{commit}`, nothing changed." in card
    with (project / "params.yaml").open("a") as file:
        file.write("# changed\n")
    main([str(tmp_path / "c")], project)
    assert "not committed" in (tmp_path / "c/README.md").read_text(encoding="utf-8")


def test_a_copy_of_the_model_may_be_exported_and_another_may_not(
    project: Path, tmp_path: Path
) -> None:
    shutil.copytree(project / "models/chat", tmp_path / "copy")
    main([str(tmp_path / "out"), "--from", str(tmp_path / "copy")], project)
    weights = tmp_path / "copy/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ExportError, match="is not the model that"):
        main([str(tmp_path / "other"), "--from", str(tmp_path / "copy")], project)
    assert not (tmp_path / "other").exists()


def change_lock(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        lock = yaml.safe_load((root / "dvc.lock").read_text())
        change(lock["stages"])
        (root / "dvc.lock").write_text(yaml.safe_dump(lock))

    return apply


def append(name: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        with (root / name).open("a") as file:
            file.write("\n")

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "dvc.lock").unlink(), "dvc.lock not found"),
        (lambda root: (root / "dvc.lock").write_text("- 1"), "dvc.lock is damaged"),
        (change_lock(lambda stages: stages.pop("report")), "no report on the last model"),
        (change_lock(lambda stages: stages.pop("train")), "no report on the last model"),
        (append("metrics/report.md"), "report.md is not what the pipeline wrote"),
        (append("metrics/eval.json"), "metrics/eval.json is not what the report"),
        (append("models/chat/config.json"), "is not the model that"),
        (lambda root: shutil.rmtree(root / "models"), "no model folder"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    project: Path, tmp_path: Path, change: Callable[[Path], Any], message: str
) -> None:
    change(project)
    with pytest.raises(ExportError, match=message):
        main([str(tmp_path / "out")], project)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["project"]


def test_an_existing_folder_is_left_alone_unless_it_is_empty(project: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="not empty"):
        main([str(full)], project)
    with pytest.raises(ExportError, match="not empty"):
        main([str(full / "mine.txt")], project)
    assert contents(full) == {"mine.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    main([str(tmp_path / "empty")], project)
    assert (tmp_path / "empty/README.md").is_file()
    with pytest.raises(ExportError, match="inside the model folder"):
        main([str(project / "models/chat/out")], project)


def test_a_failure_midway_leaves_nothing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("model.card.card", fail)
    with pytest.raises(OSError, match="No space"):
        main([str(tmp_path / "out")], project)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["project"]


def test_the_command_says_in_one_line_what_is_wrong(project: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "model.export", *arguments],
            cwd=project, capture_output=True, text=True, check=False,
            env=stage_environment(project),
        )  # fmt: skip

    wrong = run()
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: export: the following arguments are required: folder")
    assert len(wrong.stderr.splitlines()) == 1
    done = run("out")
    assert (done.returncode, done.stdout) == (0, "export: out\n"), done.stderr
    again = run("out")
    assert again.returncode == 2
    assert "not empty" in again.stderr


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(
    project: Path, tmp_path: Path
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = subprocess.run(
        [sys.executable, "-m", "model.export", str(tmp_path / "out")],
        cwd=project, capture_output=True, text=True, check=False,
        env=stage_environment(project), preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 74
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: export: File too large: {tmp_path}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["project"]


def test_of_a_set_on_the_hub_the_card_names_it_and_its_commit() -> None:
    def about(source: dict[str, str], **more: Any) -> dict[str, Any]:
        found = {"data": {"source": source, **more}, "eval": {"loss": 3.0}, "train": {}}
        return front_matter(metadata("m", found, "llama"))

    alpaca = about({"name": "tatsu-lab/alpaca", "revision": "abc"})
    assert alpaca["datasets"] == ["tatsu-lab/alpaca"]
    assert alpaca["license"] == "cc-by-nc-4.0"
    (result,) = alpaca["model-index"][0]["results"]
    assert result["dataset"]["revision"] == "abc"

    lmsys = about({"name": "lmsys/lmsys-chat-1m"}, languages={"English": 9})
    assert lmsys["license"] == "other"
    assert lmsys["license_name"] == "lmsys-chat-1m-dataset-license-agreement"
    assert lmsys["language"] == ["en"]
    unknown = about({"name": "local"}, languages={"(unknown)": 3, "Klingon": 1})
    assert not {"license", "language", "datasets"} & set(unknown)


def test_of_weights_that_began_elsewhere_the_card_claims_no_licence(
    project: Path, tmp_path: Path
) -> None:
    main([str(tmp_path / "drawn")], project)
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    lock["stages"]["train"]["params"] = {"params.yaml": {"train": {"init_from": "models/first"}}}
    (project / "dvc.lock").write_text(yaml.safe_dump(lock))
    main([str(tmp_path / "further")], project)
    drawn, further = (
        front_matter((tmp_path / name / "README.md").read_text(encoding="utf-8"))
        for name in ("drawn", "further")
    )
    assert "from-scratch" in drawn["tags"]
    assert "license" in drawn
    assert "from-scratch" not in further["tags"]
    assert "license" not in further
