"""Single weights: which stay, what becomes of them, how they are stored, and whole runs of `--granularity weight`."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import onnx_amc
from onnx_amc import details
from onnx_amc.cli import main
from onnx_amc.config import Budget, Settings
from onnx_amc.delivery import figures
from onnx_amc.errors import BudgetError, OptionError, PlanError
from onnx_amc.fit.solve import error
from onnx_amc.fit.sparse import largest, of_each, refit_rows, support
from onnx_amc.granularity import weights_of
from onnx_amc.graph.groups import analyse
from onnx_amc.graph.load import load
from onnx_amc.prune.sparse import bytes_left, store
from onnx_amc.search.baselines import uniform

MODELS = Path(__file__).parents[1] / "models"
RESNET, MLP, MOBILE = (MODELS / f"digits_{name}.onnx" for name in ("resnet", "mlp", "mobilenet"))


def correlated(k: int, outputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Moments of inputs of which neighbours move together, as pixels do, and weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(k, 40 * k))
    for i in range(1, k):
        x[i] = 0.9 * x[i - 1] + 0.4 * x[i]
    return x @ x.T / x.shape[1], rng.normal(size=(outputs, k))


# ---- which stay, and what becomes of them ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_each_row_is_solved_as_numpy_does(seed: int) -> None:
    """On explicit rows, to 1e-6: what is left of a row is the least-squares solution on its own support."""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(9, 200)), rng.normal(size=(4, 9))
    kept = rng.random((4, 9)) < 0.5
    found = refit_rows(x @ x.T / 200, w, kept, ridge=1e-12)
    assert not found[~kept].any()
    for row in range(4):
        s = np.flatnonzero(kept[row])
        wanted = np.linalg.lstsq(x[s].T, w[row] @ x, rcond=None)[0]
        assert np.abs(found[row, s] - wanted).max() <= 1e-6 * np.abs(wanted).max()


def test_a_row_that_keeps_all_or_nothing_is_left_or_emptied() -> None:
    h, w = correlated(5, 2)
    kept = np.array([[True] * 5, [False] * 5])
    assert np.array_equal(refit_rows(h, w, kept), [w[0], np.zeros(5)])


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_support_of_a_small_layer_is_among_the_best_there_are(count: int) -> None:
    """Against all supports of one row: mostly the very best, and over a hundred problems far nearer to it than magnitude's."""
    best, mine, large = [], [], []
    for seed in range(100):
        h, w = correlated(7, 1, seed)
        choose = largest(count)
        errors = [
            error(h, w, refit_rows(h, w, np.isin(np.arange(7), chosen)[None]))
            for chosen in combinations(range(7), count)
        ]
        best.append(min(errors))
        mine.append(error(h, w, refit_rows(h, w, support(h, w, choose))))
        large.append(error(h, w, refit_rows(h, w, choose(np.abs(w)))))
    assert np.median(np.array(mine) / best) < 1.01
    assert np.sum(mine) - np.sum(best) < 0.5 * (np.sum(large) - np.sum(best))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_support_beats_magnitude_and_activation_by_far(share: float) -> None:
    h, w = correlated(60, 20)
    choose = largest(int(share * w.size))
    scores = {"magnitude": np.abs(w), "wanda": np.abs(w) * np.sqrt(np.diag(h))}
    found = {name: error(h, w, refit_rows(h, w, choose(score))) for name, score in scores.items()}
    assert error(h, w, refit_rows(h, w, support(h, w, choose))) < 0.8 * min(found.values())


@settings(max_examples=60, deadline=None)
@given(outputs=st.integers(1, 6), inputs=st.integers(1, 12), seed=st.integers(0, 9), data=st.data())
def test_as_many_weights_stay_as_were_asked_for(outputs: int, inputs: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, outputs * inputs))
    h, w = correlated(inputs, outputs, seed)
    assert support(h, w, largest(count)).sum() == count


def test_inputs_that_never_move_are_the_first_to_go() -> None:
    h, w = correlated(8, 3)
    h[2], h[:, 2] = 0, 0
    assert not support(h, w, largest(18))[:, 2].any()


def test_a_layer_that_sees_nothing_can_be_thinned() -> None:
    w = np.ones((2, 3))
    assert support(np.zeros((3, 3)), w, largest(4)).sum() == 4
    assert np.isfinite(refit_rows(np.zeros((3, 3)), w, np.eye(2, 3) > 0)).all()


