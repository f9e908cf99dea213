"""A graph may have the very names that a cut, a mask, a copy or a bias would go by: each must get another one then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from nets import Row, image
from test_oracle import TABLE, check_masks, drawn
from test_refit import net

import onnx_amc
from onnx_amc.graph.groups import analyse
from onnx_amc.graph.load import load
from onnx_amc.graph.proto import names_of, unused
from onnx_amc.prune.surgery import Cut, cut, masked
from onnx_amc.run.capture import free_batch


def renamed(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """The model with another name for one of its weights."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    next(t for t in result.graph.initializer if t.name == old).name = new
    for node in result.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    return result


def added(row: Row) -> set[str]:
    """Names that are not the model's own but those of what is loaded, cut or masked."""
    model = row.model()
    analysis = analyse(load(model))
    kept = drawn(analysis, 0.5, 0)
    slices = [s for g in oracle.document_of(analysis, kept)["groups"] for s in g["slices"]]
    ours = (analysis.model.proto, cut(analysis, kept), masked(model, slices))
    return set().union(*(names_of(m.graph) for m in ours)) - names_of(model.graph)


FILLED = image("a fill that two read", "q = Conv (h, k) p = Relu (q) r = Conv (p, k)", 24, "float[8,8,1,1] k",
               weights={"k": np.full((8, 8, 1, 1), 0.1)})  # fmt: skip
SIZED = ["channel shuffle", "batch times heads at run time"]


@pytest.mark.parametrize("row", [FILLED, *(r for r in TABLE if r.name in SIZED)], ids=lambda row: row.name)
def test_what_is_added_keeps_clear_of_the_graphs_own_names(row: Row) -> None:
    names = added(row)
    assert names
    for name in names:
        model = renamed(row.model(), "w", name)
        analysis = analyse(load(model))
        assert sum(g.channels for g in analysis.groups) == row.prunable
        assert oracle.difference(analysis, drawn(analysis, 0.5, 0)) <= row.tolerance
        check_masks(analysis, drawn(analysis, 0.5, 0), row.tolerance)


def test_a_cut_model_can_be_cut_again() -> None:
    row = next(r for r in TABLE if r.name == "channel shuffle")
    analysis = analyse(load(row.model()))
    small = oracle.delivered(analysis, {g.name: (0, 1, 3) for g in analysis.groups})
    again = analyse(load(small))
    assert oracle.difference(again, {g.name: (0, 2) for g in again.groups}) <= row.tolerance


def test_a_bias_that_a_layer_gains_gets_a_name_of_its_own(tmp_path: Path) -> None:
    """Conv 'k' without a bias; what the normalisation behind it, or an Add, adds is called 'k/bias'."""
    data = tmp_path / "x.npz"
    np.savez(data, x=np.random.default_rng(1).standard_normal((64, 3, 6, 6), dtype=np.float32))
    options: dict[str, Any] = {"channels": 0.5, "policy": "uniform", "round_to": 1, "recover": False}
    for nodes, weights in (
        ("Add (k, o)", "float[8,1,1] o"),
        ("BatchNormalization (k, s, o, o, s)", "float[8] s, float[8] o"),
    ):
        model = image("n", f"g = Relu (h) k = Conv (g, u) q = {nodes} r = Relu (q)", 16, f"float[8,8,1,1] u, {weights}",
                      weights={"s": np.linspace(0.5, 1.5, 8)}).model()  # fmt: skip
        plain, taken = (onnx_amc.compress(m, data, **options).model for m in (model, renamed(model, "o", "k/bias")))
        assert oracle.gap(plain, taken) < 1e-6
        assert len({t.name for t in taken.graph.initializer}) == len(taken.graph.initializer)


def test_biases_are_written_over_whatever_they_are_called() -> None:
    analysis = net("""(float[N,3,6,6] x) => (float[N,4,6,6] y) <float[4,3,1,1] w, float[4,1,1] o>
        { y1 = Conv (x, w) y = Add (y1, o) }""")
    proto = renamed(analysis.model.proto, "o", "y1/bias")
    held = Cut(analysis, {}, {}, {"y1": np.ones(4)}, proto)
    held.write({}, {"y1": np.full(4, 2.0)})
    held.write({}, {"y1": np.full(4, 3.0)})
    values = oracle.constants(held.model)
    assert sorted(values) == ["w", "y1/bias", "y1/bias2"]
    assert values["y1/bias2"].tolist() == [3.0] * 4
    np.testing.assert_array_equal(values["y1/bias"], analysis.model.value("o"))


def test_a_freed_batch_leaves_other_tensors_alone() -> None:
    text = "(float[2,8] x) => (float[2,4] y) <int64[2] s, float[8,4] v> { r = Reshape (x, s) y = MatMul (r, v) }"
    model = load(Row("n", text, 0, weights={"s": [2, 8]}).model())
    proto = free_batch(renamed(model.proto, "v", "r/any"), model)
    x = np.ones((3, 8), np.float32)
    assert oracle.run(proto, [{"x": x}])[0][0].shape == (3, 4)


@pytest.mark.parametrize(("parted", "works"), [([2, -1, 3, 4, 4], True), ([2, 3, -1, 4, 4], False)])
def test_a_channel_shuffle_that_merges_the_batch_with_channels_is_freed(parted: list[int], *, works: bool) -> None:
    """As ShuffleNetV2 does it: (N x C / 2, 2, H x W), transposed, and parted again; what else might follow would mix samples."""
    text = """(float[1,6,4,4] x) => (float[2,1,3,4,4] y) <int64[3] s, int64[5] t>
        { r = Reshape (x, s) p = Transpose <perm = [1, 0, 2]> (r) y = Reshape (p, t) }"""
    model = load(Row("n", text, 0, weights={"s": [3, 2, 16], "t": parted}).model())
    proto = onnx.ModelProto.FromString(model.proto.SerializeToString())
    free_batch(proto, model)
    x = np.random.default_rng(0).normal(size=(3, 6, 4, 4)).astype(np.float32)
    if not works:
        assert proto.graph.node[0].input[1] == "s"
        return
    together = oracle.run(proto, [{"x": x}])[0][0]
    alone = oracle.run(model.proto, [{"x": x[i : i + 1]} for i in range(3)])
    np.testing.assert_array_equal(together, np.concatenate([a[0] for a in alone], axis=1))


def test_unused_names_are_counted_up() -> None:
    taken = {"a", "a2/end"}
    assert [unused("a", taken, ("", "/end")), unused("a", taken), unused("b", taken)] == ["a3", "a2", "b"]
    assert {"a3", "a3/end", "a2", "b"} <= taken
