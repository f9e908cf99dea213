"""The charts as Vega-Lite specifications: rows of numbers in, plain JSON out."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_amc.report.look import INK, MUTED, TAIL, Row, Spec, chart, counted, depth, scores, sources, tooltip, wide

STATES = {"kept": "var(--accent)", "removed": "var(--gone)", "fixed": "var(--fixed)"}

SHADES = {"type": "sqrt", "domain": [0, 1], "range": [0, 1]}


def plan(rows: Sequence[Row], parts: str) -> Spec:
    """Bars of every step over the depth of the network: what share of it is kept, goes, or cannot go."""
    names = [r["group"] for r in rows]
    x = depth(names) | {"field": "group", "title": None, "axis": {"labels": False, "ticks": False}}
    told = tooltip(
        ("name", "name", None), ("state", "here", None), ("count", parts, ","), ("whole", "of", ","), ("share", "share", ".1%"),
        ("uniform", "kept by uniform", ".1%"), ("why", "why", None),
    )  # fmt: skip
    states = [s for s in STATES if any(r["state"] == s for r in rows)]
    bars = {
        "mark": {"type": "bar", "cornerRadius": 1},
        "encoding": {
            "y": {
                "field": "share",
                "type": "quantitative",
                "title": f"share of the {parts}",
                "axis": {"format": "%", "tickCount": 5},
                "scale": {"domain": [0, 1]},
            },
            "color": {
                "field": "state",
                "type": "nominal",
                "scale": {"domain": states, "range": [STATES[s] for s in states]},
                "legend": {"symbolType": "square"},
            },
            "order": {"field": "state", "sort": "ascending"},
            "tooltip": told,
        },
    }
    ticks = {
        "transform": [{"filter": "datum.state == 'kept' && datum.uniform != null"}],
        "mark": {"type": "tick", "thickness": 2, "color": "var(--second)", "opacity": 1},
        "encoding": {"y": {"field": "uniform", "type": "quantitative"}, "tooltip": told},
    }
    layers = [bars] + ([ticks] if any(r["uniform"] is not None for r in rows) else [])
    return chart(
        "Kept, removed and fixed shares of each group", rows, 230, wide(names), layer=layers, encoding={"x": x}
    )


def sizes(rows: Sequence[Row], parts: str) -> Spec:
    """The same in numbers, of the steps that could lose something; below the other, group under group."""
    names = [r["group"] for r in rows]
    rows = [r for r in rows if r["state"] != "fixed"]
    return chart(
        f"Numbers of {parts} kept and removed in each group",
        rows,
        150,
        wide(names),
        mark={"type": "bar", "cornerRadius": 1},
        encoding={
            "x": depth(names) | {"field": "group"},
            "y": {"field": "count", "type": "quantitative", "title": parts, "axis": {"format": "~s", "tickCount": 4}},
            "color": {
                "field": "state",
                "type": "nominal",
                "scale": {"domain": ["kept", "removed"], "range": [STATES["kept"], STATES["removed"]]},
                "legend": None,
            },
            "order": {"field": "state", "sort": "ascending"},
            "tooltip": tooltip(
                ("name", "name", None),
                ("state", "here", None),
                ("count", parts, ","),
                ("whole", "of", ","),
                ("share", "share", ".1%"),
            ),
        },
    )


def rewards(rows: Sequence[Row], lines: Sequence[Row]) -> Spec:
    """The reward of each evaluation, the best so far, and the baselines as lines."""
    color, shape = sources([r["source"] for r in (*rows, *lines)])
    values = sorted(r["reward"] for r in rows)
    low = min([values[len(values) // 4], *(r["reward"] for r in lines)])
    high = max([values[-1], *(r["reward"] for r in lines)])
    margin = 0.08 * (high - low) or 0.01
    scale = {"domain": [low - margin, high + margin], "clamp": True, "nice": True, "zero": False}
    y = {"type": "quantitative", "scale": scale, "title": "reward"}
    told = tooltip(
        ("evaluation", "evaluation", ","), ("source", "proposed by", None), ("reward", "reward", ".4~g"),
        ("score", "score", ".4~g"), ("loss", "error of the outputs", ".4~g"), ("ratio", "left", ".1%"),
    )  # fmt: skip
    named = {"field": "source", "type": "nominal", "scale": color}
    layers: list[Spec] = [
        {
            "data": {"values": list(lines)},
            "mark": {"type": "rule", "strokeWidth": 1.2, "strokeDash": [5, 4], "opacity": 0.9},
            "encoding": {
                "y": y | {"field": "reward"},
                "color": named,
                "tooltip": tooltip(
                    ("source", "baseline", None), ("reward", "reward", ".4~g"), ("score", "score", ".4~g")
                ),
            },
        },
        {
            "mark": {"type": "line", "interpolate": "step-after", "color": INK, "strokeWidth": 1.5},
            "encoding": {"y": y | {"field": "best"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 48, "opacity": 0.85},
            "encoding": {
                "y": y | {"field": "reward"},
                "color": named | {"legend": {"symbolType": "circle"}},
                "shape": {"field": "source", "type": "nominal", "scale": shape},
                "tooltip": told,
            },
        },
    ]
    x = {
        "field": "evaluation",
        "type": "quantitative",
        "title": "evaluation",
        "axis": counted(rows, "evaluation"),
        "scale": {"domain": [0.5, max(r["evaluation"] for r in rows) + 0.5], "nice": False},
    }
    for layer in layers[1:]:
        layer["encoding"]["x"] = x
    return chart("Reward of each evaluation", rows, 280, layer=layers)


def pareto(rows: Sequence[Row], unit: str, metric: str, limit: float | None) -> Spec:
    """Cost against score of all plans tried, and the front of those that no other one beats in both."""
    color, shape = sources([r["source"] for r in rows])
    spread = max(r["ratio"] for r in rows) - min(r["ratio"] for r in rows)
    x = {
        "field": "ratio",
        "type": "quantitative",
        "title": f"{unit} left",
        "axis": {"format": ".1%" if spread < 0.1 else ".0%", "tickCount": 6},
        "scale": {"zero": False, "nice": False, "padding": 14},
    }
    found = sorted(r["score"] for r in rows)
    y = scores("score", metric, found[len(found) // 20 :])
    layers: list[Spec] = [
        {
            "transform": [{"filter": "datum.front"}],
            "mark": {"type": "line", "interpolate": "step-after", "color": INK, "strokeWidth": 1.2, "opacity": 0.7},
            "encoding": {"x": x, "y": y},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 48},
            "encoding": {
                "x": x,
                "y": y,
                "color": {"field": "source", "type": "nominal", "scale": color, "legend": {"symbolType": "circle"}},
                "shape": {"field": "source", "type": "nominal", "scale": shape},
                "opacity": {
                    "condition": {"test": "datum.search == 'this budget' && !datum.estimate", "value": 0.85},
                    "value": 0.35,
                },
                "tooltip": tooltip(
                    ("source", "proposed by", None), ("search", "in the search for", None), ("ratio", f"{unit} left", ".2%"),
                    ("score", "score", ".4~g"), ("loss", "error of the outputs", ".4~g"), ("reward", "reward", ".4~g"),
                ),
            },
        },
    ]  # fmt: skip
    if limit is not None:
        rule = {"type": "rule", "strokeDash": [5, 4], "color": MUTED}
        told = tooltip(("limit", "budget", ".1%"))
        place = {"datum": limit, "type": "quantitative"}
        layers.insert(
            0, {"data": {"values": [{"limit": limit}]}, "mark": rule, "encoding": {"x": place, "tooltip": told}}
        )
    return chart("Cost and score of all evaluated plans", rows, 300, layer=layers)


def times(rows: Sequence[Row]) -> Spec:
    """Two bars for each layer: before and after."""
    names = list(dict.fromkeys(r["layer"] for r in rows))
    return chart(
        "Latency of each layer before and after",
        rows,
        28 * len(names),
        mark={"type": "bar", "cornerRadius": 1},
        encoding={
            "y": {
                "field": "layer",
                "type": "ordinal",
                "sort": None,
                "title": None,
                "scale": {"domain": names, "paddingInner": 0.3},
                "axis": {"ticks": False, "labelLimit": 120} | TAIL,
            },
            "yOffset": {"field": "when", "sort": ["original", "delivered"]},
            "x": {
                "field": "time",
                "type": "quantitative",
                "title": "microseconds of one run, batch 1",
                "axis": {"grid": True, "format": "~s", "tickCount": 5},
            },
            "color": {
                "field": "when",
                "type": "nominal",
                "scale": {"domain": ["original", "delivered"], "range": ["var(--fixed)", "var(--accent)"]},
                "legend": {"symbolType": "square"},
            },
            "tooltip": tooltip(
                ("name", "layer", None), ("op", "operator", None), ("when", "in", None), ("time", "\u00b5s", ",.1f")
            ),
        },
    )


def errors(rows: Sequence[Row]) -> Spec:
    """A bar for each layer: how far its output is from the original's."""
    names = [r["layer"] for r in rows]
    return chart(
        "Relative squared error of each layer's output",
        rows,
        200,
        wide(names),
        mark={"type": "bar", "cornerRadius": 1, "color": "var(--accent)"},
        encoding={
            "x": depth(names) | {"field": "layer"},
            "y": {
                "field": "error",
                "type": "quantitative",
                "title": "relative squared error",
                "axis": {"tickCount": 5},
            },
            "tooltip": tooltip(("name", "layer", None), ("op", "operator", None), ("error", "error", ".4~g")),
        },
    )


