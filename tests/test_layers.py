"""Which weights and biases the refit may write: none that anything else reads."""

from __future__ import annotations

import pytest
from test_refit import net

from onnx_amc.prune.layers import find_layers

BRANCHED = (
    "{ h = MatMul (x, w) y = Add (h, b) z = If (c) <then_branch = one () => (float[N,P,4] o) { o = %s }, "
    "else_branch = other () => (float[N,P,4] q) { q = Identity (y) }> }"
)


@pytest.mark.parametrize(
    "nodes",
    [
        "=> (float[N,5,4] y, float[6] z) <float[4,6] w> { t = Transpose (w) y = MatMul (x, t) z = ReduceMax <axes = [1]> (t) }",
        "=> (float[N,5,4] y, float[6,4] t) <float[4,6] w> { t = Transpose (w) y = MatMul (x, t) }",
        "=> (float[N,5,4] y, float[6,4] w) <float[6,4] w> { y = MatMul (x, w) }",
        f"=> (float[N,5,4] y, float[N,5,4] z) <float[6,4] w, float[4] b, bool c> {BRANCHED % 'MatMul (x, w)'}",
    ],
    ids=["behind a Transpose", "an output behind a Transpose", "an output", "in a branch"],
)
def test_a_weight_that_anything_else_reads_is_refused(nodes: str) -> None:
    layers, refused = find_layers(net(f"(float[N,5,6] x) {nodes}", c=True))
    assert not layers
    assert any("shared" in why for why in refused.values())


@pytest.mark.parametrize(
    "nodes",
    [
        "=> (float[N,4] y, float[4] b) <float[6,4] w, float[4] b> { h = MatMul (x, w) y = Add (h, b) }",
        f"=> (float[N,4] y, float[N,4] z) <float[6,4] w, float[4] b, bool c> {BRANCHED % 'Add (h, y)'}",
        f"=> (float[N,4] y, float[N,4] z) <float[6,4] w, float[4] b, bool c> {BRANCHED % 'Add (y, b)'}",
    ],
    ids=["an output", "a sum in a branch", "in a branch"],
)
def test_what_is_added_to_a_product_and_read_elsewhere_is_no_bias(nodes: str) -> None:
    (layer,), _ = find_layers(net(f"(float[N,6] x) {nodes}", c=True))
    assert layer.output == "h"
    assert layer.bias is None
    assert not layer.can_add_bias


@pytest.mark.parametrize(
    "nodes",
    [
        "=> (float[N,4] y, float[4] z) <float[6,4] w, float[4,1] b> { c = Flatten <axis = 0> (b) z = Exp (c) y = Gemm (x, w, c) }",
        "=> (float[N,4] y, float[4] b) <float[6,4] w, float[4] b> { y = Gemm (x, w, b) }",
        "=> (float[N,4] y) <float[6,4] w, float[4] b> { c = Abs (b) y = Gemm (x, w, c) }",
        "=> (float[4,4] y) <float[6,4] w, float[4,1] b> { y = Gemm (x, w, b) }",
    ],
    ids=["behind a Flatten", "an output", "computed", "one per row"],
)
def test_a_bias_that_cannot_be_written_keeps_its_layer_from_the_refit(nodes: str) -> None:
    """The weights would be fitted to an output that holds it, and it would be added once more."""
    layers, refused = find_layers(net(f"(float[N,6] x) {nodes}"))
    assert not layers
    assert "its bias is shared" in refused["y"]


@pytest.mark.parametrize(
    "nodes",
    [
        "(float[N,6,5] x) => (float[N,4,5] y) <float[8,6] w, float[4,8] v> { h = MatMul (w, x) r = Relu (h) y = MatMul (v, r) }",
        "(float[N,3,5,6] x) => (float[N,3,5,4] y) <float[6,8] w, float[3,8,4] v> { h = MatMul (x, w) y = MatMul (h, v) }",
    ],
    ids=["on the left", "several at once"],
)
def test_a_product_that_loses_channels_and_is_not_refitted_is_told(nodes: str) -> None:
    layers, refused = find_layers(net(nodes))
    assert "y" not in {layer.node for layer in layers}
    assert "no matrix on the right" in refused["y"]
