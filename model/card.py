"""A model's card: metadata as the Hugging Face hub reads it, the pipeline's report, provenance."""

import json
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from model.config import DRAWN
from model.sources import SOURCES

# What made the model and what opens it.
PACKAGES = ("parley", "torch", "tokenizers", "safetensors", "numpy", "dvc", "transformers")
# Metrics of metrics/eval.json by what the hub shows them as.
SHOWN = {
    "bits_per_byte": "Bits per byte",
    "perplexity": "Perplexity (tokens)",
    "loss": "Cross-entropy (nats a token)",
    "accuracy": "Accuracy of the next token",
    "calibration_error": "Expected calibration error",
}


def metadata(
    name: str,
    found: Mapping[str, Mapping[str, Any]],
    model_type: str,
    init_from: str = DRAWN,
) -> str:
    """The YAML block for the top of a card.

    ``found`` are the contents of metrics/ ``data``, ``eval`` and ``train``. What is not known of
    the data (licence, language) is left out. So is the licence of weights that began as another
    model's (``init_from``), which has its say in it.
    """
    scratch = init_from == DRAWN
    source = str(found["data"]["source"]["name"])
    known = SOURCES.get(source)
    on_hub = "/" in source
    measured = found["eval"]
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=source if on_hub else "conversations",
            dataset_name=known.title if known else source,
            dataset_split="validation",
            dataset_revision=found["data"]["source"].get("revision"),
            metric_type=key,
            metric_name=title,
            metric_value=measured[key],
        )
        for key, title in SHOWN.items()
        if measured.get(key) is not None
    ]
    licensed = known if scratch else None
    other = licensed if licensed and licensed.licence == "other" else None
    languages = _languages(found["data"].get("languages"))
    data = ModelCardData(
        model_name=name,
        eval_results=results,
        language=languages or (known.language if known else None),
        license=licensed.licence if licensed else None,
        license_name=_slug(other.licence_title) if other else None,
        license_link=other.url if other else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["conversational", *(["from-scratch"] if scratch else []), "parley", model_type],
        datasets=[source] if on_hub else None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-")


def _languages(counted: Mapping[str, int] | None) -> list[str] | None:
    """ISO 639 codes of the data's languages, if all of it is of languages known by code."""
    names = {"English": "en", "German": "de", "French": "fr", "Spanish": "es", "Chinese": "zh",
             "Portuguese": "pt", "Italian": "it", "Russian": "ru", "Japanese": "ja",
             "Korean": "ko"}  # fmt: skip
    if not counted:
        return None
    codes = [names.get(name, name.lower()) for name in counted]
    return codes if all(re.fullmatch(r"[a-z]{2,3}", code) for code in codes) else None


USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
chat = [{{"role": "user", "content": "Hi! How are you today?"}}]
inputs = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
reply = model.generate(**inputs, max_new_tokens=60, do_sample=True, temperature=0.8, top_p=0.95)
print(tokenizer.decode(reply[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""


def provenance(root: Path, lock: Mapping[str, Any]) -> str:
    """The commit, the sums that dvc.lock has of each stage's results, and the packages here."""
    lines = ["## Provenance", "", *_commit(root), ""]
    lines += ["| result of | file | md5 in `dvc.lock` |", "|---|---|---|"]
    for stage, content in lock["stages"].items():
        for out in content.get("outs", []):
            lines.append(f"| {stage} | `{out['path']}` | `{out['md5']}` |")
    lines += ["", "Exported with " + ", ".join(_versions()) + "."]
    return "\n".join(lines) + "\n"


def _commit(root: Path) -> list[str]:
    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return ["The project was not under git, so no commit can be named."]
    changed = git("status", "--porcelain", "--untracked-files=no")
    return [
        f"Commit `{commit}`"
        + (", with changes that were not committed." if changed else ", nothing changed.")
    ]


def _versions() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def card(
    name: str,
    folder: Path,
    report: str,
    found: Mapping[str, Mapping[str, Any]],
    root: Path,
    lock: Mapping[str, Any],
) -> str:
    """The whole README.md of a model folder; ``found`` as for ``metadata``."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    recorded = lock["stages"]["train"].get("params", {}).get("params.yaml", {})
    init_from = str(recorded.get("train", {}).get("init_from", DRAWN))
    head = metadata(name, found, str(config["model_type"]), init_from)
    parts = [head, report.rstrip("\n") + "\n", USE.format(folder=name), provenance(root, lock)]
    return "\n".join(parts)


def front_matter(text: str) -> dict[str, Any]:
    """The metadata of a card's text."""
    block = re.match(r"---\n(.*?)\n---\n", text, flags=re.S)
    value = yaml.safe_load(block[1]) if block else None
    return value if isinstance(value, dict) else {}
