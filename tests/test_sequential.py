"""The sequential refit: its least squares against numpy's, its stages against a whole run, and what it gains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nets import Row
from test_correct import NETS, halved
from test_refit import net, noise, run

from onnx_amc.errors import DataError
from onnx_amc.fit.patches import widened
from onnx_amc.fit.rows import Bounds, Rows, fit
from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import load
from onnx_amc.prune.layers import find_layers
from onnx_amc.prune.refit import Values, read, write
from onnx_amc.prune.surgery import Cut, cut
from onnx_amc.run import capture
from onnx_amc.run.data import Dataset
from onnx_amc.run.sequential import Effort, Sequential
from onnx_amc.run.stages import Stages, live_bytes

MODELS = Path(__file__).parents[1] / "models"
ALL = Effort(samples=64, rows=10_000, rounds=0)
TINY = (1e-13,)


def problem(seed: int, inputs: int = 7, rows: int = 60, outputs: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(inputs, rows)) + 2 * rng.normal(size=(inputs, 1))
    y = rng.normal(size=(outputs, inputs)) @ x + rng.normal(size=(outputs, rows)) + 3
    return x, y, rng.normal(size=(outputs, inputs))


# ---- least squares on rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("affine", [True, False])
def test_rows_are_solved_as_numpy_does(seed: int, affine: bool) -> None:
    x, y, prior = problem(seed)
    w, b = fit(Rows(x, y, prior, affine=affine), ridges=TINY)
    columns = np.vstack([x, np.ones(x.shape[1])]) if affine else x
    wanted = np.linalg.lstsq(columns.T, y.T, rcond=None)[0].T
    assert np.abs(w - wanted[:, : len(x)]).max() <= 1e-6 * np.abs(wanted).max()
    assert np.abs(b - (wanted[:, -1] if affine else 0)).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("seed", range(5))
def test_with_more_inputs_than_rows_the_change_is_the_smallest_that_fits(seed: int) -> None:
    """The dual with hardly a ridge: of all weights that fit, the nearest to the prior, which is lstsq's for what is missing."""
    x, y, prior = problem(seed, inputs=90, rows=40)
    w, _ = fit(Rows(x, y, prior, affine=False), ridges=TINY)
    wanted = prior + np.linalg.lstsq(x.T, (y - prior @ x).T, rcond=None)[0].T
    assert np.abs(w - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("inputs", [8, 39, 41, 120])
def test_primal_and_dual_are_one_problem(inputs: int) -> None:
    x, y, prior = problem(0, inputs=inputs, rows=40)
    w, b = fit(Rows(x, y, prior), ridges=(0.1,))
    z = x - x.mean(axis=1, keepdims=True)
    h = z @ z.T / 40
    extra = 0.1 * np.trace(h) / inputs * np.eye(inputs)
    wanted = ((y - y.mean(axis=1, keepdims=True)) @ z.T / 40 + prior @ extra) @ np.linalg.inv(h + extra)
    assert np.allclose(w, wanted, atol=1e-8)
    assert np.allclose(w @ x.mean(axis=1) + b, y.mean(axis=1), atol=1e-8)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(7, 60), (60, 7), (3, 7, 60)])
def test_inputs_that_never_move_keep_their_weights(shape: tuple[int, ...], *, affine: bool) -> None:
    rng = np.random.default_rng(0)
    lead, (inputs, rows) = shape[:-2], shape[-2:]
    y, prior = rng.normal(size=(*lead, 2, rows)), rng.normal(size=(*lead, 2, inputs))
    w, b = fit(Rows(np.zeros(shape), y, prior, affine=affine))
    np.testing.assert_allclose(w, prior, atol=1e-12)
    np.testing.assert_allclose(b, y.mean(axis=-1) * affine, atol=1e-12)


