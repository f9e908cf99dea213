"""From a run to what a reader sees of it: sentences and tables of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx_amc.report.record import Run
from onnx_amc.report.rows import classes

SHARES = {"top1", "top5", "agreement", "fidelity", "miou"}
"""Metrics that are read in percent."""

COUNTED = {"flops": "MACs", "params": "parameters", "size": "file size", "latency": "latency", "channels": "channels"}

SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        head: Titles of the columns.
        rows: Texts; the first column names the row.
        texts: Columns besides the first that hold words, not numbers.

    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: Sequence[int] = ()


@dataclass(frozen=True)
class Tile:
    """One of the numbers at the top."""

    label: str
    value: str
    about: str


# ---- text ------------------------------------------------------------------------------------------------------------


def amount(value: float) -> str:
    """A count with three digits: 325 M."""
    rounded = float(f"{value:.3g}")  # 999,700 is 1 M
    for size, suffix in SUFFIXES:
        if rounded >= size:
            return f"{rounded / size:.3g} {suffix}"
    return f"{value:g}"


def milliseconds(value: float) -> str:
    """A time with three digits, from one second on in whole milliseconds: 1,234."""
    return f"{value:#.3g}".removesuffix(".") if value < 999.5 else f"{value:,.0f}"


def percent(share: float) -> str:
    """A share with one decimal."""
    return f"{share:.1%}".replace("%", " %")


def score_of(metric: str | None) -> Callable[[float | None], str]:
    """How scores are written: shares in percent with two decimals."""
    if metric in SHARES:
        return lambda score: "" if score is None else f"{100 * score:.2f} %"
    return lambda score: "" if score is None else f"{score:.4g}"


def lost(metric: str | None, before: float, after: float) -> str:
    """The change of a score, in points where it is a share."""
    change = after - before
    return f"{signed(100 * change)} points" if metric in SHARES else signed(change, "+.4g")


def signed(change: float, form: str = "+.2f") -> str:
    """A change with its sign."""
    return f"{change:{form}}".replace("-", "\N{MINUS SIGN}")


# ---- the top ---------------------------------------------------------------------------------------------------------


def title(run: Run) -> str:
    """The model's name without its folder."""
    return Path(str(run.record["model"])).name or "model"


def asked(run: Run) -> str:
    """What the user wanted."""
    record, budget = run.record, run.record["budget"]
    if drop := record.get("max_drop"):
        points = f"{drop['allowed']:g} point{'s' if drop['allowed'] != 1 else ''} of {record['metric'] or 'score'}"
        return f"The smallest network by {COUNTED[budget['kind']]} that loses at most {points}."
    what = COUNTED[budget["kind"]]
    if budget["kind"] == "channels":
        return f"{100 * budget['ratio']:g} % of the channels of every group."
    left = " not zero" if budget["kind"] == "params" and parts(run) == "weights" else ""
    return f"At most {100 * budget['ratio']:g} % of the {what}{left}."


def delivered(run: Run) -> str:
    """What came out."""
    record = run.record
    small, whole = record["compressed"], record["original"]
    left = [f"{percent(small[k] / max(whole[k], 1))} of the {n}" for k, n in (("macs", "MACs"), ("bytes", "bytes"))]
    if parts(run) == "weights":
        left.append(f"{percent(small['nonzeros'] / max(whole['nonzeros'], 1))} of the weights that are not zero")
    speed = f"{small['latency_ratio']:.2f} times the latency in onnxruntime"
    return f"{', '.join(left)}, {speed}: the plan of {proposer(record['delivered'])}."


def loss(run: Run) -> str:
    """What it cost in quality."""
    record, metric = run.record, run.record["metric"]
    before, after = record["original"]["score"], record["compressed"]["score"]
    if before is None or after is None:
        return "Not measured: the run had no data."
    shown, samples = score_of(metric), run.details.get("samples", {}).get("reward")
    text = "" if after < before else "Nothing: "
    text += f"{lost(metric, before, after)} of {metric} ({shown(before)} \N{RIGHTWARDS ARROW} {shown(after)})"
    text += f", on {samples:,} held-out samples." if samples else "."
    if drop := record.get("max_drop"):
        # The record counts points lost, this sentence what the score has changed by, as the one before it.
        points, *ends = (signed(0.0 - points) for points in (drop["points"], *reversed(drop["interval"] or [])))
        text += f" On the samples that decide: {points} points"
        text += f", {' to '.join(ends)} with confidence {drop['confidence']:.0%}." if ends else "."
    return text


def proposer(source: str) -> str:
    """Who proposed a plan, in words."""
    return f"the agent ({source.upper()})" if source in {"ddpg", "td3", "sac"} else f"\u201c{source}\u201d"


