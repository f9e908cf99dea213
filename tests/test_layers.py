"""Which weights and biases the refit may write, none that anything else reads, and that it does so wherever they lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from test_refit import affine, by_channel, net, noise, refitter, run
from test_sequential import ALL, TINY

from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import load
from onnx_amc.prune.layers import find_layers
from onnx_amc.prune.refit import read, storable
from onnx_amc.prune.surgery import cut
from onnx_amc.run.sequential import Sequential

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
        "(float[6,5] x) => (float[4,5] y) <float[8,6] w, float[4,8] v> { h = MatMul (w, x) r = Relu (h) y = MatMul (v, r) }",
        "(float[N,2,6,5] x) => (float[N,2,4,5] y) <float[8,6] w, float[4,8] v> { h = MatMul (w, x) y = MatMul (v, h) }",
        "(float[6,2] x) => (float[4,2] y) <float[8,6] w, float[4,8] v> { h = Gemm (w, x) r = Relu (h) y = Gemm (v, r) }",
        "(float[N,3,5,6] x) => (float[N,3,5,4] y) <float[6,8] w, float[3,8,4] v> { h = MatMul (x, w) y = MatMul (h, v) }",
    ],
    ids=["on the left of one sample", "on the left of many axes", "on the left in a Gemm", "several at once"],
)
def test_a_product_that_loses_channels_and_is_not_refitted_is_told(nodes: str) -> None:
    layers, refused = find_layers(net(nodes))
    assert "y" not in {layer.node for layer in layers}
    assert "no single matrix on the right" in refused["y"]


@pytest.mark.parametrize(
    ("listed", "refitted", "biased"), [("v", "h", True), ("c", "hy", False), ("wv", "hy", True), ("", "hy", True)]
)
def test_what_a_caller_may_replace_is_not_written_unless_most_matrices_are_listed_so(
    listed: str, refitted: str, *, biased: bool
) -> None:
    model = net("""(float[N,6] x) => (float[N,4] y) <float[6,8] w, float[8,4] v, float[4] c> {
        h = MatMul (x, w) r = Relu (h) k = MatMul (r, v) y = Add (k, c) }""").model.original
    for tensor in model.graph.initializer:
        if tensor.name in listed:
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    layers, refused = find_layers(analyse(load(model)))
    assert [layer.node for layer in layers] == ["h", "k"][: len(refitted)]
    assert list(refused) == ["k"][: 2 - len(refitted)]
    assert len(refitted) == 1 or (layers[1].bias is not None) == biased


# ---- behind a Cast --------------------------------------------------------------------------------------------------

CAST = """(TO[N,3,6,6] x) => (TO[N,5,4,4] y) <TO[8,3,3,3] w, TO[8] b, FROM[5,8,3,3] v> {
    h = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu (h) c = Cast <to = CODE> (v) y = Conv (r, c) }"""
KINDS = {"float": 1, "float16": 10, "bfloat16": 16}


def cast(stored: str, computed: str) -> Analysis:
    text = CAST.replace("FROM", stored).replace("TO", computed).replace("CODE", str(KINDS[computed]))
    pairs = np.tile(np.arange(4), 2)
    plain = net(text)
    return net(text, w=plain.model.value("w")[pairs], b=plain.model.value("b")[pairs])


@pytest.mark.parametrize(
    ("stored", "computed", "near"),
    [("float16", "float", 3e-3), ("bfloat16", "float", 3e-2), ("float", "float16", 1e-2)],
)
def test_a_weight_behind_a_cast_is_refitted_in_the_type_in_which_it_is_stored(
    stored: str, computed: str, near: float
) -> None:
    """Of two equal channels one goes; the reader, whose bias has the type that it computes in, makes up for it."""
    analysis = cast(stored, computed)
    (_, layer), refused = find_layers(analysis)
    assert not refused
    data, (group,) = noise(analysis), analysis.groups
    x, y = run(analysis.model.proto, data, [layer.x, layer.output])
    np.testing.assert_allclose(affine(analysis, layer, x), by_channel(y, layer), atol=near)
    kept = {group.name: (0, 1, 2, 3)}
    once = refitter(analysis, data).solve(kept)
    effort = replace(ALL, ridges=TINY)
    again = Sequential(analysis, [layer], data, np.arange(len(data)), effort, seed=0).refine(kept, {}, {})
    plain, *found = (run(cut(analysis, kept, *v), data, ["y"])[0] for v in (({}, {}), once, again))
    assert np.abs(plain - y).max() > 0.1
    for mended in found:
        np.testing.assert_allclose(mended, y, atol=near)
    model = cut(analysis, kept, *again)
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert (kinds["v"], kinds["y/bias"]) == (KINDS[stored], KINDS[computed])


def test_a_weight_that_the_type_behind_the_cast_cannot_hold_is_not_written() -> None:
    (_, layer), _ = find_layers(cast("float", "float16"))
    assert storable(layer.weight, np.full(4, 6e4), np.zeros(4))
    assert not storable(layer.weight, np.full(4, 7e4), np.zeros(4))
    assert layer.weight.kinds == (KINDS["float"], KINDS["float16"])


def test_what_a_cast_rounds_is_read_as_it_is_computed_with() -> None:
    analysis = net("""(float[N,6] x) => (float[N,4] y) <float[6,4] w> {
        h = Cast <to = 10> (w) t = Cast <to = 1> (h) y = MatMul (x, t) }""")
    (layer,), _ = find_layers(analysis)
    halves = analysis.model.value("w").astype(np.float16).astype(np.float64)
    assert np.array_equal(read(analysis, layer.weight)[0, :, :, 0], halves.T)
