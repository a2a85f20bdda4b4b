"""What the pages tell people to type works, and what they say of the parameters is true."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides

from stages.params import read_yaml
from tests.closure import ROOT
from tests.conftest import TINY, Run, environment, make_clone

README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = sorted((ROOT / "stages").glob("*/README.md"))
PAGES = [
    ROOT / "README.md",
    *ROOMS,
    ROOT / "stages/train/LOG.md",
    *sorted((ROOT / "model").glob("*.md")),
    ROOT / "tests/benchmarks/README.md",
]

# .ci/run installs and calls pytest: here that would replace the installation under test.
INSTALL = re.compile(r"pip install -e '?\.(\[test\])?'? && ")
CALLED_BY_CI = {"pytest"}


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.M | re.S)


def commands(page: str = README) -> list[str]:
    lines = [INSTALL.sub("", line) for b in blocks("bash", page) for line in b.splitlines()]
    return [line for line in lines if line not in CALLED_BY_CI]


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, content in values.items():
        if isinstance(content, dict):
            flat.update({f"{section}.{key}": value for key, value in content.items()})
        else:
            flat[section] = content
    return flat


def table() -> dict[str, str]:
    """Key and default of every row of the parameters' table."""
    section = README.split("## Every parameter")[1]
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| (.*?) \| .*? \| .+ \|$", section, flags=re.M)
    return dict(rows)


def chats() -> str:
    """A file of one's own: 300 short conversations."""
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "!"}]}
        for i in range(300)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_two_commands_stand_in_the_readme() -> None:
    assert "pip install -e . && dvc repro\n" in README
    assert "pip install -e '.[test]' && pytest\n" in README
    assert (ROOT / ".ci/run").read_text(encoding="utf-8").rstrip().endswith("\npytest")


def test_the_commands_work_in_order(tmp_path: Path) -> None:
    run: Run = make_clone(tmp_path, TINY)
    (tmp_path / "chats.jsonl").write_text(chats(), encoding="utf-8")
    assert len(commands()) >= 12
    for command in commands():
        run("bash", "-euo", "pipefail", "-c", command)
        if command == "dvc repro":
            for program in blocks("python"):
                assert run(sys.executable, "-c", program).returncode == 0
    assert json.loads((tmp_path / "metrics/data.json").read_text())["rows"]["read"] == 300


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.parent.name)
def test_the_commands_of_a_room_work_in_order(room: Path, tmp_path: Path) -> None:
    found = commands(room.read_text(encoding="utf-8"))
    if not found:
        pytest.skip("it has none")
    run: Run = make_clone(tmp_path, TINY)
    (tmp_path / "chats.jsonl").write_text(chats(), encoding="utf-8")
    run("dvc", "repro")
    for command in found:
        run("bash", "-euo", "pipefail", "-c", command)


@pytest.mark.parametrize("block", [b for b in blocks("sh") if "dvc exp run" in b])
def test_recipes_that_need_the_hub_have_valid_settings(block: str, tmp_path: Path) -> None:
    make_clone(tmp_path, {})
    command = next(
        c for c in block.replace("\\\n", " ").splitlines() if c.startswith("dvc exp run")
    )
    # What -S does, without the run.
    overrides = [argument for argument in shlex.split(command) if "=" in argument]
    apply_overrides(tmp_path / "params.yaml", overrides)
    done = subprocess.run(
        [sys.executable, "-m", "stages.check"], cwd=tmp_path, env=environment(), check=False
    )
    assert done.returncode == 0
    assert read_yaml(tmp_path / "params.yaml") != read_yaml(ROOT / "params.yaml")


def test_every_parameter_is_in_the_table_with_its_default() -> None:
    flat = flatten(read_yaml(ROOT / "params.yaml"))
    assert list(table()) == list(flat)
    raw = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for key, shown in table().items():
        if shown.startswith("`"):
            name = key.split(".")[-1]
            assert re.search(
                rf"^ *{name}: +{re.escape(shown.strip('`'))}(?: |$)", raw, flags=re.M
            ), key


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_links_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.M)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, target