def notices(run: Run) -> list[str]:
    """What the reader must know before believing the numbers."""
    found = [f"{warning[:1].upper()}{warning[1:]}." for warning in run.record.get("warnings", [])]
    if run.details.get("synthetic"):
        found.append("The inputs were made up: scores say how alike the networks are on them, not how good they are.")
    doubts = [s["name"] for s in run.details["steps"] if s["approximate"] and s["kept"] < s["whole"]]
    if doubts:
        gap = run.record["checks"].get("approximate_difference", 0.0)
        found.append(f"The cut of {len(doubts)} groups is not exact: outputs differ by {gap:.1e} before any refit.")
    return found


def tiles(run: Run) -> list[Tile]:
    """The numbers at the top."""
    record = run.record
    whole, small, metric = record["original"], record["compressed"], record["metric"]
    counted = [("MACs", "macs"), ("parameters", "params"), ("file", "bytes")]
    if parts(run) == "weights":
        counted = [("weights not zero", "nonzeros"), ("file", "bytes")]
    unit = {"bytes": "B"}
    found = [
        Tile(
            label,
            percent(small[key] / max(whole[key], 1)),
            f"{amount(whole[key])} \N{RIGHTWARDS ARROW} {amount(small[key])}{unit.get(key, '')}",
        )
        for label, key in counted
    ]
    before, after = (milliseconds(table["latency_ms"]) for table in (whole, small))
    times = f"{before} \N{RIGHTWARDS ARROW} {after} ms"
    found.append(Tile("latency", f"{small['latency_ratio']:.2f}\N{MULTIPLICATION SIGN}", times))
    if whole["score"] is not None and small["score"] is not None:
        shown = score_of(metric)
        change = lost(metric, whole["score"], small["score"]).replace(" points", "")
        found.append(Tile(str(metric), change, f"{shown(whole['score'])} \N{RIGHTWARDS ARROW} {shown(small['score'])}"))
    return found


def comparison(run: Run) -> Table:
    """Original, the uniform plan of the same budget, and what is delivered, side by side."""
    record = run.record
    whole, others = record["original"], record["baselines"]
    columns = {"original": whole, **{n: c for n, c in others.items() if n == "uniform"}}
    columns["delivered"] = record["compressed"]
    if "score" in record.get("int8", {}):
        columns["int8"] = record["int8"]
    counted = [("MACs", "macs"), ("parameters", "params"), ("of them not zero", "nonzeros"), ("bytes", "bytes")]
    if all(c.get("nonzeros") == c.get("params") for c in columns.values()):
        counted.pop(2)
    rows = [[label, *(_counted(c.get(key), whole[key]) for c in columns.values())] for label, key in counted]
    timed = [
        ""
        if "latency_ms" not in c
        else f"{c.get('latency_ratio', 1.0):.2f}\N{MULTIPLICATION SIGN}\n{milliseconds(c['latency_ms'])} ms"
        for c in columns.values()
    ]
    rows.append(["latency, batch 1", *timed])
    if record["metric"]:
        shown = score_of(record["metric"])
        rows.append([f"score ({record['metric']})", *(shown(c.get("score")) for c in columns.values())])
    return Table(["", *columns], rows)


def _counted(value: int | None, whole: int) -> str:
    return "" if value is None else f"{percent(value / max(whole, 1))}\n{value:,}"


# ---- the plan --------------------------------------------------------------------------------------------------------


def has_uniform(run: Run) -> bool:
    """Whether there is a uniform plan to compare with."""
    return any(step.get("uniform") is not None for step in run.details["steps"])


def parts(run: Run) -> str:
    """What a step of the walk consists of."""
    return "weights" if run.details["granularity"] == "weight" else "channels"


def plan_table(run: Run) -> Table:
    """The same in words."""
    steps = run.details["steps"]
    rows = []
    for step in steps:
        why = step["why"] or (f"not exact: {step['approximate']}" if step["approximate"] else "")
        uniform = step.get("uniform")
        rows.append(
            [
                step["name"],
                f"{step['whole']:,}",
                f"{step['kept']:,}",
                percent(step["kept"] / max(step["whole"], 1)),
                "" if uniform is None else f"{uniform:,}",
                "" if step["macs"] is None else percent(step["macs"]),
                why,
            ]
        )
    head = [
        "group" if parts(run) == "channels" else "weight",
        parts(run),
        "kept",
        "share",
        "by uniform",
        "MACs it governs",
    ]
    table = Table([*head, "why it stays"], rows, (6,))
    return _without_empty(table)


