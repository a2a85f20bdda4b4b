"""The page of `dvc plots` works without a network, and is the one that its builder writes."""

import json
import re
from pathlib import Path

import pytest
import vl_convert
from dvc_render.html import HTML
from dvc_render.vega import VegaRenderer

from tests.closure import ROOT
from tests.plots_page import HEAD, PAGE, TAIL, VEGA_LITE

TEXT = PAGE.read_text(encoding="utf-8")
TEMPLATES = sorted((ROOT / ".dvc/plots").glob("*.json"))


def test_the_page_is_its_head_and_tail_around_vega() -> None:
    assert TEXT.startswith(HEAD)
    assert TEXT.endswith(TAIL)
    assert "window.vegaEmbed=" in TEXT


def test_it_asks_for_nothing_elsewhere_when_dvc_has_filled_it() -> None:
    page = HTML(TEXT).with_scripts(VegaRenderer.SCRIPTS).with_element("<div>mine</div>").embed()
    assert "<div>mine</div>" in page
    assert not re.search(r"<script[^>]+src=|<link[^>]+href=|cdn\.jsdelivr", page)
    assert "{plot_divs}" not in page


def test_the_config_names_it() -> None:
    assert "html_template = plots.html" in (ROOT / ".dvc/config").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_draws_several_revisions(path: Path) -> None:
    """Filled by DVC's own code, then drawn by Vega: the picture has the text of both."""
    points = [
        {"rev": rev, "a": number, "b": number / 4, "name": f"part {number}", "text": f"{rev} says"}
        for rev in ("HEAD", "workspace")
        for number in (1, 2, 4)
    ]
    name = path.stem
    x, y = {"samples": ("name", "text"), "parts": ("b", "name")}.get(name, ("a", "b"))
    renderer = VegaRenderer(
        points, "points", template=name, template_dir=str(ROOT / ".dvc/plots"), x=x, y=y,
        title="A title", revs_with_datapoints=["HEAD", "workspace"],
    )  # fmt: skip
    spec = renderer.get_filled_template()
    assert "DVC_METRIC" not in json.dumps(spec)
    picture = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
    for text in ("A title", "HEAD", "workspace"):
        assert text in picture
    if name == "samples":
        assert picture.count(">HEAD says<") == picture.count(">workspace says<") == 3
