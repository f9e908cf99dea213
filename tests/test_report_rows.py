"""What a report's charts and tables are made of: names, fronts, amounts, scripts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from test_report import EVIL

from onnx_amc.report import page, record, rows, view


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["/0/0.0/Conv", "/2/body/body.0/Conv", "/7/7.1/Gemm"], ["0.0", "2/body.0", "7.1"]),
        (["/net/a/Conv", "/net/b/Conv", "/net/a/Conv"], ["a", "b", "a"]),
        (["/a/Conv", "/a/Conv_1"], ["Conv", "Conv_1"]),
        (["/a/c1/Conv", "/a/s/Slice", "/a/s/Pad"], ["c1", "s/Slice", "s/Pad"]),
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


def test_a_plan_that_was_stopped_early_is_not_on_the_front() -> None:
    tried = [(0.4, 0.8, False), (0.45, 0.95, True), (0.5, 0.9, False)]
    trials = [
        {"source": "random", "ratio": r, "score": s, "reward": s, "loss": 0.0, "estimate": e} for r, s, e in tried
    ]
    run = record.Run(Path(), {}, {"trials": trials, "elsewhere": trials[1:2]})
    assert [r["ratio"] for r in rows.pareto_rows(run) if r["front"]] == [0.4, 0.5]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (325_400_448, "325 M"),
        (999, "999"),
        (10_332_884, "10.3 M"),
        (37_000, "37 k"),
        (999_499, "999 k"),
        (999_700, "1 M"),
        (999_960_000, "1 G"),
        (15_500_000_000_000, "15.5 T"),
    ],
)
def test_amounts(value: int, text: str) -> None:
    assert view.amount(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.0123"),
        (0.03, "0.0300"),
        (87.65, "87.7"),
        (125.0, "125"),
        (999.4, "999"),
        (999.7, "1,000"),
        (1234.5, "1,234"),
    ],
)
def test_a_time_of_seconds_is_no_power_of_ten(value: float, text: str) -> None:
    assert view.milliseconds(value) == text


@pytest.mark.parametrize(
    ("drop", "text"),
    [
        (
            {"points": 0.5, "interval": [-0.2, 1.2], "confidence": 0.95},
            "\u22120.50 points, \u22121.20 to +0.20 with confidence 95%.",
        ),
        ({"points": 0.0, "interval": None}, "+0.00 points."),
    ],
)
def test_a_loss_reads_as_one_wherever_it_was_measured(drop: dict[str, Any], text: str) -> None:
    told = {"metric": "top1", "original": {"score": 0.9}, "compressed": {"score": 0.895}, "max_drop": drop}
    found = view.loss(record.Run(Path(), told, {"samples": {"reward": 1000}}))
    assert found.startswith("\u22120.50 points of top1 (90.00 % \u2192 89.50 %)")
    assert found.endswith(f"On the samples that decide: {text}")


def confused(names: dict[str, str]) -> record.Run:
    """Of ten samples of class 0 seven are taken for it, two for class 1, and one for class 5, which no sample is of."""
    delivered = [[0, 0, 7], [0, 1, 2], [0, 5, 1], [1, 1, 10]]
    return record.Run(
        Path(), {}, {"confusion": {"names": names, "original": [[0, 0, 10], [1, 1, 10]], "delivered": delivered}}
    )


@pytest.mark.parametrize(
    ("names", "answers"),
    [
        ({"0": "cat", "1": "dog"}, ["cat", "dog", "other"]),
        ({"0": "cat", "1": "other"}, ["cat", "other", "any other"]),
        ({"0": "crane", "1": "crane"}, ["crane (0)", "crane (1)", "other"]),
    ],
)
def test_every_class_has_a_cell_of_its_own(names: dict[str, str], answers: list[str]) -> None:
    run = confused(names)
    assert [(r["answer"], r["delivered"]) for r in rows.confusion_rows(run)][:3] == list(
        zip(answers, [7, 2, 1], strict=True)
    )
    assert [row[0] for row in view.class_table(run).rows] == answers[:2]
    assert view.class_table(run).rows[0][-1] == f"{answers[1]} (2)"


def test_a_script_cannot_end_early() -> None:
    text = page._inline("a('</script>'); b('<!--'); c('</SCRIPT>')")
    assert not re.search("</script|<!--", text, re.IGNORECASE)


@pytest.mark.parametrize(
    ("granularity", "label", "of"),
    [("channel", "MACs", "parameters"), ("weight", "weights not zero", "parameters not zero")],
)
def test_a_zero_that_the_original_has_makes_no_run_one_of_single_weights(granularity: str, label: str, of: str) -> None:
    whole = {"macs": 200, "params": 100, "nonzeros": 99, "bytes": 400, "latency_ms": 1.0, "score": None}
    small = {
        "macs": 100,
        "params": 50,
        "nonzeros": 49,
        "bytes": 200,
        "latency_ms": 1.0,
        "latency_ratio": 1.0,
        "score": None,
    }
    told: dict[str, Any] = {"original": whole, "compressed": small, "metric": None, "delivered": "uniform"}
    told["budget"] = {"kind": "params", "ratio": 0.5}
    run = record.Run(Path(), told, {"granularity": granularity})
    assert view.tiles(run)[0].label == label
    assert ("not zero" in view.delivered(run)) == (granularity == "weight")
    assert view.asked(run) == f"At most 50 % of the {of}."
