"""What counts as a parameter and as a byte: weights in Constant nodes, weights that come sparse, files that know no sparse ones."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from nets import Row
from onnx import helper, numpy_helper

import onnx_amc
from onnx_amc import pipeline
from onnx_amc.compression import Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.delivery import figures
from onnx_amc.errors import BudgetError
from onnx_amc.granularity import channels_of, units_of, weights_of
from onnx_amc.graph import cost, light
from onnx_amc.graph.groups import analyse
from onnx_amc.graph.load import load
from onnx_amc.listener import Listener
from onnx_amc.pipeline import compress
from onnx_amc.prune.surgery import cut, finish
from onnx_amc.training import course_of

MODELS = Path(__file__).parents[1] / "models"
MLP, DATA = MODELS / "digits_mlp.onnx", MODELS / "digits_mlp.npz"
WEIGHTS = ("1.weight", "3.weight", "5.weight", "7.weight")
CUT: dict[str, Any] = {"policy": "uniform", "refit": False, "recover": False}


def in_nodes(names: Collection[str]) -> onnx.ModelProto:
    """The MLP, some of its weights in Constant nodes."""
    model = onnx.load(MLP)
    graph = model.graph
    moved = [t for t in graph.initializer if t.name in names]
    left = [t for t in graph.initializer if t.name not in names]
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in moved]
    return helper.make_model(
        helper.make_graph([*nodes, *graph.node], graph.name, graph.input, graph.output, left),
        ir_version=model.ir_version,
        opset_imports=model.opset_import,
    )


@cache
def sparse(share: float = 0.2) -> onnx.ModelProto:
    """The MLP with a fifth of its parameters, stored sparse."""
    model = onnx_amc.compress(MLP, params=share, granularity="weight", **CUT).model
    assert len(model.graph.sparse_initializer) == len(WEIGHTS)
    return model


def alive(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Where each weight is not zero."""
    loaded = load(model)
    return {name: loaded.value(name) != 0 for name in WEIGHTS}


# ---- weights in Constant nodes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("1.bias", "7.bias")], ids=["weights", "biases too"])
def test_weights_in_constant_nodes_count_as_those_in_initializers(more: tuple[str, ...]) -> None:
    """Where all of them are."""
    model, plain = in_nodes((*WEIGHTS, *more)), load(MLP)
    analysis = analyse(load(model))
    for key in ("params", "nonzeros"):
        assert figures(model)[key] == figures(model, analysis)[key] == figures(plain.original)[key]
    for granularity in ("channel", "weight"):
        settings = Settings(Budget("params", 0.5), granularity=granularity)
        ours, theirs = units_of(analysis, settings), units_of(analyse(plain), settings)
        assert ours.wholes["params"] == theirs.wholes["params"]
        assert ours.space(settings).price(ours.sizes) == ours.wholes["params"]


def test_a_constant_beside_weights_is_no_parameter() -> None:
    model, plain = in_nodes(("3.weight",)), load(MLP)
    analysis = analyse(load(model))
    assert figures(model)["params"] == figures(plain.original)["params"] - plain.value("3.weight").size
    assert weights_of(analysis, Settings(Budget("params", 0.5), granularity="weight")).names == tuple(
        name for name in WEIGHTS if name != "3.weight"
    )


@pytest.mark.parametrize("names", [("1.weight",), WEIGHTS], ids=["one", "all"])
@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_a_budget_of_parameters_holds_where_weights_are_constant_nodes(
    granularity: str, names: tuple[str, ...]
) -> None:
    record = onnx_amc.compress(in_nodes(names), params=0.3, granularity=granularity, **CUT).record
    small, whole = record["compressed"], record["original"]
    assert 0.25 * whole["params"] < small["nonzeros"] <= 0.3 * whole["params"]


@pytest.mark.parametrize(
    ("nodes", "counted"),
    [
        ("k = Constant <value = float[8] {1,2,3,4,5,6,7,8}> () y = Mul (h, k)", 0),
        ("k = Constant <value_floats = [1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0]> () y = MatMul (x, k)", 8),
        ("k = Constant <value = float[2,8] {1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6}> () t = Transpose (k) y = MatMul (x, t)", 16),
    ],
    ids=["a factor", "plain floats", "behind a Transpose"],
)  # fmt: skip
def test_only_what_weighs_an_input_counts_of_constant_nodes(nodes: str, counted: int) -> None:
    shape = "float[N]" if "value_floats" in nodes else "float[N,2]" if counted else "float[N,8]"
    model = Row("", f"(float[N,8] x) => ({shape} y) <float[8] w> {{ h = Add (x, w) {nodes} }}", 8).model()
    analysis = analyse(load(model))
    full = np.array([g.channels for g in analysis.groups], dtype=np.int64)
    assert figures(model)["params"] == cost.params(analysis)(full) == 8 + counted


