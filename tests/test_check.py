"""The self-check where a last bit decides what a network gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import Row
from onnx import numpy_helper

import onnx_amc
from onnx_amc.run.check import before_choices, difference

DETECTOR = """(float[N,3,80,80] x) => (float[N,300,4] boxes, float[N,300] best)
    <float[16,3,3,3] w, float[16,16,3,3] u, float[4,16,1,1] b, float[8,16,1,1] c, int64[3] s, int64[3] t, int64[1] k, int64[1] last>
    { h = Conv <pads = [1,1,1,1]> (x, w) r = Relu (h) g = Conv <pads = [1,1,1,1]> (r, u) q = Relu (g)
      b4 = Conv (q, b) b3 = Reshape (b4, s) p = Transpose <perm = [0,2,1]> (b3) c4 = Conv (q, c) c3 = Reshape (c4, t)
      sure = Sigmoid (c3) m = ReduceMax <axes = [1], keepdims = 0> (sure) best, i = TopK <axis = 1> (m, k)
      i3 = Unsqueeze (i, last) i4 = Concat <axis = 2> (i3, i3, i3, i3) boxes = GatherElements <axis = 1> (p, i4) }"""


def detector() -> onnx.ModelProto:
    """It is quite sure of many boxes: their scores lie closer than the last bits."""
    return Row("detector", DETECTOR, 0, weights={"s": [0, 4, -1], "t": [0, 8, -1], "k": 300, "last": 2}).model()


def with_more(name: str, added: float) -> onnx.ModelProto:
    """The detector with something added to one of its weights."""
    model = detector()
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(added), name))
    return model


def test_boxes_that_a_last_bit_puts_in_another_order_are_no_difference() -> None:
    result = onnx_amc.compress(detector(), channels=0.5, policy="uniform", refit=False, recover=False, round_to=1)
    assert result.record["checks"]["masked_equals_cut"] < 1e-5


@pytest.mark.parametrize("name", ["b", "c", "u"])
def test_what_is_chosen_from_is_compared_itself(name: str) -> None:
    """Scores that differ choose others: that excuses neither them nor the boxes."""
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 80, 80), dtype=np.float32)}
    assert difference(detector(), with_more(name, 0.1), feed) > 0.01
    assert before_choices(detector(), with_more(name, 0.1), feed) > 0.01
    assert before_choices(detector(), detector(), feed) == float("inf"), "no near tie is to blame"
