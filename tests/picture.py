"""Draws metrics/loss.svg, the loss curve that README.md shows: ``python -m tests.picture``.

With ``--check`` it fails when the picture is of another run than metrics/history.csv.
"""

import json
import subprocess
import sys

import vl_convert

from stages.files import sha256_file, write_text
from tests.closure import ROOT

PICTURE = ROOT / "metrics/loss.svg"


def mark() -> str:
    """The comment at the end of the picture that tells which history it shows."""
    return f"<!-- history.csv {sha256_file(ROOT / 'metrics/history.csv')} -->\n"


def main() -> None:
    if "--check" in sys.argv[1:]:
        if not PICTURE.is_file() or not PICTURE.read_text(encoding="utf-8").endswith(mark()):
            sys.exit("metrics/loss.svg is stale: run `python -m tests.picture`")
        return
    shown = subprocess.run(
        ["dvc", "plots", "show", "--json", "loss"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    (plot,) = json.loads(shown.stdout)["data"]["loss"]
    content = plot["content"]
    spec = json.loads(content) if isinstance(content, str) else content
    write_text(PICTURE, vl_convert.vegalite_to_svg(spec) + "\n" + mark())


if __name__ == "__main__":
    main()
