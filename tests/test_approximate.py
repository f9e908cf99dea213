"""--approximate: streams under norms and reductions, marked wherever the cut shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import oracle
import pytest
from nets import Row, flat, image

import onnx_amc
from onnx_amc.cli import main
from onnx_amc.graph import cost
from onnx_amc.graph.groups import analyse
from onnx_amc.graph.load import load

FEED_FORWARD = flat("ff", "n = LayerNormalization (h, s, o) q = MatMul (n, k) p = Relu (q) t = MatMul (p, l) r = Add (t, h)", 12,
                    "float[8] s, float[8] o, float[8,12] k, float[12,8] l")  # fmt: skip
LOOSE = [
    FEED_FORWARD,
    flat("RMS", "r = RMSNormalization (h, s)", 8, "float[8] s", opset=23, ir=11),
    flat("decomposed", """m = ReduceMean <axes = [-1]> (h) d = Sub (h, m) e = Mul (d, d) v2 = ReduceMean <axes = [-1]> (e)
        q = Sqrt (v2) i = Div (d, q) j = Mul (i, s) r = Add (j, o)""", 8, "float[8] s, float[8] o"),
    flat("decomposed by pools", """m = GlobalAveragePool (h) d = Sub (h, m) e = Mul (d, d) v2 = GlobalAveragePool (e)
        q = Sqrt (v2) i = Div (d, q) j = Mul (i, s) r = Add (j, o)""", 8, "float[8] s, float[8] o"),
    image("one group", "r = GroupNormalization <num_groups = 1> (h, s, o)", 8, "float[8] s, float[8] o", opset=21),
    image("LRN", "r = LRN <size = 3, alpha = 1.0> (h)", 8),
    image("spatial attention", "q = ReduceMean <axes = [1]> (h) p = Sigmoid (q) r = Mul (h, p)", 8),
]  # fmt: skip


@pytest.mark.parametrize("row", LOOSE, ids=lambda row: row.name)
def test_a_loose_cut_is_valid_priced_and_says_so(row: Row) -> None:
    strict, loose = (analyse(load(row.model()), approximate=flag) for flag in (False, True))
    count = sum(g.channels for g in loose.groups if g.doubt)
    assert count == (8 if row is FEED_FORWARD else row.prunable)
    assert sum(g.channels for g in strict.groups) == sum(g.channels for g in loose.groups) - count
    assert any("only --approximate cuts it" in str(g.reason) for g in strict.fixed)
    kept = {g.name: tuple(range(g.channels // 2)) for g in loose.groups}
    document, result = oracle.document_of(loose, kept), oracle.delivered(loose, kept)
    assert oracle.misread(row.model(), document, result) == []
    assert oracle.mispriced(loose, kept, result) == []
    assert [g for g in document["groups"] if "approximate" in g]
    assert oracle.gap(oracle.masked(row.model(), document), result) > 1e-3, "so it is right to call it approximate"


def test_what_was_exact_stays_exact_beside_it() -> None:
    analysis = analyse(load(FEED_FORWARD.model()), approximate=True)
    kept = {g.name: tuple(range(g.channels // 2)) for g in analysis.groups if g.doubt is None}
    assert list(kept.values()) == [tuple(range(6))]
    assert oracle.difference(analysis, kept) < 1e-5


def test_the_command_marks_it_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, record = tmp_path / "m.onnx", tmp_path / "small.onnx", tmp_path / "record.json"
    onnx.save(FEED_FORWARD.model(), source)
    np.savez(tmp_path / "m.npz", x=np.random.default_rng(0).standard_normal((64, 5, 6), dtype=np.float32))
    argv = ["compress", str(source), "--flops", "0.5", "--policy", "uniform", "--round-to", "1", "-o", str(out)]
    assert main([*argv, "--approximate", "--json", str(record)]) == 0
    shown = capsys.readouterr().out
    assert "approximate: the cut of" in shown
    told = json.loads(record.read_text())
    assert told["checks"]["masked_equals_cut"] < 1e-5 < told["checks"]["approximate_difference"]
    assert [g for g in told["groups"] if "statistics over it" in g.get("approximate", "")]
    plan = json.loads((tmp_path / "small.run" / "plan.json").read_text())
    assert plan["approximate"] is True
    before = out.read_bytes()
    assert main(["apply", str(source), str(tmp_path / "small.run" / "plan.json"), "-o", str(out)]) == 0
    assert out.read_bytes() == before
    assert main(["inspect", str(source), "--approximate"]) == 0
    assert "approximately: LayerNormalization" in capsys.readouterr().out


def test_without_it_less_is_in_reach() -> None:
    found = [onnx_amc.inspect(FEED_FORWARD.model(), round_to=1, approximate=flag) for flag in (False, True)]
    assert found[1]["smallest_ratio"] < found[0]["smallest_ratio"]
    assert found[1]["reachable_ratio"] == 1.0 > found[0]["reachable_ratio"]
    assert cost.macs(analyse(load(FEED_FORWARD.model())))(np.array([12])) == found[0]["macs"]