def confusion(rows: Sequence[Row]) -> Spec:
    """A field for each pair of classes; the darker, the more samples of the row's class were taken for the column's."""
    names = list(dict.fromkeys(r["answer"] for r in rows))
    axis = {"ticks": False, "domain": False, "labelLimit": 110, "grid": False}
    encoding: Spec = {
        "x": {"field": "answer", "type": "ordinal", "sort": None, "title": "taken for", "axis": axis | {"labelAngle": -50}},
        "y": {"field": "label", "type": "ordinal", "sort": None, "title": "label", "axis": axis},
        "tooltip": tooltip(
            ("label", "label", None), ("answer", "taken for", None), ("delivered", "samples, delivered", ","),
            ("original", "samples, original", ","), ("share", "share, delivered", ".1%"), ("was", "share, original", ".1%"),
        ),
    }  # fmt: skip
    fields = {
        "mark": {"type": "rect", "color": "var(--accent)", "stroke": "var(--line)", "strokeWidth": 0.5},
        "encoding": {
            "fillOpacity": {
                "field": "share", "type": "quantitative", "legend": None, "scale": SHADES
            }
        },
    }  # fmt: skip
    texts = {
        "transform": [{"filter": "datum.share >= 0.005"}],
        "mark": {"type": "text", "fontSize": 10},
        "encoding": {
            "text": {"field": "share", "format": ".0%"},
            "color": {"condition": {"test": "datum.share > 0.5", "value": "var(--paper)"}, "value": INK},
        },
    }
    layers = [fields, texts] if len(names) <= 14 else [fields]
    return chart(
        "Which classes are taken for which", rows, 26 * len({r["label"] for r in rows}), encoding=encoding, layer=layers
    )


def recovery(rows: Sequence[Row], metric: str) -> Spec:
    """The held-out score over the epochs of the training."""
    start = [rows[0]]
    y = scores("held-out score", metric, [r["score"] for r in rows])
    told = tooltip(("epoch", "epoch", ","), ("score", "score", ".4~g"))
    return chart(
        "Held-out score over the epochs of the training",
        rows,
        220,
        layer=[
            {
                "data": {"values": start},
                "mark": {"type": "rule", "strokeDash": [5, 4], "color": "var(--second)"},
                "encoding": {"y": y, "tooltip": tooltip(("score", "before the training", ".4~g"))},
            },
            {
                "mark": {
                    "type": "line",
                    "color": "var(--accent)",
                    "point": {"filled": True, "size": 40, "color": "var(--accent)"},
                },
                "encoding": {
                    "x": {"field": "epoch", "type": "quantitative", "title": "epoch", "axis": counted(rows, "epoch")},
                    "y": y,
                    "tooltip": told,
                },
            },
        ],
    )