@pytest.mark.parametrize("exponent", [-140, -40, 40, 140])
def test_the_units_of_inputs_and_weights_change_nothing(exponent: int) -> None:
    """Powers of two, so that not a bit does."""
    h, w = correlated(30, 8)
    choose, by = largest(80), 2.0**exponent
    kept = support(h, w, choose)
    assert np.array_equal(support(h * by**2, w, choose), kept)
    assert np.array_equal(support(h, w * by, choose), kept)
    found = refit_rows(h, w, kept)
    assert np.array_equal(refit_rows(h * by**2, w, kept), found)
    assert np.array_equal(refit_rows(h, w * by, kept), found * by)


def test_of_each_block_so_many_stay() -> None:
    score = np.array([[5.0, 1, 4, 2, 9, 8, 7, 6, 0]])
    kept = of_each(2, np.arange(8).reshape(2, 4))(score)
    assert kept.tolist() == [[True, False, True, False, True, True, False, False, True]]


# ---- how they are stored --------------------------------------------------------------------------------------------


def holder(array: np.ndarray, ir: int = 8, *, node: bool = False) -> onnx.ModelProto:
    """Y = X W, with W as an initializer or as a Constant node."""
    weight = numpy_helper.from_array(array, "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if node:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, array.shape[0]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, array.shape[1]])
    graph = helper.make_graph(nodes, "g", [x], [y], [] if node else [weight])
    return helper.make_model(graph, ir_version=ir, opset_imports=[helper.make_opsetid("", 17)])


def thin(shape: tuple[int, int], share: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape) * (rng.random(shape) < share)).astype(np.float32)


@pytest.mark.parametrize("node", [False, True])
def test_a_sparse_file_is_smaller_and_computes_the_same(node: bool) -> None:
    array = thin((200, 300), 0.2)
    dense, sparse = holder(array, node=node), holder(array, node=node)
    assert store(sparse, frozenset(["w"])) == 1
    onnx.checker.check_model(sparse)
    assert sparse.ByteSize() < 0.4 * dense.ByteSize()
    x = np.random.default_rng(1).normal(size=(1, 200)).astype(np.float32)
    a, b = (ort.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0] for m in (dense, sparse))
    assert np.array_equal(a, b)
    assert np.array_equal(load(sparse).value("w"), array), "it can be read again"


@pytest.mark.parametrize(("share", "ir", "names"), [(0.9, 8, "w"), (0.1, 5, "w"), (0.1, 8, "v")])
def test_what_would_grow_is_too_old_or_not_meant_stays_dense(share: float, ir: int, names: str) -> None:
    model = holder(thin((200, 300), share), ir)
    before = model.SerializeToString()
    assert store(model, frozenset([names])) == 0
    assert model.SerializeToString() == before


@pytest.mark.parametrize("shape", [(20, 30), (100, 160), (300, 400), (1600, 1500)])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.95])
def test_the_foretold_bytes_are_the_files(shape: tuple[int, int], share: float) -> None:
    array = thin(shape, share)
    model, empty = holder(array), holder(array)
    store(model, frozenset(["w"]))
    del empty.graph.initializer[:]
    count, size = np.array([np.count_nonzero(array)]), np.array([array.size])
    foretold = int(bytes_left(count, size, np.array([4]))[0])
    assert model.ByteSize() - empty.ByteSize() == pytest.approx(foretold, rel=0.02, abs=40)


# ---- plans and runs -------------------------------------------------------------------------------------------------


def test_levels_hold_the_very_density_of_uniform_pruning() -> None:
    for kind, ratio in (("params", 0.3), ("size", 0.5)):
        run = Settings(Budget(kind, ratio), granularity="weight")
        units = weights_of(analyse(load(RESNET)), run)
        space = units.space(run)
        counts = uniform(space)
        assert space.limit * 0.995 <= space.price(counts) <= space.limit
        assert np.ptp(counts / space.full) < 0.02
        assert all(lv[0] >= 0.029 * lv[-1] for lv in units.levels)


def test_keep_protects_weights_by_name() -> None:
    run = Settings(Budget("params", 0.6), granularity="weight", keep=("Gemm",))
    analysis = analyse(load(MLP))
    units = weights_of(analysis, run)
    assert all(len(lv) == 1 for lv in units.levels)
    with pytest.raises(BudgetError, match="cannot be reached"):
        units.space(run)
    said = {row["name"]: row["why"] for row in details._of_weights(analysis, run)}
    assert {said[name] for name in units.names} == {"protected by --keep"}