@pytest.mark.parametrize("shape", [(7, 60), (60, 7), (3, 7, 60)])
@pytest.mark.parametrize("exponent", [-80, -40, 40, 100])
def test_the_units_of_the_inputs_change_nothing(shape: tuple[int, ...], exponent: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    prior = rng.normal(size=(*shape[:-2], 2, shape[-2]))
    y = (prior @ x + rng.normal(size=(*shape[:-2], 2, shape[-1]))).astype(np.float32)
    far, near = (
        fit(Rows(widened(x * by), widened(y * by), prior)) for by in (np.float32(2.0**exponent), np.float32(1))
    )
    np.testing.assert_allclose(far[0], near[0], atol=1e-4)
    np.testing.assert_allclose(far[1] / 2.0**exponent, near[1], atol=1e-4)


def test_many_small_problems_are_solved_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    x, y, prior = rng.normal(size=(5, 4, 300)), rng.normal(size=(5, 2, 300)), rng.normal(size=(5, 2, 4))
    base, bounds = rng.normal(size=(5, 2, 300)), Bounds(0.0)
    w, b = fit(Rows(x, y, prior, base), bounds)
    for g in range(5):
        alone = fit(Rows(x[g], y[g], prior[g], base[g]), bounds)
        assert np.allclose(w[g], alone[0], atol=1e-10)
        assert np.allclose(b[g], alone[1], atol=1e-10)


def test_the_ridge_is_the_one_that_predicts_held_out_rows() -> None:
    """Few rows of pure noise: the strongest pull to weights that are right wins; enough rows of signal: the weakest does."""
    x, _, prior = problem(3, inputs=30, rows=45)
    rng = np.random.default_rng(0)
    y = prior @ x + 5 * rng.normal(size=(3, 45))
    assert np.allclose(fit(Rows(x, y, prior))[0], fit(Rows(x, y, prior), ridges=(1.0,))[0])
    assert not np.allclose(fit(Rows(x, y, prior))[0], fit(Rows(x, y, prior), ridges=(1e-2,))[0])
    x, _, prior = problem(3, inputs=5, rows=4_000)
    y = rng.normal(size=(3, 5)) @ x
    assert np.allclose(fit(Rows(x, y, prior))[0], fit(Rows(x, y, prior), ridges=(1e-2,))[0], atol=1e-9)
    assert not np.allclose(fit(Rows(x, y, prior))[0], fit(Rows(x, y, prior), ridges=(1.0,))[0], atol=1e-9)


def test_the_fit_looks_through_the_activation() -> None:
    """Half of the targets are hidden by a ReLU: a fit that knows it is better where it shows, by a lot."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3_000))
    y = np.abs(rng.normal(size=(4, 6))) @ np.abs(x) - 3
    y = np.where(y < 0, 5 * y, y)
    prior = np.zeros((4, 6))
    base = rng.normal(size=y.shape)
    for bounds, given in ((Bounds(0.0), None), (Bounds(0.0, 2.0), None), (Bounds(0.0), base)):
        off = 0.0 if given is None else given
        target = np.clip(y + off, bounds.low, bounds.high)
        losses = []
        for rounds in (0, 1, 3, 10):
            w, b = fit(Rows(np.abs(x), y, prior, given), bounds, rounds=rounds)
            losses.append(
                float(np.square(np.clip(w @ np.abs(x) + b[:, None] + off, bounds.low, bounds.high) - target).mean())
            )
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < 0.5 * losses[0]


def test_what_the_activation_hides_is_no_error() -> None:
    aim = Bounds(0.0, 6.0).aim(np.array([-1.0, -1, 2, 7, 7, 3]), np.array([-5.0, 1, 9, 8, 5, -1]))
    assert aim.tolist() == [-5, 0, 2, 8, 6, 3]


# ---- stages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", NETS)
def test_stages_compute_what_a_whole_run_does(case: str) -> None:
    analysis = net(NETS[case])
    data, proto = noise(analysis), analysis.model.proto
    layers = find_layers(analysis)[0]
    batches = [data.batch(np.arange(i, i + 16)) for i in range(0, 64, 16)]
    wanted = [t for layer in layers for t in (layer.x, layer.output)]
    whole = dict(zip(wanted, run(proto, data, wanted), strict=True))
    inputs, outputs = (Stages(batches, [getattr(lay, n) for lay in layers], "toy") for n in ("x", "output"))
    for layer in layers:
        before = inputs.until(proto, layer.node, [layer.x])
        behind = outputs.until(proto, layer.output, [layer.output], through=True)
        for name, parts in ((layer.x, before), (layer.output, behind)):
            assert [len(p[name]) for p in parts] == [16] * 4
            assert np.allclose(np.concatenate([p[name] for p in parts]), whole[name], atol=1e-5)


def test_stages_say_what_they_cannot_run() -> None:
    analysis = net(
        "(float[N,4] x) => (float[N,4] y) <float[4,4] w, int64[2] s> { h = MatMul (x, w) y = Reshape (h, s) }", s=[1, 4]
    )
    stages = Stages([noise(analysis).batch(np.arange(3))], ["y"], "toy")
    with pytest.raises(DataError, match="cannot run"):
        stages.until(analysis.model.proto, "y", ["y"], through=True)


def test_the_fullest_stop_is_what_counts() -> None:
    """Before h's reader both x (3 x 36 numbers, for the shortcut) and h (8 x 36) are held."""
    analysis = net("""(float[N,3,6,6] x) => (float[N,3,6,6] y) <float[8,3,1,1] w, float[3,8,1,1] v>
        { h = Conv (x, w) k = Conv (h, v) y = Add (k, x) }""")
    assert live_bytes(analysis.model.proto, analysis.model.shapes, {"k"}) == 4 * 36 * (3 + 8 + 3)


# ---- the refit ------------------------------------------------------------------------------------------------------


def refined(analysis: Analysis, data: Dataset, effort: Effort = ALL) -> tuple[float, float]:
    """Error of the halved network's first output before and after, relative to the variance of the original's."""
    kept, values, biases = halved(analysis, data)
    layers, _ = find_layers(analysis)
    better = Sequential(analysis, layers, data, np.arange(len(data)), effort, seed=0).refine(kept, values, biases)
    name = analysis.model.proto.graph.output[0].name
    wanted = run(analysis.model.proto, data, [name])[0]
    found = [run(cut(analysis, kept, *v), data, [name])[0] for v in ((values, biases), better)]
    before, after = (float(np.square(f - wanted).mean() / wanted.var()) for f in found)
    return before, after


@pytest.mark.parametrize("case", NETS)
def test_noise_through_random_networks_is_not_made_worse(case: str) -> None:
    analysis = net(NETS[case])
    before, after = refined(analysis, noise(analysis))
    assert after < 1.01 * before


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mobilenet"])
def test_trained_networks_gain(name: str) -> None:
    from onnx_amc.delivery import input_specs
    from onnx_amc.run import data as sources

    analysis = analyse(load(MODELS / f"{name}.onnx"))
    data = sources.load(MODELS / f"{name}.npz", input_specs(analysis.model.proto), classes=10)
    before, after = refined(analysis, data, Effort(samples=500, rows=10_000, rounds=3))
    assert after < 0.7 * before


def test_the_later_of_two_that_are_added_makes_up_for_the_other() -> None:
    """The shortcut loses half of its inputs and cannot be mended; the branch, which reads everything, mends the sum."""
    analysis = net("""(float[N,6,5,5] x) => (float[N,4,5,5] y) <float[6,6,1,1] u, float[4,6,1,1] w, float[4,6,1,1] v>
        { g = Conv (x, u) h = Conv (g, w) k = Conv (x, v) y = Add (h, k) }""")
    data = noise(analysis)
    before, after = refined(analysis, data)
    assert before > 0.02
    assert after < 1e-3 * before


WIDE = "(float[N,6,5,5] x) => (float[N,4,5,5] y) <float[8,6,1,1] u, float[8] a, float[8,8,1,1] w, float[8] b, float[4,8,1,1] v"
FOLDED = (
    f"""{WIDE}> {{ g = Conv (x, u, a) r = Relu (g) h = Conv (r, w, b) s = Add (h, g) q = Relu (s) y = Conv (q, v) }}"""
)
UNFOLDED = f"""{WIDE}, float[8,1,1] m, float[8] o, float[8] n, float[8] p> {{
    k = Conv (x, u) l = Mul (k, m) c = Unsqueeze <axes = [1,2]> (a) g = Add (l, c) r = Relu (g) t = Conv (r, w)
    h = BatchNormalization <epsilon = 0.0> (t, o, b, n, p) s = Add (h, g) q = Relu (s) y = Conv (q, v) }}"""


def test_what_normalises_each_output_is_refitted_as_if_it_were_folded() -> None:
    """Three to the power of -4 to 3: a scale is no part of what a channel is worth."""
    folded = net(FOLDED, 12)
    m, p = 3.0 ** np.arange(-4, 4), 4.0 ** np.arange(4, -4, -1)
    value, half = folded.model.value, np.full(8, 0.5)
    given = {name: value(name) for name in "abv"}
    given |= {
        "u": value("u") / m[:, None, None, None],
        "w": value("w") * np.sqrt(p)[:, None, None, None] / 0.5,
        "o": half,
        "n": 0 * p,
    }
    unfolded = net(UNFOLDED, 12, m=m, p=p, **given)
    one, other = (refined(analysis, noise(analysis)) for analysis in (folded, unfolded))
    np.testing.assert_allclose(one, other, rtol=1e-3)


def test_more_inputs_than_rows_are_fitted_by_the_dual() -> None:
    analysis = net("""(float[N,4,6,6] x) => (float[N,3] y) <float[8,4,1,1] w, float[288,3] v>
        { h = Conv (x, w) r = Relu (h) f = Flatten (r) y = MatMul (f, v) }""")
    data, layers = noise(analysis), find_layers(analysis)[0]
    kept = {analysis.groups[0].name: (0, 3, 5, 6)}
    better = Sequential(analysis, layers, data, np.arange(64), ALL, seed=0).refine(kept, {}, {})
    wanted, cut_only, found = (
        run(m, data, ["y"])[0] for m in (analysis.model.proto, cut(analysis, kept), cut(analysis, kept, *better))
    )
    assert np.square(found - wanted).mean() < 0.3 * np.square(cut_only - wanted).mean()


@pytest.mark.parametrize(
    "graph",
    [
        "(float[N,4,9] x) => (float[N,5,P] y) <float[4,5,4] w> { y = ConvTranspose <strides = [2]> (x, w) }",
        "(float[N,4,6,6] x) => (float[N,5,P,Q] y) <float[4,5,3,2] w> { y = ConvTranspose (x, w) }",
        "(float[N,4,6,6] x) => (float[N,5,P,Q] y) <float[4,5,3,3] w> { t = Transpose <perm = [1,0,2,3]> (w) y = Conv (x, t) }",
        "(float[N,6] x) => (float[N,5] y) <float[6,5] w> { y = MatMul (x, w) }",
    ],
)
def test_however_a_weight_lies_its_zeros_stay_and_the_rest_is_fitted(graph: str) -> None:
    analysis = net(graph)
    ((layer,), _), data = find_layers(analysis), noise(analysis)
    w = read(analysis, layer.weight)
    mask = np.random.default_rng(0).random((*w.shape[:2], w.shape[2] * w.shape[3])) < 0.5
    sequential = Sequential(analysis, [layer], data, np.arange(len(data)), ALL, seed=0)
    values, _ = sequential.refine({}, {}, {}, {layer.node: mask})
    found = read(analysis, layer.weight, values)
    assert not found[~mask.reshape(w.shape)].any()
    assert (found != w)[mask.reshape(w.shape)].all()


def test_single_weights_of_fewer_rows_than_inputs_do_not_learn_the_noise() -> None:
    """On samples that were not fitted, what stays is better after the refit than before."""
    analysis = net("""(float[N,96] x) => (float[N,8] y) <float[96,64] w, float[64,8] v>
        { h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }""")
    layers, rng = find_layers(analysis)[0], np.random.default_rng(0)
    mixed = np.eye(96) + rng.normal(size=(96, 96)) / 10
    few, fresh = (
        Dataset(noise(analysis).inputs, {"x": (rng.normal(size=(n, 96)) @ mixed).astype(np.float32)}, None, "mixed")
        for n in (48, 1_000)
    )
    values: Values = {}
    masks: Values = {}
    for layer in layers:
        w = read(analysis, layer.weight)
        masks[layer.node] = rng.random((1, w.shape[1], w.shape[2])) < 0.5
        write(analysis, values, layer.weight, w * masks[layer.node].reshape(w.shape))
    better = Sequential(analysis, layers, few, np.arange(48), ALL, seed=0).refine({}, values, {}, masks)
    wanted, before, found = (
        run(m, fresh, ["y"])[0] for m in (analysis.model.proto, cut(analysis, {}, values), cut(analysis, {}, *better))
    )
    assert np.square(found - wanted).mean() < 0.8 * np.square(before - wanted).mean()


OTHERS = (
    Row("depthwise", """(float[N,3,6,6] x) => (float[N,4,6,6] y)
        <float[8,3,1,1] w, float[8,1,3,3] d, float[8] e, float[4,8,1,1] v> { h = Conv (x, w) r = Relu (h)
        k = Conv <group = 8, pads = [1,1,1,1]> (r, d, e) s = Relu (k) y = Conv (s, v) }""", 8),
    Row("q, k and v of one tensor", """(float[N,5,6] x) => (float[N,5,6] y)
        <float[6,8] w, float[8,8] q, float[8,8] k, float[8,6] v>
        { h = MatMul (x, w) a = MatMul (h, q) b = MatMul (h, k) c = Mul (a, b) y = MatMul (c, v) }""", 16),
    Row("float16", """(float16[N,3,6,6] x) => (float16[N,4,6,6] y)
        <float16[8,3,1,1] w, float16[8] b, float16[4,8,1,1] v>
        { h = Conv (x, w, b) r = Relu (h) y = Conv (r, v) }""", 8),
)  # fmt: skip


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: row.name)
def test_other_graphs_are_refined_too(row: Row) -> None:
    analysis = analyse(load(row.model()))
    before, after = refined(analysis, noise(analysis))
    assert after <= 1.02 * before


