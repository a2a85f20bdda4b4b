"""Builds .dvc/plots.html, the page that `dvc plots` fills: ``python -m tests.plots_page``.

DVC's own page loads Vega from a server and is blank without a network; this one carries it.
"""

import vl_convert

from stages.files import write_text
from tests.closure import ROOT

PAGE = ROOT / ".dvc/plots.html"
# DVC's templates are written in version 5 of Vega-Lite; the last of it that vl-convert has.
VEGA_LITE = "5.21"

HEAD = """<!doctype html>
<!-- Written by `python -m tests.plots_page`. Below are Vega, Vega-Lite and Vega-Embed,
(c) University of Washington Interactive Data Lab and others, under the BSD 3-clause licence:
https://vega.github.io -->
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh_tag}
<title>Parley: plots</title>
<style>
body { margin: 0; padding: 1.5rem; background: #f4f4f6; color: #1c1c1e;
  font: 16px/1.5 system-ui, sans-serif; }
main { display: flex; flex-wrap: wrap; gap: 1.25rem; align-items: flex-start; }
main > div { background: #fff; border: 1px solid #dedee3; border-radius: 8px; padding: 1rem;
  max-width: 100%; overflow-x: auto; }
</style>
<script>
"""

TAIL = """
</script>
<script>
// DVC gives every picture 300 x 300; words and lines are easier to read in a wider one.
(function () {
  const embed = window.vegaEmbed;
  const widen = (part) => {
    if (part.width === 300) part.width = 420;
    if (part.height === 300) part.height = 260;
    for (const key of ["layer", "vconcat", "hconcat", "concat"]) (part[key] || []).forEach(widen);
    if (part.spec) widen(part.spec);
  };
  const config = {
    font: "system-ui, sans-serif",
    title: { fontSize: 16, fontWeight: 600, offset: 12 },
    axis: { labelFontSize: 12, titleFontSize: 13, titleFontWeight: 500 },
    legend: { orient: "bottom", labelFontSize: 12, titleFontSize: 12, labelLimit: 220 },
    header: { labelFontSize: 12, titleFontSize: 12 },
  };
  window.vegaEmbed = (place, spec) => {
    widen(spec);
    return embed(place, spec, { config });
  };
})();
</script>
</head>
<body>
<main>
{plot_divs}
</main>
</body>
</html>
"""


def page() -> str:
    """The whole template. DVC puts its plots, and nothing else, into it."""
    bundle = vl_convert.javascript_bundle(vl_version=VEGA_LITE)
    for sign in ("{plot_divs}", "{scripts}", "{refresh_tag}", "</script"):
        assert sign not in bundle, sign
    return HEAD + bundle.rstrip() + TAIL


if __name__ == "__main__":
    write_text(PAGE, page())
