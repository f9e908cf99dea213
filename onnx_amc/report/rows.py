"""From a run to the numbers of its charts: one row for each mark."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from onnx_amc.report.record import Run

MOST = 24
"""Layers that are drawn by themselves where time is shown, the slowest."""

MOST_CLASSES = 24
"""Classes of which every pair is drawn."""

OPERATOR = re.compile(r"[A-Z][A-Za-z]+(_\d+)?")
"""How exporters end the name of a node: with its operator."""

Row = dict[str, Any]


def short_names(names: Sequence[str]) -> list[str]:
    """The names without what all begin with, what the next part repeats, and the operator, as far as they stay different."""
    unique = list(dict.fromkeys(names))
    parts = [_unrepeated([p for p in name.split("/") if p]) or [name] for name in unique]
    least = min(map(len, parts), default=1) - 1
    start = next((i for i in range(least) if len({p[i] for p in parts}) > 1), least) if len(unique) > 1 else 0
    parts = [p[start:] for p in parts]
    bare = [p[:-1] if len(p) > 1 and OPERATOR.fullmatch(p[-1]) else p for p in parts]
    often = Counter(map(tuple, bare))
    for shorter in ([b if often[tuple(b)] == 1 else p for b, p in zip(bare, parts, strict=True)], parts):
        cut = ["/".join(p) for p in shorter]
        if len(set(cut)) == len(unique):
            of = dict(zip(unique, cut, strict=True))
            return [of[name] for name in names]
    return list(names)


def _unrepeated(parts: Sequence[str]) -> list[str]:
    """`body/body.0` is `body.0`."""
    return [p for p, after in zip(parts, [*parts[1:], ""], strict=False) if not after.startswith(f"{p}.")]


def plan_rows(run: Run) -> list[Row]:
    """Kept, removed and fixed of each step, as shares of it, in the order of the graph."""
    steps = run.details["steps"]
    rows: list[Row] = []
    for step, label in zip(steps, short_names([s["name"] for s in steps]), strict=True):
        whole, kept = max(step["whole"], 1), step["kept"]
        same = {
            "group": label,
            "name": step["name"],
            "whole": step["whole"],
            "kept": kept,
            "why": step["why"] or ("" if kept < whole else "kept whole by the search"),
            "uniform": None if step.get("uniform") is None else step["uniform"] / whole,
        }
        states = [("fixed", kept)] if step["why"] else [("kept", kept), ("removed", step["whole"] - kept)]
        rows += [
            same | {"state": state, "share": n / whole, "count": n} for state, n in states if n or state != "removed"
        ]
    return rows


def reward_rows(run: Run) -> list[Row]:
    """Every evaluation in its order, with the best reward up to it."""
    rows: list[Row] = []
    best = float("-inf")
    for number, tried in enumerate(run.details["trials"], start=1):
        if tried["reward"] is not None:
            best = max(best, tried["reward"])
            rows.append({"evaluation": number, "best": best, **tried})
    return rows


def baseline_rows(run: Run) -> list[Row]:
    """The baselines' rewards, as far as there are any."""
    return [{"source": n, **t} for n, t in run.details["baselines"].items() if t["reward"] is not None]


def pareto_rows(run: Run) -> list[Row]:
    """Every plan tried, in this search and in those for other budgets; `front` where no other is as cheap and as good.

    What was stopped early is only an estimate: it is never on the front, and does not beat what is.
    """
    own = [{**t, "search": "this budget"} for t in run.details["trials"]]
    rows = [*own, *({**t, "search": "another budget"} for t in run.details.get("elsewhere", []))]
    rows = [r for r in rows if r["score"] is not None]
    best = float("-inf")
    for row in sorted(rows, key=lambda r: (r["ratio"], -r["score"])):
        row["front"] = row["score"] > best and not row.get("estimate")
        best = row["score"] if row["front"] else best
    return rows


def time_rows(run: Run) -> list[Row]:
    """Microseconds before and after of the slowest layers in the order of the graph, and of all others together."""
    found = run.details.get("layer_times", [])
    slow = sorted(range(len(found)), key=lambda i: -max(found[i]["before"], found[i]["after"]))[:MOST]
    chosen = [found[i] for i in sorted(slow)]
    labels = short_names([c["name"] for c in chosen])
    rows = [{**c, "layer": label} for c, label in zip(chosen, labels, strict=True)]
    rest = [t for i, t in enumerate(found) if i not in set(slow)]
    if rest:
        name = f"{len(rest)} others"
        sums = {when: sum(t[when] for t in rest) for when in ("before", "after")}
        rows.append({"name": name, "layer": name, "op": "", **sums})
    return [
        {"layer": r["layer"], "name": r["name"], "op": r["op"], "when": when, "time": r[key]}
        for r in rows
        for when, key in (("original", "before"), ("delivered", "after"))
    ]


def error_rows(run: Run) -> list[Row]:
    """Error of each refitted layer, in the order of the graph."""
    found = run.details.get("layer_errors", [])
    labels = short_names([f["name"] for f in found])
    return [{**f, "layer": label} for f, label in zip(found, labels, strict=True)]


def classes(run: Run) -> tuple[dict[int, str], dict[str, dict[tuple[int, int], int]]]:
    """Names of the classes, and for each network how often which was taken for which."""
    found = run.details["confusion"]
    counts = {who: {(a, b): n for a, b, n in found[who]} for who in ("original", "delivered")}
    labels = sorted({a for pairs in counts.values() for a, _ in pairs})
    names = {c: found["names"].get(str(c), f"class {c}") for c in labels}
    often = Counter(names.values())
    return {c: name if often[name] == 1 else f"{name} ({c})" for c, name in names.items()}, counts


def confusion_rows(run: Run) -> list[Row]:
    """Shares of each class's samples by what they were taken for; empty without labels, or with too many classes to draw."""
    if not run.details.get("confusion"):
        return []
    names, counts = classes(run)
    if len(names) > MOST_CLASSES:
        return []
    rest = "other"  # all classes that no sample is of
    while rest in names.values():
        rest = f"any {rest}"
    rows: list[Row] = []
    for label, name in names.items():
        cells: dict[str, dict[str, int]] = {
            answer: {"original": 0, "delivered": 0} for answer in [*names.values(), rest]
        }
        for who, pairs in counts.items():
            for (truth, answer), n in pairs.items():
                if truth == label:
                    cells[names.get(answer, rest)][who] += n
        total = max(sum(c["delivered"] for c in cells.values()), 1)
        rows += [
            {"label": name, "answer": answer, "share": c["delivered"] / total, "was": c["original"] / total, **c}
            for answer, c in cells.items()
        ]
    if not any(r["original"] or r["delivered"] for r in rows if r["answer"] == rest):
        rows = [r for r in rows if r["answer"] != rest]
    return rows


def recovery_rows(run: Run) -> list[Row]:
    """Held-out score before the training and after each epoch; empty where there was none."""
    told = run.record.get("recover") or {}
    held = told.get("held_out", [])
    rows = [{"epoch": 0, "score": told["before"]}] if held else []
    return rows + [{"epoch": i, "score": score} for i, score in enumerate(held, start=1) if score is not None]