def test_a_fixed_batch_is_refined_as_a_free_one() -> None:
    found = []
    for batch, target in (("N", [0, 288]), ("2", [2, 288])):
        analysis = net(
            f"""(float[{batch},3,6,6] x) => (float[{batch},4] y) <float[8,3,1,1] w, int64[2] s, float[288,4] v>
            {{ h = Conv (x, w) r = Relu (h) f = Reshape (r, s) y = MatMul (f, v) }}""",
            s=target,
        )
        data, layers = noise(analysis), find_layers(analysis)[0]
        kept = {analysis.groups[0].name: (0, 2, 5)}
        found.append(Sequential(analysis, layers, data, np.arange(64), ALL, seed=0).refine(kept, {}, {})[0])
    assert found[0].keys() == found[1].keys() != set()
    assert all(np.array_equal(found[0][k], found[1][k]) for k in found[0])


def test_nothing_cut_changes_nothing() -> None:
    analysis = net(NETS["residual and grouped"])
    data = noise(analysis)
    layers, _ = find_layers(analysis)
    assert Sequential(analysis, layers, data, np.arange(64), ALL, seed=0).refine({}, {}, {}) == ({}, {})


def test_a_plan_is_refined_the_same_whatever_came_before() -> None:
    """What is remembered of the original's outputs from one plan to the next changes nothing."""
    analysis = net(NETS["residual and grouped"])
    data, layers = noise(analysis), find_layers(analysis)[0]
    kept, values, biases = halved(analysis, data)
    effort = Effort(samples=48, rows=500, rounds=1)
    fresh = Sequential(analysis, layers, data, np.arange(64), effort, seed=0).refine(kept, values, biases)
    used = Sequential(analysis, layers, data, np.arange(64), effort, seed=0)
    first = next(iter(kept))
    used.refine({first: kept[first]}, values, biases)
    for one, other in zip(fresh, used.refine(kept, values, biases), strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("case", NETS)
def test_how_many_samples_run_at_a_time_changes_nothing_but_the_rounding(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis = net(NETS[case])
    data, layers = noise(analysis), find_layers(analysis)[0]
    kept, values, biases = halved(analysis, data)
    found = []
    for cache in (capture.CACHE, 1):
        monkeypatch.setattr(capture, "CACHE", cache)
        effort = Effort(samples=64, rows=20_000, rounds=1)
        found.append(Sequential(analysis, layers, data, np.arange(64), effort, seed=0).refine(kept, values, biases)[0])
    assert found[0].keys() == found[1].keys() != set()
    for name, value in found[0].items():
        assert np.allclose(found[1][name], value, rtol=1e-3, atol=1e-4 * np.abs(value).max())


def test_large_activations_are_run_few_at_a_time() -> None:
    conv = "(float[N,3,512,512] x) => (float[N,4,512,512] y) <float[4,3,1,1] w> { y = Conv (x, w) }"
    assert capture.batch_of(net(conv).model, 100) == 4
    assert capture.batch_of(net(conv.replace("512", "64")).model, 100) == 100
    wide = "(float[N,1200] x) => (float[N,2000] y) <float[1200,2000] w> { y = MatMul (x, w) }"
    assert capture.batch_of(net(wide).model, 100) == 100, "weights are read once whatever the batch"


def test_weights_written_one_by_one_give_the_model_that_is_cut_with_all_of_them() -> None:
    analysis = analyse(load(MODELS / "digits_resnet.onnx"))
    kept = {g.name: tuple(range(g.channels // 2)) for g in analysis.groups}
    layers = [layer for layer in find_layers(analysis)[0] if layer.can_add_bias or layer.bias is not None]
    rng = np.random.default_rng(0)
    values: dict[str, np.ndarray] = {}
    biases: dict[str, np.ndarray] = {}
    model = analysis.model.proto
    written = Cut(analysis, kept, values, biases, model)
    for layer in layers:
        new = {layer.weight.name: rng.normal(size=analysis.model.value(layer.weight.name).shape).astype(np.float32)}
        added = {} if layer.bias is not None else {layer.node: np.ones(5, np.float32)}
        written.write(new, {n: np.zeros(5, np.float32) for n in added})
        written.write({}, added)
        values |= new
        biases |= added
    anew = cut(analysis, kept, values, biases, model)
    assert written.model.SerializeToString(deterministic=True) == anew.SerializeToString(deterministic=True)
