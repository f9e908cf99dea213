"""Dimensions that a model leaves open: which lengths they are taken to have, and that a cut holds at every other."""

from __future__ import annotations

import pytest
from nets import Row

from onnx_amc.graph.load import load

WAVES = """(float[N,T] x) => (float[N,5] y) <float[16,1,10] w, float[16,16,3] u, float[16,5] v, int64[1] a>
    { e = Unsqueeze (x, a) h = Conv <strides = [5]> (e, w) r = Relu (h) k = Conv <strides = [2]> (r, u)
      s = Relu (k) m = ReduceMean <axes = [2], keepdims = 0> (s) y = MatMul (m, v) }"""
POOLS = """(float[N,4,T] x) => (float[N,5] y) <float[8,4,1] w, float[8,5] v>
    { h = Conv (x, w) p = MaxPool <kernel_shape = [3], strides = [2]> (h)
      m = ReduceMean <axes = [2], keepdims = 0> (p) y = MatMul (m, v) }"""


@pytest.mark.parametrize(("text", "length"), [(WAVES, 64), (POOLS, 16)], ids=["convolutions of a sound", "a pool"])
def test_a_length_that_leaves_a_kernel_nothing_is_too_short(text: str, length: int) -> None:
    model = load(Row("short", text, 0, weights={"a": 1}).model())
    assert model.shapes["x"][-1] == length
    assert min(min(shape) for shape in model.shapes.values()) > 0
