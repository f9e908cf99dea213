"""What all charts have in common: colours by name from the page's style, axes, tooltips, as parts of Vega-Lite specifications."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from onnx_amc.report.view import SHARES

Spec = dict[str, Any]
Row = Mapping[str, Any]

FEW = 60
"""Bars that share the width of the page; more of them get a fixed width each, and the chart scrolls."""

STEP = 16
"""Pixels of a bar then."""

KNOWN = {
    "uniform": ("var(--second)", "square"),
    "shallow": ("var(--fourth)", "triangle-up"),
    "deep": ("var(--fifth)", "triangle-down"),
    "knapsack": ("var(--third)", "diamond"),
}
"""Colour and shape of the plans in closed form; a search has the accent and circles."""

SEARCH = ("var(--accent)", "circle")

TAIL = {"labelExpr": "length(datum.label) > 17 ? '\\u2026' + slice(datum.label, -16) : datum.label"}
"""Of an axis of names: of a long one its end, in which those of one network differ."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
"""The page's; widths of texts are measured in it."""

INK, MUTED, GRID = "var(--ink)", "var(--muted)", "var(--line)"

CONFIG: Spec = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": MUTED,
        "titleColor": MUTED,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titlePadding": 8,
        "domainColor": GRID,
        "tickColor": GRID,
        "gridColor": GRID,
        "labelLimit": 130,
    },
    "axisX": {"grid": False},
    "axisY": {"minExtent": 42},
    "legend": {
        "orient": "top",
        "labelColor": INK,
        "labelFontSize": 12,
        "title": None,
        "symbolStrokeWidth": 0,
        "columnPadding": 14,
        "offset": 6,
    },
    "text": {"color": INK, "fontSize": 11},
}


def chart(about: str, rows: Sequence[Row], height: float | Spec, width: str | Spec = "container", **rest: Any) -> Spec:
    """A chart of these rows; `about` is what a screen reader says."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": about,
        "data": {"values": list(rows)},
        "width": width,
        "height": height,
        "autosize": {"type": "fit-x" if width == "container" else "pad", "contains": "padding"},
        "config": CONFIG,
        **rest,
    }


def tooltip(*fields: tuple[str, str, str | None]) -> list[Spec]:
    """A tooltip: field, title, and format of a number; None for words."""
    return [
        {"field": f, "title": title, "type": "nominal"}
        if form is None
        else {"field": f, "title": title, "type": "quantitative", "format": form}
        for f, title, form in fields
    ]


def wide(names: Sequence[str]) -> str | Spec:
    """Width of a chart with a bar for each name."""
    return "container" if len(set(names)) <= FEW else {"step": STEP}


def depth(names: Sequence[str]) -> Spec:
    """An axis of names in the order of the graph."""
    return {
        "type": "ordinal",
        "sort": None,
        "title": "in the order of the graph",
        "axis": {"labelAngle": -45, "labelLimit": 120, "labelOverlap": True, "ticks": False} | TAIL,
        "scale": {"domain": list(dict.fromkeys(names)), "paddingInner": 0.3},
    }


def counted(rows: Sequence[Row], field: str) -> Spec:
    """An axis of whole numbers, ticks at rows only: left alone, few rows get ticks between them, labelled alike."""
    step = math.ceil(len(rows) / 12)
    return {"values": [r[field] for r in rows[::step]], "format": "d"}


def sources(names: Sequence[str]) -> tuple[Spec, Spec]:
    """Scales of colour and shape: baselines in an order of their own, then whatever else proposed plans."""
    domain = [n for n in KNOWN if n in names] + [n for n in dict.fromkeys(names) if n not in KNOWN]
    looks = [KNOWN.get(n, SEARCH) for n in domain]
    return {"domain": domain, "range": [c for c, _ in looks]}, {"domain": domain, "range": [s for _, s in looks]}


def scores(title: str, metric: str, values: Sequence[float]) -> Spec:
    """An axis of scores, in percent where they are shares, that shows these values and clamps what is outside."""
    margin = 0.08 * (max(values) - min(values)) or max(0.01 * abs(values[0]), 1e-4)
    low, high, share = min(values) - margin, max(values) + margin, metric in SHARES
    return {
        "field": "score",
        "type": "quantitative",
        "title": f"{title} ({metric})",
        "axis": {"format": ".1%" if share else "~g", "tickCount": 6},
        "scale": {"zero": False, "domain": [low, min(high, 1.0) if share else high], "clamp": True, "nice": True},
    }