def test_constants_inside_functions_count_as_they_do_once_those_are_written_out() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[N,2] x) => (float[N,2] y) { h = own.turn (x) y = own.turn (h) }
        <domain: "own", opset_import: ["" : 17]>
        turn (x) => (y) { w = Constant <value = float[2,2] {1,2,3,4}> () y = MatMul (x, w) }"""
    model = onnx.parser.parse_model(text)
    analysis = analyse(load(model))
    assert figures(model)["params"] == figures(model)["nonzeros"] == 8
    assert cost.params(analysis)(np.array([g.channels for g in analysis.groups], dtype=np.int64)) == 8


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_vectors_that_are_stored_once_count_once(granularity: str) -> None:
    layers = "".join(
        f"h{i} = MatMul (y{i}, w{i}) r{i} = Relu (h{i}) y{i + 1} = BatchNormalization (r{i}, g, z, m, v) "
        for i in range(4)
    )
    weights = "float[16] g, float[16] z, float[16] m, float[16] v, " + ", ".join(f"float[16,16] w{i}" for i in range(4))
    row = Row(
        "", f"(float[N,16] y0) => (float[N,2] y) <{weights}, float[16,2] u> {{ {layers} y = MatMul (y4, u) }}", 16
    )
    for share in (1.0, 0.6, 0.5):
        record = onnx_amc.compress(row.model(), params=share, granularity=granularity, round_to=1, **CUT).record
        assert record["original"]["params"] == 4 * 16 + 4 * 256 + 32
        assert (share - 0.1) * 1120 < record["compressed"]["nonzeros"] <= share * 1120


def test_a_share_of_nothing_is_refused() -> None:
    row = Row("", """(float[7,N,3] x) => (float[7,1,N,2] y) <float[1,16,3] w, float[1,16,4] q, float[1,8,4] u, float[1,8,2] v> {
        h = LSTM <hidden_size = 4> (x, w, q) a = Constant <value_ints = [1]> () s = Squeeze (h, a)
        y = LSTM <hidden_size = 2> (s, u, v) }""", 4)  # fmt: skip
    with pytest.raises(BudgetError, match="has no MACs"):
        onnx_amc.compress(row.model(), flops=0.5, **CUT)


# ---- weights that come sparse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["params", "size"])
@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.3])
def test_what_is_left_of_sparse_weights_is_of_those_that_are_not_zero(kind: str, ratio: float) -> None:
    budget: dict[str, Any] = {kind: ratio}
    result = onnx_amc.compress(sparse(), granularity="weight", **CUT, **budget)
    key = "nonzeros" if kind == "params" else "bytes"
    assert 0.97 * ratio < result.record["compressed"][key] / result.record["original"][key] <= ratio
    assert len(result.model.graph.sparse_initializer) == len(WEIGHTS)
    before, after = alive(sparse()), alive(result.model)
    assert all((before[n] >= after[n]).all() for n in WEIGHTS), "the largest stay"


def test_the_whole_of_a_sparse_file_is_the_file() -> None:
    for kind in ("params", "size"):
        settings = Settings(Budget(kind, 1.0), granularity="weight")
        units = weights_of(analyse(load(sparse())), settings)
        assert units.space(settings).price(units.sizes) == units.wholes[kind]
        assert units.wholes == {"params": figures(sparse())["nonzeros"], "size": light.size(sparse())}
        assert units.sizes.tolist() == [int(a.sum()) for a in alive(sparse()).values()]


def test_sparse_weights_that_are_left_alone_stay_sparse_through_refit_and_training() -> None:
    how: dict[str, Any] = {"policy": "uniform", "recover": True, "recover_epochs": 1, "keep": ("3.weight", "5.weight")}
    result = onnx_amc.compress(sparse(), DATA, size=0.7, granularity="weight", **how)
    assert result.record["recover"]["epochs"] == 1
    assert result.record["compressed"]["bytes"] <= 0.7 * result.record["original"]["bytes"]
    before, after = alive(sparse()), alive(result.model)
    for name in how["keep"]:
        assert np.array_equal(before[name], after[name])
    run = Compression(sparse(), DATA, Settings(Budget("size", 0.7), granularity="weight"), Listener())
    task = run.builder.task({"1.weight": 100}, sparse(), np.arange(2), course_of(run.settings, 2))
    assert task.thinned == set(WEIGHTS), "whether a training is kept or not"


def test_zeros_that_are_stored_dense_are_not_counted_either() -> None:
    dense = load(sparse()).proto
    result = onnx_amc.compress(dense, params=0.5, granularity="weight", **CUT)
    assert result.record["original"]["nonzeros"] == figures(sparse())["nonzeros"]
    assert 0.48 < result.record["compressed"]["nonzeros"] / result.record["original"]["nonzeros"] <= 0.5


def test_a_layer_of_zeros_has_nothing_to_lose() -> None:
    model = onnx.load(MLP)
    empty = next(t for t in model.graph.initializer if t.name == "5.weight")
    empty.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(empty)), empty.name))
    settings = Settings(Budget("params", 0.5), granularity="weight")
    units = weights_of(analyse(load(model)), settings)
    assert units.names == tuple(n for n in WEIGHTS if n != "5.weight")
    assert any("its weights are zero" in why for why in units.blocked)


def test_a_pattern_counts_places_and_not_what_lies_there() -> None:
    result = onnx_amc.compress(sparse(0.6), params=0.6, granularity="weight", pattern=(1, 4), **CUT)
    assert result.record["compressed"]["nonzeros"] <= 0.6 * result.record["original"]["nonzeros"]
    cut = [g for g in result.record["groups"] if g["kept"] < g["weights"]]
    assert cut
    for group in cut:
        rows = load(result.model).value(group["name"])
        assert np.count_nonzero(rows.reshape(len(rows), -1, 4), axis=2).max() <= 1


def test_a_pattern_with_more_room_than_weights_fills_nothing() -> None:
    thin: dict[str, Any] = {"granularity": "weight", "policy": "uniform", "recover": False}
    model = onnx_amc.compress(MLP, params=0.6, keep=("1.weight", "5.weight", "7.weight"), refit=False, **thin).model
    record = onnx_amc.compress(model, DATA, params=0.75, pattern=(2, 4), **thin).record
    assert 0.5 < record["compressed"]["nonzeros"] / record["original"]["nonzeros"] <= 0.75


def test_shifts_of_zero_are_priced_as_what_training_makes_of_them() -> None:
    model, shifts = onnx.load(MLP), 0
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".bias"):
            tensor.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(tensor), tensor.name))
            shifts += int(np.prod(tensor.dims))
    settings = Settings(Budget("params", 1.0), granularity="weight")
    units = weights_of(analyse(load(model)), settings)
    assert units.prices["params"](units.sizes[None])[0] == units.wholes["params"] + shifts
    assert units.space(settings).feasible(units.sizes), "all of it is all of it"


@pytest.mark.parametrize("ratio", [0.8, 0.5])
def test_shares_of_a_sparse_file_are_of_the_file(ratio: float) -> None:
    (result,) = onnx_amc.pareto(sparse(), DATA, size=ratio, policy="uniform", recover=False)
    left = result.record["compressed"]["bytes"] / result.record["original"]["bytes"]
    assert pipeline.front([result])[0]["ratio"] == pytest.approx(left, abs=0.05)


def test_channels_of_sparse_weights_are_priced_as_they_are_delivered() -> None:
    analysis = analyse(load(sparse()))
    units = channels_of(analysis, Settings(Budget("size", 0.5)))
    assert units.wholes["size"] == light.size(sparse())
    assert units.prices["size"](units.sizes[None])[0] == pytest.approx(light.size(analysis.model.proto), rel=0.001)
    record = onnx_amc.compress(sparse(), size=0.5, **CUT).record
    assert record["compressed"]["bytes"] <= 0.5 * record["original"]["bytes"]
    with pytest.raises(BudgetError, match=r"0\.1 of the bytes cannot be reached by cutting channels.*stored dense"):
        onnx_amc.compress(sparse(), size=0.1, **CUT)


# ---- files that know no sparse weights, and what is said of the smallest ----------------------------------------------


@pytest.mark.parametrize(("ir", "listed"), [(5, False), (8, True)], ids=["below version 6", "weights are inputs"])
def test_what_cannot_be_stored_sparse_is_priced_dense(ir: int, listed: bool) -> None:
    model = onnx.load(MLP)
    model.ir_version = ir
    if listed:
        known = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in model.graph.initializer]
        model.graph.input.extend(known)
    with pytest.raises(
        BudgetError, match=r"^\S+ 0\.5: 0\.5 of the bytes cannot be reached; the smallest is 1\.0000. In"
    ) as found:
        onnx_amc.compress(model, size=0.5, granularity="weight", **CUT)
    assert ("stays dense" if listed else "version 5") in str(found.value)
    record = onnx_amc.compress(model, params=0.5, granularity="weight", **CUT).record
    assert record["compressed"]["nonzeros"] <= 0.5 * record["original"]["params"]


def test_a_plan_that_turns_out_too_large_is_told_of_by_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_amc.compression.actual_cost", lambda *_: lambda model: 3 * light.size(model))
    with pytest.raises(BudgetError, match=r"0\.08 of the bytes was asked for") as found:
        onnx_amc.compress(MLP, size=0.08, granularity="weight", **CUT)
    least = float(str(found.value.fix).split()[2])
    assert 0.1 < least < 0.24, "of the smallest plan, three times what it takes"
    assert f"the smallest measured is {least:.4f}" in found.value.what
    enough = onnx_amc.compress(MLP, size=least, granularity="weight", **CUT)
    assert 3 * light.size(enough.model) <= least * MLP.stat().st_size


@pytest.mark.parametrize("keep", [(), ("3.weight",), ("1.weight", "3.weight")], ids=len)
@pytest.mark.parametrize("least", [0.03, 0.2])
def test_what_can_be_reached_does_not_depend_on_what_is_asked_for(keep: tuple[str, ...], least: float) -> None:
    analysis = analyse(load(MLP))
    found = set()
    for ratio in (0.01, 0.15, 0.3, 0.7, 1.0):
        settings = Settings(Budget("params", ratio), granularity="weight", keep=keep, min_keep=least)
        units = weights_of(analysis, settings)
        found.add(int(units.prices["params"](np.array([lv[0] for lv in units.levels])[None])[0]))
    sizes = dict(zip(units.names, units.sizes.tolist(), strict=True))
    rest = units.wholes["params"] - sum(sizes.values())
    assert found == {rest + sum(n if name in keep else int(np.ceil(least * n)) for name, n in sizes.items())}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"keep": ("3.weight",)}, "In the way: 3.weight (--keep)\n  -> ask for 0.5205 or more, or lower --min-keep"),
        ({"pattern": (2, 4)}, "In the way: --pattern, which leaves 2 of 4\n  -> ask for 0.5051 or more, or take another --pattern"),
        ({"pattern": (2, 6)}, "leaves 2 of 6; 1.weight (its 64 inputs are not a whole number of times 6)"),
    ],
)  # fmt: skip
def test_a_budget_out_of_reach_names_the_weights_that_stay(more: dict[str, Any], said: str) -> None:
    with pytest.raises(BudgetError, match=re.escape(said)):
        Compression(MLP, DATA, Settings(Budget("params", 0.1), granularity="weight", **more), Listener())


def recurrent() -> onnx.ModelProto:
    """Y = LSTM(x), with all of its weights in that."""
    rng = np.random.default_rng(0)
    shapes = {"w": (1, 32, 8), "r": (1, 32, 8)}
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 1, 8])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4, 1, 1, 8])
    graph = helper.make_graph([helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8)], "g", [x], [y], weights)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def test_a_budget_out_of_reach_names_weights_that_no_product_has() -> None:
    with pytest.raises(BudgetError, match=r"In the way: w \(weights of LSTM stay\); r \(weights of LSTM stay\)"):
        Compression(recurrent(), None, Settings(Budget("params", 0.5), granularity="weight"), Listener())


def test_no_smaller_budget_is_proposed_where_there_is_none() -> None:
    model = onnx.load(MLP)
    model.ir_version = 5
    with pytest.raises(BudgetError, match=r"smallest is 1\.\d+.*\n  -> lower --min-keep, or --keep less$"):
        Compression(model, DATA, Settings(Budget("size", 0.5), granularity="weight"), Listener())


def test_uniform_pruning_spends_the_budget_on_what_is_not_kept() -> None:
    settings = Settings(Budget("params", 0.6), granularity="weight", keep=("3.weight",), **CUT)
    run = Compression(MLP, None, settings, Listener())
    counts, space = run.choose(), run.search.space
    assert 0.995 * space.limit < space.price(counts) <= space.limit
    shares = (counts / space.full)[[n != "3.weight" for n in run.units.names]]
    assert np.ptp(shares) < 0.02


# ---- what a cut drops besides channels ------------------------------------------------------------------------------


def with_unread(name: str) -> onnx.ModelProto:
    """A model, and as much again of weights that nothing reads."""
    model = onnx.load(MODELS / f"{name}.onnx")
    unread = np.ones(sum(int(np.prod(t.dims)) for t in model.graph.initializer), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(unread, "unread"))
    return model


@pytest.mark.parametrize("name", ["digits_mlp", "digits_mobilenet"])
def test_weights_that_nothing_reads_are_the_first_to_go(name: str) -> None:
    plain, model = onnx.load(MODELS / f"{name}.onnx"), with_unread(name)
    for kind, key in (("params", "params"), ("size", "bytes")):
        far, near, alone = (
            compress(m, None, Settings(Budget(kind, ratio), **CUT)).record
            for m, ratio in ((model, 0.2), (model, 0.9), (plain, 0.4))
        )
        assert far["compressed"][key] <= 0.2 * far["original"][key]
        assert far["compressed"]["macs"] == pytest.approx(alone["compressed"]["macs"], rel=0.05)
        assert near["compressed"]["macs"] > 0.8 * near["original"]["macs"]


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_biases_that_differ_after_the_refit_are_priced_one_by_one(granularity: str) -> None:
    """Four pairs of layers, of which all biases of a width are stored once, as long as they are equal."""
    layers = "".join(
        f"h{i} = Gemm (x{i}, w{i}, b) r{i} = Relu (h{i}) x{i + 1} = Gemm (r{i}, u{i}, c) " for i in range(4)
    )
    weights = ", ".join(f"float[16,512] w{i}, float[512,16] u{i}" for i in range(4))
    text = f"(float[N,16] x0) => (float[N,16] x4) <{weights}, float[512] b, float[16] c> {{ {layers} }}"
    analysis = analyse(load(Row("", text, 0).model()))
    settings = Settings(Budget("size", 0.5), granularity=granularity)
    units = units_of(analysis, settings)
    assert units.prices["size"](units.sizes[None])[0] == pytest.approx(analysis.model.bytes, abs=100)
    rng = np.random.default_rng(0)
    biases = {n: rng.normal(size=analysis.model.value(n).shape).astype(np.float32) for n in analysis.model.origin}
    assert len(biases) == 8
    kept = {g.name: range(g.channels // 2) for g in analysis.groups} if granularity == "channel" else {}
    plan = units.sizes // 2 if kept else units.sizes - 1
    file = light.size(finish(analysis, cut(analysis, kept, biases)))
    assert file <= units.prices["size"](plan[None])[0] < file + 500


@pytest.mark.parametrize("name", ["digits_mlp", "digits_resnet"])
def test_a_plan_is_priced_in_the_bytes_of_its_file(name: str) -> None:
    analysis = analyse(load(MODELS / f"{name}.onnx"))
    units = channels_of(analysis, Settings(Budget("size", 0.5)))
    for counts in ([lv[0] for lv in units.levels], [lv[len(lv) // 2] for lv in units.levels]):
        kept = {g.name: range(n) for g, n in zip(analysis.groups, counts, strict=True)}
        file = len(finish(analysis, cut(analysis, kept)).SerializeToString())
        assert units.prices["size"](np.array([counts]))[0] == pytest.approx(file, abs=300)


@pytest.mark.parametrize("kind", ["params", "size"])
def test_single_weights_stay_while_there_are_some_that_nothing_reads(kind: str) -> None:
    settings = Settings(Budget(kind, 0.7), granularity="weight", **CUT)
    record = compress(with_unread("digits_mlp"), None, settings).record
    key = {"params": "nonzeros", "size": "bytes"}[kind]
    assert record["compressed"][key] <= 0.7 * record["original"][key]
    least = {"params": 0.42, "size": 0.35}[kind]  # half of all is what is read, less a level
    assert record["compressed"]["nonzeros"] > least * record["original"]["nonzeros"]
