"""Dimensions that a model leaves open: which lengths they are taken to have, and that a cut holds at every other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import oracle
import pytest
from nets import Row

import onnx_amc
from onnx_amc import cli
from onnx_amc.errors import ModelError
from onnx_amc.graph.load import load

WAVES = """(float[N,T] x) => (float[N,5] y) <float[16,1,10] w, float[16,16,3] u, float[16,5] v, int64[1] a>
    { e = Unsqueeze (x, a) h = Conv <strides = [5]> (e, w) r = Relu (h) k = Conv <strides = [2]> (r, u)
      s = Relu (k) m = ReduceMean <axes = [2], keepdims = 0> (s) y = MatMul (m, v) }"""
POOLS = """(float[N,4,T] x) => (float[N,5] y) <float[8,4,1] w, float[8,5] v>
    { h = Conv (x, w) p = MaxPool <kernel_shape = [3], strides = [2]> (h)
      m = ReduceMean <axes = [2], keepdims = 0> (p) y = MatMul (m, v) }"""
SERIES = """(float[N,1,T] x) => (float[N,4] y) <float[16,1,3] w, float[16,16,3] u, float[16,64] a, float[64,4] v>
    { h = Conv <pads = [1, 1]> (x, w) r = Relu (h) k = Conv <pads = [1, 1]> (r, u) s = Relu (k)
      m = ReduceMean <axes = [2], keepdims = 0> (s) p = MatMul (m, a) q = Relu (p) y = MatMul (q, v) }"""
PLACES = """(float[N,3,H,W] x) => (float[N,3,P] y) <float[8,3,1,1] w, float[3,8,1,1] v, int64[3] s, int64[3] t>
    { h = Conv (x, w) f = Reshape (h, s) g = Transpose <perm = [0,2,1]> (f) p = MatMul (g, f) q = Softmax (p)
      c = Conv (h, v) d = Reshape (c, t) y = MatMul (d, q) }"""


@pytest.mark.parametrize(("text", "length"), [(WAVES, 64), (POOLS, 16)], ids=["convolutions of a sound", "a pool"])
def test_a_length_that_leaves_a_kernel_nothing_is_too_short(text: str, length: int) -> None:
    model = load(Row("short", text, 0, weights={"a": 1}).model())
    assert model.shapes["x"][-1] == length
    assert min(min(shape) for shape in model.shapes.values()) > 0


def noise(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}


def test_a_budget_counts_lengths_that_are_left_open_by_the_data(tmp_path: Path) -> None:
    """At length 1 the dense layers cost as much as the convolutions, at 50 next to nothing."""
    model, path, out = Row("series", SERIES, 0).model(), tmp_path / "m.onnx", tmp_path / "again.onnx"
    onnx.save(model, path)
    np.savez(tmp_path / "m.npz", x=noise(40, 1, 50)["x"])
    result = onnx_amc.compress(path, flops=0.5, policy="knapsack", recover=False, round_to=1)
    for proto, found in ((model, result.record["original"]), (result.model, result.record["compressed"])):
        assert found["macs"] == oracle.recounted(proto, {"x": (1, 1, 50)})
    assert 0.4 < result.record["compressed"]["macs"] / result.record["original"]["macs"] <= 0.5
    plan, told = tmp_path / "plan.json", tmp_path / "told.json"
    result.plan.save(plan, result.analysis)
    assert cli.main(["apply", str(path), str(plan), "-o", str(out), "--json", str(told)]) == 0
    assert out.read_bytes() == result.model.SerializeToString(deterministic=True)
    assert json.loads(told.read_text())["macs"] == result.record["compressed"]["macs"]
    assert onnx_amc.evaluate(out, noise(40, 1, 70), against=path)["samples"] == 40


def test_a_size_that_only_the_assumed_lengths_make_impossible_is_no_reason_to_refuse() -> None:
    """Each place of an image by each other: of 224 x 224 that is too much, of 16 x 16 it is not."""
    model = Row("non-local", PLACES, 0, weights={"s": [0, 8, -1], "t": [0, 3, -1]}).model()
    with pytest.raises(ModelError, match="impossible, or more than memory"):
        onnx_amc.inspect(model)
    data = noise(16, 3, 16, 16)
    result = onnx_amc.compress(model, data, channels=0.5, policy="uniform", recover=False, round_to=1)
    assert result.record["compressed"]["macs"] == oracle.recounted(result.model, {"x": (1, 3, 16, 16)})
