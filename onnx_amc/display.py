"""What the command line shows: a live bar on a terminal, plain lines elsewhere, tables at the end."""

from __future__ import annotations

import sys
import time
from math import isfinite
from pathlib import Path
from typing import IO, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from onnx_amc.listener import Listener
from onnx_amc.report.view import milliseconds
from onnx_amc.run.metrics import shown
from onnx_amc.search.space import upward

WIDE = 1_000
"""Columns where there is no terminal: a group, or a remark, stays on one line, for grep and awk."""

LINE_EVERY = 5.0
"""Seconds between plain progress lines where there is no terminal."""


class Paper(Console):
    """What is printed on; where nobody reads any more, the command line says what becomes of the rest."""

    def on_broken_pipe(self) -> None:
        """Let the error pass, where rich ends the process."""
        raise BrokenPipeError


class Display(Listener):
    """Draws a run: progress on stderr, results on stdout.

    Args:
        quiet: Whether nothing is shown.
        results: Where results go instead.

    """

    def __init__(self, *, quiet: bool, results: IO[str] | None = None) -> None:
        self.quiet = quiet
        self._out, self._err = _paper(results or sys.stdout), _paper(sys.stderr)
        self._live = self._err.is_terminal and not quiet
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._err,
            transient=True,
        )
        self._task: TaskID | None = None
        self._name, self._total, self._begun, self._last = "", 0, 0.0, 0.0

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        """Take the bar away."""
        if self._live:
            self._bar.stop()

    def stage(self, name: str, total: int | None) -> None:
        """Begin a stage."""
        self._name, self._total = name, total or 0
        self._begun = self._last = time.monotonic()
        if self._live:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=total, note="")
        elif not self.quiet:
            self._err.print(f"{name} ..." + (f" ({total} steps)" if total else ""))

    def advance(self, done: int, note: str = "", total: int | None = None) -> None:
        """Move the bar, or print a line now and then."""
        self._total = total or self._total
        if self._live and self._task is not None:
            self._bar.update(self._task, completed=done, total=self._total or None, note=note)
        elif not self.quiet and (time.monotonic() - self._last > LINE_EVERY or done == self._total):
            self._last = time.monotonic()
            left = (self._last - self._begun) / max(done, 1) * max(self._total - done, 0)
            self._err.print(
                f"{self._name} {done}/{self._total}, about {left:.0f} s left" + (f"; {note}" if note else "")
            )

    def note(self, text: str) -> None:
        """Print a remark."""
        if not self.quiet:
            self._err.print(f"note: {text}")

    def warn(self, text: str) -> None:
        """Print what makes the result doubtful."""
        if not self.quiet:
            self._err.print(f"warning: {text}", style="bold yellow")

    def table(self, record: dict[str, Any], out: Path, folder: Path) -> None:
        """Print what was gained and lost."""
        if self.quiet:
            return
        original, small = record["original"], record["compressed"]
        uniform = record["baselines"].get("uniform")
        table = Table(title=f"{record['model']} -> {out}")
        int8 = record["int8"] if "score" in record.get("int8", {}) else None
        for name in ("", "original", *(["uniform"] if uniform else []), "delivered", *(["int8"] if int8 else [])):
            table.add_column(name, justify="left" if not name else "right")
        columns = [original, *([uniform] if uniform else []), small, *([int8] if int8 else [])]
        counted = [("of them not zero", "nonzeros")] if small["nonzeros"] < small["params"] else []
        rows = [("MACs", "macs"), ("parameters", "params"), *counted, ("bytes", "bytes")]
        for label, key in rows:
            table.add_row(label, *(_share(c[key], original[key]) for c in columns))
        table.add_row(
            "latency, batch 1",
            *(f"{milliseconds(c['latency_ms'])} ms ({c.get('latency_ratio', 1.0):.2f}x)" for c in columns),
        )
        if record["metric"]:
            table.add_row(f"score ({record['metric']})", *(shown(c["score"]) for c in columns))
        self._out.print(table)
        seconds, checks = record["seconds"], record["checks"]
        self._out.print(
            f"delivered: the plan of '{record['delivered']}'; masked equals cut to {checks['masked_equals_cut']:.1e}; "
            f"{seconds['total']:.0f} s ({seconds['search']:.0f} s search), {record['peak_rss_mb']} MB"
        )
        if trained := record["recover"]:
            self._out.print(
                f"recovered: {shown(trained['before'])} -> {shown(trained['after'])} on samples not trained on; "
                f"{trained['epochs']} epochs of {trained['samples']} samples, {seconds['recover']:.0f} s"
            )
        if int8:
            self._out.print(f"int8: {int8['out']}; {seconds['int8']:.0f} s")
        if drop := record.get("max_drop"):
            sure = "how sure is not known"
            if interval := drop["interval"]:
                sure = f"{interval[0]:+.2f} to {interval[1]:+.2f} with confidence {drop['confidence']:.0%}"
            self._out.print(
                f"lost: {drop['points']:+.2f} points of {drop['allowed']:g} allowed, {sure}, on {drop['samples']} samples"
                + ("" if drop["uniform"] is None else f"; uniform needs {drop['uniform']:.1%}")
            )
        if foretold := record.get("latency_table"):
            self._out.print(
                f"latency foretold: {foretold['ratio']:.2f}x"
                + (f", measured against the budget: {foretold['measured']:.2f}x" if "measured" in foretold else "")
                + (
                    f"; the table is {foretold['error']:.1%} off on other plans (median)"
                    if isfinite(foretold["error"])
                    else ""
                )
            )
        loose = [g["name"] for g in record["groups"] if "approximate" in g and g["kept"] < g["channels"]]
        if loose:
            self._out.print(
                f"approximate: the cut of {_listed(loose)} is not what masking gives; with it the outputs differ from those of the "
                f"masked original by {checks['approximate_difference']:.1e} before any refit"
            )
        self._out.print(f"plan: {folder / 'plan.json'}")

    def wrote(self, path: str) -> None:
        """Say where a page is."""
        self.say(f"report: {path}")

    def say(self, text: str) -> None:
        """Print a result of one line."""
        if not self.quiet:
            self._out.print(text)

    def inspection(self, found: dict[str, Any]) -> None:
        """Print groups, what is fixed and why, and what can be reached."""
        whole = max(found["macs"], 1)
        table = Table(title=f"{found['model']}: {found['macs']:,} MACs, {found['params']:,} parameters")
        for name in ("group", "members", "channels", "MACs it governs", "prunable"):
            table.add_column(
                name, justify="right" if name.startswith(("channels", "MACs")) else "left", overflow="fold"
            )
        for group in [*found["groups"], *found["fixed"]]:
            answer = "yes" if group["prunable"] else f"no: {group['reason']}"
            if group["approximate"]:
                answer = f"approximately: {group['approximate']}"
            members = _listed([m for m in group["members"] if m != group["name"]])
            table.add_row(group["name"], members, str(group["channels"]), _share(group["macs"], whole), answer)
        self._out.print(table)
        self._out.print(
            f"in reach: {found['reachable_ratio']:.1%} of the MACs; smallest budget: --flops {upward(found['smallest_ratio']):.4f} "
            f"({found['smallest_macs']:,} MACs)"
        )

    def latencies(self, rows: list[dict[str, Any]]) -> None:
        """Print latencies side by side."""
        table = Table(title="latency, batch 1, medians of runs in turn")
        for name in ("model", "ms", "ratio"):
            table.add_column(name, justify="left" if name == "model" else "right")
        for row in rows:
            table.add_row(row["model"], f"{row['latency_ms']:.3f}", f"{row['ratio']:.3f}")
        self._out.print(table)


def _paper(stream: IO[str]) -> Paper:
    """A stream to print on, as wide as its terminal."""
    wide = None if stream.isatty() else WIDE
    return Paper(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=wide is not None, width=wide)


def _listed(names: list[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _share(value: int, whole: int) -> str:
    return f"{value:,} ({value / max(whole, 1):.1%})"