@pytest.mark.parametrize("kind", ["flops", "channels"])
def test_budgets_that_zeros_do_not_serve_are_refused(kind: str) -> None:
    with pytest.raises(OptionError, match="multiplies by zeros too"):
        onnx_amc.compress(MLP, granularity="weight", **{kind: 0.5})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def thinned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A ResNet with a fifth of its weights left, by the command line."""
    place = tmp_path_factory.mktemp("thinned")
    for name in ("digits_resnet.onnx", "digits_resnet.npz"):
        (place / name).write_bytes((MODELS / name).read_bytes())
    options = ["--granularity", "weight", "--params", "0.2", "--policy", "knapsack", "--recover-epochs", "2", "--quiet"]
    assert main(["compress", str(place / "digits_resnet.onnx"), *options]) == 0
    return place, json.loads((place / "digits_resnet.amc.run" / "record.json").read_text())


def test_a_fifth_of_the_weights_takes_less_than_two_fifths_of_the_bytes(thinned: tuple[Path, dict[str, Any]]) -> None:
    place, record = thinned
    file = place / "digits_resnet.amc.onnx"
    delivered = onnx.load(file)
    onnx.checker.check_model(delivered)
    assert record["compressed"]["nonzeros"] == figures(delivered)["nonzeros"] <= 0.2 * record["original"]["params"]
    assert record["compressed"]["bytes"] == file.stat().st_size < 0.4 * record["original"]["bytes"]
    assert record["compressed"]["macs"] == record["original"]["macs"]
    assert record["compressed"]["score"] >= 0.95
    held_out = onnx_amc.evaluate(file, MODELS / "digits_test.npz")["score"]
    assert held_out >= onnx_amc.evaluate(RESNET, MODELS / "digits_test.npz")["score"] - 0.03


def test_its_plan_says_how_many_stay_and_gives_the_same_bytes_again(thinned: tuple[Path, dict[str, Any]]) -> None:
    place, record = thinned
    plan = json.loads((place / "digits_resnet.amc.run" / "plan.json").read_text())
    assert plan["granularity"] == "weight"
    assert {w["tensor"]: w["kept"] for w in plan["weights"]} == {
        g["name"]: g["kept"] for g in record["groups"] if g["kept"] < g["weights"]
    }
    again = place / "again.onnx"
    assert (
        main(
            [
                "apply",
                str(place / "digits_resnet.onnx"),
                str(place / "digits_resnet.amc.run/plan.json"),
                "-o",
                str(again),
            ]
        )
        == 0
    )
    assert again.read_bytes() == (place / "digits_resnet.amc.onnx").read_bytes()


def test_training_leaves_zeros_alone(thinned: tuple[Path, dict[str, Any]]) -> None:
    place, record = thinned
    model = load(place / "digits_resnet.amc.onnx")
    assert record["recover"]["epochs"] == 2
    for group in record["groups"]:
        assert np.count_nonzero(model.value(group["name"])) <= group["kept"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"tensor": "nothing", "kept": 3}, "unknown weight 'nothing'"),
        ({"tensor": "3.weight", "kept": 0}, "keeps 0"),
        ({"tensor": "3.weight", "kept": 10**9}, "keeps 1000000000"),
        ({"tensor": "3.weight", "kept": True}, "keeps True"),
    ],
)
def test_impossible_plans(thinned: tuple[Path, dict[str, Any]], entry: dict[str, Any], said: str) -> None:
    place, _ = thinned
    plan = json.loads((place / "digits_resnet.amc.run" / "plan.json").read_text())
    if entry["tensor"] != "nothing":
        entry = entry | {"tensor": plan["weights"][0]["tensor"]}
    with pytest.raises(PlanError, match=said):
        onnx_amc.apply(RESNET, plan | {"weights": [entry]})


def test_the_budget_on_bytes_holds_for_both_granularities() -> None:
    for granularity in ("channel", "weight"):
        result = onnx_amc.compress(
            RESNET, size=0.5, granularity=granularity, policy="uniform", refit=False, recover=False
        )
        assert result.record["compressed"]["bytes"] <= 0.5 * result.record["original"]["bytes"]
        assert len(result.model.SerializeToString()) == result.record["compressed"]["bytes"]


def test_biases_that_a_refit_adds_count_towards_the_parameters() -> None:
    result = onnx_amc.compress(RESNET, params=0.5, policy="uniform", recover=False)
    elements = sum(int(np.prod(t.dims)) for t in result.model.graph.initializer if t.data_type == TensorProto.FLOAT)
    assert elements == result.record["compressed"]["params"] <= 0.5 * result.record["original"]["params"]


def bare(seed: int = 0) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A network without biases, and samples."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> toy (float[N,3,6,6] x) => (float[N,5] y) {
        h = Conv <pads = [1,1,1,1]> (x, w) r = Relu (h) k = Conv <pads = [1,1,1,1]> (r, w2) s = Add (k, r) t = Relu (s)
        l = ConvTranspose (t, w3) u = Relu (l) p = GlobalAveragePool (u) f = Flatten (p) y = Gemm (f, w4) }""")
    rng = np.random.default_rng(seed)
    for name, shape in {"w": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 24, 2, 2), "w4": (24, 5)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    return model, {"x": rng.normal(size=(40, 3, 6, 6)).astype(np.float32)}