def _without_empty(table: Table) -> Table:
    """Leave out the columns that say nothing."""
    said = [i for i in range(len(table.head)) if i == 0 or any(row[i] for row in table.rows)]
    rows = [[row[i] for i in said] for row in table.rows]
    return Table([table.head[i] for i in said], rows, [said.index(i) for i in table.texts if i in said])


# ---- the search ------------------------------------------------------------------------------------------------------


def tried_table(run: Run) -> Table:
    """The plans that were refitted in full, and before them the best of the search."""
    shown = score_of(run.record["metric"])
    rows = [
        [t["source"], percent(t["ratio"]), shown(t["score"]), f"{t['loss']:.4g}", f"{t['reward']:.4f}"]
        for t in sorted(run.details["finals"], key=lambda t: -(t["reward"] or 0.0))
    ]
    head = ["proposed by", f"{run.details['unit']} left", "score", "error of the outputs", "reward"]
    return Table(head, rows)


# ---- layers ----------------------------------------------------------------------------------------------------------


def layer_table(run: Run) -> Table:
    """Times and errors in words."""
    times = {t["name"]: t for t in run.details.get("layer_times", [])}
    errors = {e["name"]: e for e in run.details.get("layer_errors", [])}
    rows = []
    for name in dict.fromkeys([*times, *errors]):
        time, error = times.get(name), errors.get(name)
        said = time or error or {}
        rows.append(
            [
                name,
                said["op"],
                "" if time is None else f"{time['before']:,.0f}",
                "" if time is None else f"{time['after']:,.0f}",
                "" if time is None or not time["before"] else f"{time['after'] / time['before']:.2f}",
                "" if error is None or error["error"] is None else f"{error['error']:.4f}",
            ]
        )
    head = ["layer", "operator", "before, \N{MICRO SIGN}s", "after, \N{MICRO SIGN}s", "ratio", "error"]
    return _without_empty(Table(head, rows, (1,)))


# ---- classes ---------------------------------------------------------------------------------------------------------


def class_table(run: Run) -> Table:
    """What each class has lost, worst first."""
    names, counts = classes(run)
    known = run.details["confusion"]["names"]
    rows = []
    for label, name in names.items():
        mine = {b: n for (a, b), n in counts["delivered"].items() if a == label}
        total = sum(mine.values())
        right = [counts[who].get((label, label), 0) for who in ("original", "delivered")]
        wrong = sorted(((n, b) for b, n in mine.items() if b != label), reverse=True)[:1]
        taken = [f"{names.get(b) or known.get(str(b), f'class {b}')} ({n})" for n, b in wrong]
        rows.append(
            (right[1] - right[0], [name, str(total), *map(str, right), f"{right[1] - right[0]:+d}", *(taken or [""])])
        )
    rows.sort(key=lambda row: row[0])
    return Table(
        ["class", "samples", "right before", "right after", "change", "most often taken for"],
        [row for _, row in rows],
        (5,),
    )


# ---- recovery and origin ---------------------------------------------------------------------------------------------


def time_table(run: Run) -> Table:
    """Where the run's own time went."""
    names = {
        "analyse": "analysis",
        "calibrate": "calibration",
        "ranking": "order of the channels",
        "search": "search",
        "search_onnxruntime": "of it in onnxruntime",
        "refit": "refit of the best few",
        "recover": "recovery",
        "int8": "int8",
        "total": "all",
    }
    seconds = run.record["seconds"]
    rows = [[label, f"{seconds[key]:,.1f} s"] for key, label in names.items() if seconds.get(key)]
    return Table(["step", "wall time"], [*rows, ["peak memory", f"{run.record['peak_rss_mb']:,} MB"]])


def origin_table(run: Run) -> Table:
    """What it was made with and from."""
    details, record = run.details, run.record
    machine = details["machine"]
    rows = [["model", str(record["model"])], ["delivered as", str(record["out"])]]
    rows += [["data", str(record["data"])]] if record["data"] else []
    if samples := details.get("samples"):
        rows.append(
            ["samples", f"{samples['calibration']:,} for calibration, {samples['reward']:,} held out for scores"]
        )
    rows += [["policy", str(record["policy"])], ["episodes", str(record["episodes"])], ["seed", str(record["seed"])]]
    checks = f"masked equals cut to {record['checks']['masked_equals_cut']:.1e}"
    rows += [["self-check", checks], ["finished", details["finished"]]]
    rows.append(["machine", f"{machine['system']}, {machine['processor']}, {machine['cores']} cores"])
    rows.append(["versions", ", ".join(f"{name} {text}" for name, text in details["versions"].items())])
    rows += [[f"sha256 of {name}", text] for name, text in details["sha256"].items()]
    return Table(["", ""], rows, (1,))
