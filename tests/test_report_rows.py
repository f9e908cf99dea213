"""What a report's charts and tables are made of: names, fronts, amounts, scripts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_report import EVIL

from onnx_amc.report import page, record, rows, view


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["/0/0.0/Conv", "/2/body/body.0/Conv", "/7/7.1/Gemm"], ["0.0", "2/body.0", "7.1"]),
        (["/net/a/Conv", "/net/b/Conv", "/net/a/Conv"], ["a", "b", "a"]),
        (["/a/Conv", "/a/Conv_1"], ["Conv", "Conv_1"]),
        (["conv1", "conv2"], ["conv1", "conv2"]),
        (["/x/Conv"], ["x"]),
        ([EVIL, ""], [EVIL, ""]),
        ([], []),
    ],
)
def test_short_names_stay_different(names: list[str], short: list[str]) -> None:
    assert rows.short_names(names) == short
    assert len(set(short)) == len(set(names))


def test_the_front_is_what_no_plan_beats() -> None:
    tried = [(0.5, 0.9), (0.4, 0.8), (0.45, 0.7), (0.5, 0.85), (0.6, 0.9)]
    trials = [{"source": "random", "ratio": r, "score": s, "reward": s, "loss": 0.0} for r, s in tried]
    run = record.Run(Path(), {}, {"trials": trials})
    assert [(r["ratio"], r["score"]) for r in rows.pareto_rows(run) if r["front"]] == [(0.5, 0.9), (0.4, 0.8)]


@pytest.mark.parametrize(
    ("value", "text"), [(325_400_448, "325 M"), (999, "999"), (10_332_884, "10.3 M"), (37_000, "37 k")]
)
def test_amounts(value: int, text: str) -> None:
    assert view.amount(value) == text


def test_a_script_cannot_end_early() -> None:
    text = page._inline("a('</script>'); b('<!--'); c('</SCRIPT>')")
    assert not re.search("</script|<!--", text, re.IGNORECASE)