@pytest.mark.parametrize("kind", ["params", "size"])
@pytest.mark.parametrize("granularity", ["channel", "weight"])
@pytest.mark.parametrize("sequential", [True, False])
def test_the_smallest_budget_that_is_told_can_be_had(kind: str, granularity: str, *, sequential: bool) -> None:
    """The biases that the refit adds are in it."""
    model, data = bare()
    how: dict[str, Any] = {"granularity": granularity, "policy": "uniform", "recover": False, "sequential": sequential}
    with pytest.raises(BudgetError, match="the smallest is") as told:
        onnx_amc.compress(model, data, **how | {kind: 0.001})
    least = float(re.search(r"smallest is (\d\.\d+)", str(told.value)).group(1))  # type: ignore[union-attr]
    record = onnx_amc.compress(model, data, **how | {kind: least}).record
    name = {"size": "bytes", "params": "nonzeros" if granularity == "weight" else "params"}[kind]
    assert record["compressed"][name] <= least * record["original"][name]


def test_uniform_is_one_density_for_all_layers_whatever_biases_come_with_it() -> None:
    model, data = bare()
    found = onnx_amc.compress(model, data, params=0.3, granularity="weight", policy="uniform", recover=False).record
    shares = [g["kept"] / g["weights"] for g in found["groups"]]
    assert max(shares) - min(shares) < 0.01
    assert 0.29 < found["compressed"]["nonzeros"] / found["original"]["nonzeros"] <= 0.3


def test_a_pattern_leaves_two_of_four_along_the_inputs() -> None:
    result = onnx_amc.compress(
        MOBILE, params=0.7, granularity="weight", pattern=(2, 4), policy="uniform", recover=False, round_to=None
    )
    cut = [g for g in result.record["groups"] if g["kept"] < g["weights"]]
    assert cut
    model = load(result.model)
    for group in cut:
        weight = model.value(group["name"])
        rows = weight.reshape(*weight.shape[:2], -1)  # the one Gemm has its weight as (outputs, inputs) too
        fours = np.count_nonzero(rows.reshape(rows.shape[0], -1, 4, rows.shape[2]), axis=2)
        assert (fours <= 2).all()


@pytest.mark.parametrize(
    "wrong", [{"pattern": (2, 4)}, {"pattern": (4, 4), "granularity": "weight"}, {"granularity": "bits"}]
)
def test_impossible_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Settings(Budget("params", 0.5), **wrong)


@pytest.mark.parametrize("criterion", ["obs", "wanda", "magnitude", "random"])
def test_a_criterion_is_what_weights_go_by(criterion: str) -> None:
    result = onnx_amc.compress(
        MLP, params=0.3, granularity="weight", criterion=criterion, policy="uniform", recover=False, sequential=False
    )
    found = {g["name"]: load(result.model).value(g["name"]) != 0 for g in result.record["groups"]}
    original = load(MLP)
    large = {
        n: np.abs(original.value(n)) >= np.sort(np.abs(original.value(n)), axis=None)[-m.sum()]
        for n, m in found.items()
    }
    same = np.mean([np.array_equal(found[n], large[n]) for n in found])
    assert same == (1.0 if criterion == "magnitude" else 0.0)


def test_a_network_with_sparse_weights_can_be_cut(thinned: tuple[Path, dict[str, Any]]) -> None:
    sparse = onnx.load(thinned[0] / "digits_resnet.amc.onnx")
    assert sparse.graph.sparse_initializer
    result = onnx_amc.compress(sparse, channels=0.5, policy="uniform", refit=False)
    assert result.record["compressed"]["macs"] < 0.6 * result.record["original"]["macs"]
