"""The page: one HTML file with everything in it, tables that need no script, charts by Vega-Lite.

Vega-Lite because its specifications are data (nothing of the model ever becomes code), it draws SVG (sharp on any screen, in the
colours of day and night), escapes its tooltips, and is the smallest: 0.9 MB with Vega and the tooltips, where Bokeh has
1.3 MB, plotly 4.7 MB. Its JavaScript comes from `vl-convert-python`, by the makers of Altair; Altair itself would only write the
specifications. That package takes 80 MB on disk, hence an extra.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from onnx_amc.errors import OptionError
from onnx_amc.files import write_text
from onnx_amc.report import charts, rows, view
from onnx_amc.report.look import Spec
from onnx_amc.report.record import Run

NEEDED = {"vl_convert": "vl-convert-python", "jinja2": "jinja2"}


def require() -> None:
    """Look for the packages that a page needs.

    Raises:
        OptionError: One is not installed.

    """
    absent = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if absent:
        fix = f'pip install "onnx-amc[report]", or pip install {" ".join(absent)}'
        raise OptionError(f"a page needs {' and '.join(absent)}, not installed here", where="report", fix=fix)


def write(run: Run, path: Path) -> None:
    """Write the page of a run.

    Raises:
        OptionError: A package is missing, or the file cannot be written.

    """
    require()
    text = render(run)
    write_text(path, text)


def render(run: Run) -> str:
    """The page as HTML."""
    import jinja2  # noqa: PLC0415  named in the error where it is missing

    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_part("page.html"))
    scripts = [_library(), _part("page.js")]
    drawn = specs(run)
    return template.render(
        run=run,
        view=view,
        charts=drawn,
        style=_part("page.css"),
        scripts=scripts if drawn else [],
        policy=" ".join(f"'sha256-{_digest(s)}'" for s in scripts),
    )


def specs(run: Run) -> dict[str, Spec]:
    """The charts that there is something to draw in, by name."""
    found: dict[str, Spec] = {}
    parts, metric = view.parts(run), str(run.record["metric"])
    if steps := rows.plan_rows(run):
        found["plan"] = charts.plan(steps, parts)
        if any(r["state"] != "fixed" for r in steps):
            found["sizes"] = charts.sizes(steps, parts)
    if len(tried := rows.reward_rows(run)) > 1:
        found["rewards"] = charts.rewards(tried, rows.baseline_rows(run))
    if len(tried := rows.pareto_rows(run)) > 1:
        budget = run.record["budget"]
        limit = None if budget["kind"] == "channels" or run.record.get("max_drop") else run.ratio
        found["pareto"] = charts.pareto(tried, run.details["unit"], metric, limit)
    drawings: list[tuple[str, list[rows.Row], Any]] = [
        ("times", rows.time_rows(run), charts.times),
        ("errors", rows.error_rows(run), charts.errors),
        ("confusion", rows.confusion_rows(run), charts.confusion),
        ("recovery", rows.recovery_rows(run), lambda course: charts.recovery(course, metric)),
    ]
    return found | {name: draw(marks) for name, marks, draw in drawings if marks}


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script. Putting them together takes seconds, once."""
    import vl_convert  # noqa: PLC0415  80 MB that only a page needs

    return _inline(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _part(name: str) -> str:
    return resources.files("onnx_amc.report").joinpath(name).read_text(encoding="utf-8")


def _inline(script: str) -> str:
    """The script as it may stand between tags."""
    return re.sub(r"<(?=/script|!--)", r"\\x3C", script, flags=re.IGNORECASE)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
