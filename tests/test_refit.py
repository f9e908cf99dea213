"""The layers that readers are, the moments of their inputs, and the refit from both, held against onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnx_amc.builder import Builder
from onnx_amc.config import Budget, Settings
from onnx_amc.delivery import input_specs
from onnx_amc.fit.patches import choose, patches
from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import load
from onnx_amc.prune import refit
from onnx_amc.prune.criteria import CRITERIA, fpgm, magnitude, wanda
from onnx_amc.prune.layers import Layer, find_layers, find_siblings
from onnx_amc.prune.refit import Refitter, by_score, read
from onnx_amc.prune.surgery import cut
from onnx_amc.run import data as sources
from onnx_amc.run.capture import gather_moments
from onnx_amc.run.data import Dataset
from onnx_amc.run.metrics import agreement, top1
from onnx_amc.run.score import Scorer
from onnx_amc.run.worth import worths

MODELS = Path(__file__).parents[1] / "models"
SAMPLES = 64


def net(graph: str, opset: int = 17, **weights: Any) -> Analysis:
    """A network in ONNX's text form: what is declared after the outputs is a weight, seeded noise where none is given."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> toy {graph}')
    rng = np.random.default_rng(0)
    for info in model.graph.value_info:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        value = np.asarray(weights.get(info.name, rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        model.graph.initializer.append(numpy_helper.from_array(value.astype(dtype).reshape(shape), info.name))
    del model.graph.value_info[:]
    return analyse(load(model))


def noise(analysis: Analysis) -> Dataset:
    return sources.synthesise(input_specs(analysis.model.proto), SAMPLES, seed=1)


def run(model: onnx.ModelProto, data: Dataset, names: list[str]) -> list[np.ndarray]:
    """Any tensors of a model over all samples, in plain onnxruntime."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    inputs = {i.name for i in exposed.graph.input}
    known = inputs | {o.name for o in exposed.graph.output}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(names) if n not in known)
    session = ort.InferenceSession(exposed.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = data.batch(np.arange(len(data)))
    wanted = list(dict.fromkeys(n for n in names if n not in inputs))
    found = feed | dict(zip(wanted, session.run(wanted, feed), strict=True))
    return [found[n] for n in names]


def by_channel(y: np.ndarray, layer: Layer) -> np.ndarray:
    """(outputs, rows) of a layer's output."""
    return np.moveaxis(y, layer.output_axis, 0).reshape(y.shape[layer.output_axis], -1)


def affine(analysis: Analysis, layer: Layer, x: np.ndarray) -> np.ndarray:
    """W x + b as the layer describes it, (outputs, rows)."""
    if layer.channels_last:
        columns = patches(x.reshape(-1, x.shape[-1]), layer.window, np.zeros((1, 0), dtype=np.int64))
    else:
        space = layer.window.outputs(x.shape[2:])
        columns = patches(x, layer.window, choose(space, 10**6, np.random.default_rng(0)))
    w = read(analysis, layer.weight)
    groups, outputs, inputs, taps = w.shape
    y = w.reshape(groups, outputs, -1) @ columns.reshape(groups, inputs * taps, -1)
    bias = 0 if layer.bias is None else read(analysis, layer.bias)[:, None]
    return np.asarray(y.reshape(groups * outputs, -1) + bias)


IMAGES, ROWS, WORDS = (
    "(float[N,6,7,6] x) => (float[N,4,P,Q] y)",
    "(float[N,6] x) => (float[N,4] y)",
    ("(float[N,5,6] x) => (float[N,5,4] y)"),
)
LINES = "(float[N,6,5] x) => (float[N,4,5] y)"
LAYERS = {
    "Conv": f"{IMAGES} <float[4,6,3,2] w, float[4] b> {{ y = Conv <pads = [1,0,2,1]> (x, w, b) }}",
    "Conv without bias": f"{IMAGES} <float[4,6,3,3] w> {{ y = Conv <strides = [2,1], dilations = [1,2]> (x, w) }}",
    "Conv in groups": f'{IMAGES} <float[4,3,3,3] w, float[4] b> {{ y = Conv <group = 2> (x, w, b) }}',
    "Conv, same upper": f'{IMAGES} <float[4,6,3,2] w> {{ y = Conv <auto_pad = "SAME_UPPER", strides = [2,2]> (x, w) }}',
    "Conv, same lower": f'{IMAGES} <float[4,6,2,3] w> {{ y = Conv <auto_pad = "SAME_LOWER", strides = [1,2]> (x, w) }}',
    "Conv over time": "(float[N,6,9] x) => (float[N,4,P] y) <float[4,6,3] w, float[4] b> { y = Conv (x, w, b) }",
    "ConvTranspose": f"{IMAGES} <float[6,4,3,2] w, float[4] b> {{ "
    "y = ConvTranspose <strides = [2,3], pads = [1,0,2,1], output_padding = [1,2], dilations = [1,2]> (x, w, b) }",
    "Gemm": f"{ROWS} <float[6,4] w, float[4] b> {{ y = Gemm (x, w, b) }}",
    "Gemm without bias": f"{ROWS} <float[6,4] w> {{ y = Gemm (x, w) }}",
    "Gemm, transposed": f"{ROWS} <float[4,6] w, float[1,4] b> {{ y = Gemm <transB = 1> (x, w, b) }}",
    "MatMul": f"{WORDS} <float[6,4] w> {{ y = MatMul (x, w) }}",
    "MatMul + Add": f"{WORDS} <float[6,4] w, float[4] b> {{ h = MatMul (x, w) y = Add (h, b) }}",
    "Add + MatMul": f"{WORDS} <float[6,4] w, float[1,1,4] b> {{ h = MatMul (x, w) y = Add (b, h) }}",
    "MatMul + one number": f"{WORDS} <float[6,4] w, float[1] b> {{ h = MatMul (x, w) y = Add (h, b) }}",
    "MatMul + a place": f"{WORDS} <float[6,4] w, float[5,4] b> {{ h = MatMul (x, w) y = Add (h, b) }}",
    "MatMul on the left": f"{LINES} <float[4,6] w> {{ y = MatMul (w, x) }}",
    "MatMul on the left + Add": f"{LINES} <float[4,6] w, float[4,1] b> {{ h = MatMul (w, x) y = Add (h, b) }}",
    "MatMul on the left + a place": f"{LINES} <float[4,6] w, float[5] b> {{ h = MatMul (w, x) y = Add (h, b) }}",
    "MatMul read twice": f"{WORDS} <float[6,4] w, float[4] b> {{ h = MatMul (x, w) s = Add (h, b) y = Mul (s, h) }}",
    "weight behind Transpose": f"{WORDS} <float[4,6] w> {{ t = Transpose (w) y = MatMul (x, t) }}",
    "weight behind Reshape": f"{IMAGES} <float[4,6] w, int64[4] s> {{ t = Reshape (w, s) y = Conv (x, t) }}",
    "Conv + Add": f"{IMAGES} <float[4,6,3,3] w, float[1,4,1,1] b> {{ h = Conv (x, w) y = Add (h, b) }}",
    "Conv, Mul + Add": f"{IMAGES} <float[4,6,3,3] w, float[4] c, float[4,1,1] m, float[1] o, float[1,4,1,1] b> {{ "
    "g = Conv (x, w, c) k = Mul (m, g) h = Mul (k, o) y = Add (h, b) }",
    "Conv, BatchNormalization": f"{IMAGES} <float[4,6,3,3] w, float[4] c, float[4] m, float[4] b, float[4] n, float[4] q> {{ "
    "h = Conv (x, w, c) y = BatchNormalization (h, m, b, n, q) }",
    "Conv in groups, turned": "(float[N,6,7,6] x) => (float[N,P,Q,4] y) <float[4,3,3,3] w, float[4] m, float[4] b> { "
    "h = Conv <group = 2> (x, w) t = Transpose <perm = [0,2,3,1]> (h) k = Mul (t, m) y = Add (k, b) }",
    "Conv over time, of one row": "(float[N,6,1,9] x) => (float[N,4,P] y) <float[4,6,1,3] w, float[4,1] m, float[1,4,1] b, "
    "int64[1] o> { h = Conv (x, w) t = Squeeze (h, o) k = Mul (t, m) y = Add (k, b) }",
    "MatMul, Mul + Add": f"{WORDS} <float[6,4] w, float[4] m, float[4] b> {{ h = MatMul (x, w) k = Mul (h, m) y = Add (k, b) }}",
    "MatMul, Reshape + Add": "(float[N,6] x) => (float[N,P,4] y) <float[6,4] w, int64[3] r, float[4] b> { "
    "h = MatMul (x, w) k = Reshape (h, r) y = Add (k, b) }",
    "MatMul and heads": "(float[N,5,6] x) => (float[N,5,2,2] y) <float[6,4] w, int64[4] i, float[2,2] b> { "
    "h = MatMul (x, w) k = Reshape (h, i) y = Add (k, b) }",
    "MatMul, scaled": f"{WORDS} <float[6,4] w, float[4] m> {{ h = MatMul (x, w) y = Mul (h, m) }}",
    "MatMul, scaled by places": f"{WORDS} <float[6,4] w, float[5,1] m, float[4] b> {{ "
    "h = MatMul (x, w) k = Mul (h, m) y = Add (k, b) }",
    "Conv, BatchNormalization that learns": f"{IMAGES} <float[4,6,3,3] w, float[4] m, float[4] b, float[4] n, float[4] q> {{ "
    "h = Conv (x, w) y, u, v = BatchNormalization <training_mode = 1> (h, m, b, n, q) }",
    "Conv, samples split + Add": "(float[N,6,8] x) => (float[M,4,4] y) <float[4,6,1] w, int64[3] p, float[4,1] b> { "
    "h = Conv (x, w) k = Reshape (h, p) y = Add (k, b) }",
    "bias behind Flatten": f"{ROWS} <float[6,4] w, float[4,1] b> {{ c = Flatten <axis = 0> (b) y = Gemm (x, w, c) }}",
}  # fmt: skip
WITHOUT_BIAS = {
    "Conv without bias",
    "Conv, same upper",
    "Conv, same lower",
    "Gemm without bias",
    "weight behind Reshape",
    "Conv, BatchNormalization that learns",
    "Conv, samples split + Add",
}
GIVEN: dict[str, Any] = {
    "s": [4, 6, 1, 1], "q": [0.5, 1, 2, 0.1], "o": 2, "r": [-1, 1, 4], "i": [0, 5, 2, 2], "p": [-1, 4, 4]
}  # fmt: skip
SCALED_ONLY = {
    "MatMul",
    "MatMul on the left",
    "MatMul on the left + a place",
    "MatMul + one number",
    "MatMul + a place",
    "MatMul read twice",
    "MatMul and heads",
    "MatMul, scaled",
    "MatMul, scaled by places",
    "weight behind Transpose",
}


@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_says_how_its_output_comes_from_its_input(case: str) -> None:
    analysis = net(LAYERS[case], **GIVEN)
    (layer,), refused = find_layers(analysis)
    assert not refused
    assert (layer.bias is None) == (case in WITHOUT_BIAS | SCALED_ONLY)
    assert layer.can_add_bias == (case in WITHOUT_BIAS)
    assert layer.affine == (case not in SCALED_ONLY)
    x, y = run(analysis.model.proto, noise(analysis), [layer.x, layer.output])
    np.testing.assert_allclose(affine(analysis, layer, x), by_channel(y, layer), atol=1e-5)


@pytest.mark.parametrize("case", LAYERS)
def test_moments_through_a_layer_are_those_of_its_output(case: str) -> None:
    analysis = net(LAYERS[case], **GIVEN)
    (layer,), _ = find_layers(analysis)
    data = noise(analysis)
    moments = gather_moments(analysis.model, [layer], data, np.arange(SAMPLES), rows=10**6, seed=0)[layer.node]
    y = by_channel(run(analysis.model.proto, data, [layer.output])[0], layer)
    w = read(analysis, layer.weight)
    bias = np.zeros(len(y)) if layer.bias is None else read(analysis, layer.bias)
    assert moments.rows == y.shape[1]
    for g, rows in enumerate(np.split(np.arange(len(y)), len(w))):
        flat = w[g].reshape(len(rows), -1)
        np.testing.assert_allclose(flat @ moments.mean(g) + bias[rows], y[rows].mean(axis=1), atol=1e-5)
        np.testing.assert_allclose(flat @ moments.covariance(g) @ flat.T, np.cov(y[rows], bias=True), atol=1e-4)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (f"{ROWS} <float[6,4] w, float[4] b> {{ t = Abs (w) y = Gemm (x, t, b) }}", "computed in the graph"),
        (f"{ROWS} <float[6,4] w> {{ y = Gemm <alpha = 0.5> (x, w) }}", "scales its operands"),
        (
            f'{IMAGES} <float[6,4,3,3] w> {{ y = ConvTranspose <auto_pad = "SAME_UPPER", strides = [2,2]> (x, w) }}',
            "padding",
        ),
        ("(float[N,6] x) => (float[N,6] y) <float[6,6] w> { h = MatMul (x, w) y = MatMul (h, w) }", "shared"),
    ],
)
def test_what_cannot_be_refitted_is_refused_with_the_reason(graph: str, reason: str) -> None:
    layers, refused = find_layers(net(graph))
    assert not layers
    assert all(reason in why for why in refused.values())
    assert "y" in refused


EMBEDDING = """(int64[N,3] ids, float[N,3,6] x) => (float[N,3,20] y) <float[20,8] e, float[6,8] w> {
    g = Gather (e, ids) h = MatMul (x, w) s = Add (g, h) t = Transpose (e) y = MatMul (s, t) }"""


def test_a_weight_that_another_operator_takes_is_refused() -> None:
    layers, refused = find_layers(net(EMBEDDING))
    assert [layer.node for layer in layers] == ["h"]
    assert "shared" in refused["y"]


def test_places_folded_into_the_batch_are_all_looked_at() -> None:
    analysis = net(
        """(float[N,4,6] x) => (float[M,4] y) <int64[2] s, float[6,4] w, float[4] b> {
        f = Reshape (x, s) y = Gemm (f, w, b) }""",
        s=[-1, 6],
    )
    layers, _ = find_layers(analysis)
    moments = gather_moments(analysis.model, layers, noise(analysis), np.arange(SAMPLES), rows=10**6, seed=0)
    assert moments["y"].rows == 4 * SAMPLES


# ---- the refit ----------------------------------------------------------------------------------------------------

TWINS = {
    "Conv": """(float[N,3,6,6] x) => (float[N,5,4,4] y) <float[8,3,3,3] w, float[8] b, float[5,8,3,3] v> {
        h = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu (h) y = Conv (r, v) }""",
    "Conv in groups": """(float[N,3,6,6] x) => (float[N,6,6,6] y) <float[8,3,3,3] w, float[8] b, float[6,4,1,1] v, float[6] c> {
        h = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu (h) y = Conv <group = 2> (r, v, c) }""",
    "ConvTranspose": """(float[N,3,4,4] x) => (float[N,5,9,9] y) <float[8,3,1,1] w, float[8] b, float[8,5,3,3] v, float[5] c> {
        h = Conv (x, w, b) r = Relu (h) y = ConvTranspose <strides = [2,2]> (r, v, c) }""",
    "Gemm": """(float[N,6] x) => (float[N,5] y) <float[8,6] w, float[8] b, float[8,5] v, float[5] c> {
        h = Gemm <transB = 1> (x, w, b) r = Relu (h) y = Gemm (r, v, c) }""",
    "MatMul": """(float[N,4,6] x) => (float[N,4,5] y) <float[8,6] w, float[8] b, float[5,8] v> {
        t = Transpose (w) h = MatMul (x, t) k = Add (h, b) r = Relu (k) u = Transpose (v) y = MatMul (r, u) }""",
    "MatMul on the left": """(float[N,6,4] x) => (float[N,5,4] y) <float[8,6] w, float[8,1] b, float[5,8] v, float[5,1] c> {
        h = MatMul (w, x) k = Add (h, b) r = Relu (k) l = MatMul (v, r) y = Add (l, c) }""",
}  # fmt: skip
PAIRS = {"Conv in groups": np.array([0, 1, 0, 1, 2, 3, 2, 3])}
"""Which of the first layer's channels are equal; otherwise the first four are the last four."""


def twins(case: str) -> tuple[Analysis, np.ndarray]:
    """A network whose first layer has each of its channels twice."""
    pairs = PAIRS.get(case, np.tile(np.arange(4), 2))
    analysis = net(TWINS[case])
    w, b = analysis.model.value("w")[pairs], analysis.model.value("b")[pairs]
    return net(TWINS[case], w=w, b=b), pairs


def refitter(analysis: Analysis, data: Dataset, ridge: float = 1e-9) -> Refitter:
    layers = [layer for layer in find_layers(analysis)[0] if layer.inputs is not None]
    moments = gather_moments(analysis.model, layers, data, np.arange(len(data)), rows=10_000, seed=0)
    return Refitter(analysis, layers, moments, ridge)


@pytest.mark.parametrize("case", TWINS)
def test_cutting_one_of_each_two_equal_channels_costs_nothing(case: str) -> None:
    analysis, pairs = twins(case)
    data, (group,) = noise(analysis), analysis.groups
    refit = refitter(analysis, data)
    ranking = refit.rank(group)
    half = group.channels // 2
    kept = {group.name: ranking.kept(half)}
    assert len(set(pairs[list(kept[group.name])])) == half
    # Equal channels are equal to float32's rounding in their moments only, and the moments are singular but for the ridge.
    assert ranking.error(half) < 1e-4 < ranking.error(half - 1)
    values, biases = refit.solve(kept)
    whole, plain, refitted = (
        run(m, data, ["y"])[0] for m in (analysis.model.proto, cut(analysis, kept), cut(analysis, kept, values, biases))
    )
    np.testing.assert_allclose(refitted, whole, atol=1e-3)
    assert np.abs(plain - whole).max() > 0.1


@pytest.mark.parametrize("case", ["Conv", "Gemm"])
def test_constant_channels_go_into_the_bias(case: str) -> None:
    """The first layer's last four channels are constant; the reader's bias, given to it if it had none, takes them over."""
    plain = net(TWINS[case])
    w, b = plain.model.value("w").copy(), np.abs(plain.model.value("b"))
    w[4:] = 0
    analysis = net(TWINS[case], w=w, b=b)
    data, (group,) = noise(analysis), analysis.groups
    refit = refitter(analysis, data, ridge=1e-4)
    kept = {group.name: refit.rank(group).kept(4)}
    assert kept[group.name] == (0, 1, 2, 3)
    cut_model = cut(analysis, kept, *refit.solve(kept))
    whole, refitted = (run(m, data, ["y"])[0] for m in (analysis.model.proto, cut_model))
    np.testing.assert_allclose(refitted, whole, atol=1e-3)


def test_what_reads_no_cut_channel_is_left_alone() -> None:
    analysis, _ = twins("Gemm")
    assert refitter(analysis, noise(analysis)).solve({}) == ({}, {})


# ---- on a trained network -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[Analysis, Dataset, np.ndarray, np.ndarray]:
    analysis = analyse(load(MODELS / "digits_resnet.onnx"))
    data = sources.load(MODELS / "digits_resnet.npz", input_specs(analysis.model.proto), classes=10)
    return analysis, data, *data.split(0, 250, 250)


SETTINGS = Settings(Budget("channels", 0.5), rows=5_000)


def halves(analysis: Analysis) -> np.ndarray:
    return np.array([g.channels // 2 for g in analysis.groups])


def test_refit_beats_no_refit(digits: tuple[Analysis, Dataset, np.ndarray, np.ndarray]) -> None:
    analysis, data, calibration, reward = digits
    builder = Builder(analysis, SETTINGS, data, calibration)
    score = Scorer(analysis.model.original, data, reward, top1, "top1")
    kept = builder.kept(halves(analysis))
    large = {g.name: by_score(magnitude(analysis, g)).kept(g.channels // 2) for g in analysis.groups}
    refitted, same, by_size = (
        score(m) for m in (builder.build(kept, correct=False), cut(analysis, kept), cut(analysis, large))
    )
    assert refitted.value > max(same.value, by_size.value) + 0.1
    assert refitted.loss < 0.5 * min(same.loss, by_size.loss)


def test_refit_never_looks_at_the_labels(digits: tuple[Analysis, Dataset, np.ndarray, np.ndarray]) -> None:
    analysis, data, calibration, _ = digits
    assert data.labels is not None
    built = []
    for labels in (data.labels, np.roll(data.labels, 1), None):
        builder = Builder(analysis, SETTINGS, replace(data, labels=labels), calibration[:50])
        built.append(builder.build(builder.kept(halves(analysis))).SerializeToString(deterministic=True))
    assert built[0] == built[1] == built[2]


def test_what_was_solved_before_is_looked_up(
    digits: tuple[Analysis, Dataset, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis, data, calibration, _ = digits
    builder, counts = Builder(analysis, SETTINGS, data, calibration[:50]), halves(analysis)

    def built(counts: np.ndarray) -> bytes:
        return bytes(builder.build(builder.kept(counts), correct=False).SerializeToString(deterministic=True))

    solved: list[str] = []
    solve = Refitter._refitted

    def noted(self: Refitter, layer: Layer, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        solved.append(layer.node)
        return solve(self, layer, alive)

    monkeypatch.setattr(Refitter, "_refitted", noted)
    first, once = built(counts), len(solved)
    assert once > len(counts)
    assert built(counts) == first
    assert len(solved) == once, "nothing is solved again"
    counts[0] -= 1
    assert built(counts) != first
    assert once < len(solved) < 2 * once, "but what reads the one group that changed"
    monkeypatch.setattr(refit, "REMEMBERED", 0)
    counts[0] -= 1
    assert built(counts) == built(counts)
    counts[0] += 2
    assert built(counts) == first, "what is full still knows what it knew"


# ---- named criteria ------------------------------------------------------------------------------------------------

PAIR = "(float[N,4] x) => (float[N,2] y) <float[4,4] w, float[4,2] v> { h = MatMul (x, w) y = MatMul (h, v) }"


def test_criteria_order_channels_by_their_definitions() -> None:
    w = np.eye(4) * [1, 5, 1, 0.1]
    v = np.array([[1, 0], [0.5, 0], [0, 2], [4, 4]])
    analysis = net(PAIR, w=w, v=v)
    group, fitter = analysis.groups[0], refitter(analysis, noise(analysis), ridge=1e-4)
    assert magnitude(analysis, group).tolist() == [1, 0.5, 2, 8]
    found = wanda(analysis, group, fitter.layers, fitter.moments, fitter.weights)
    norms = np.sqrt(np.mean(np.square(run(analysis.model.proto, noise(analysis), ["h"])[0]), axis=0))
    assert np.allclose(found, norms * [1, 0.5, 2, 8] / (norms @ [1, 0.5, 2, 8]), rtol=1e-5)
    columns = w.T
    distances = np.array([sum(float(np.linalg.norm(a - b)) for b in columns) for a in columns])
    assert np.allclose(fpgm(analysis, group), distances)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_is_what_the_builder_cuts_by(
    criterion: str, digits: tuple[Analysis, Dataset, np.ndarray, np.ndarray]
) -> None:
    analysis, data, calibration, _ = digits
    orders = []
    for name in (criterion, "obs" if criterion != "obs" else "magnitude"):
        builder = Builder(analysis, replace(SETTINGS, criterion=name), data, calibration)
        orders.append([r.order.tolist() for r in builder.rankings])
    assert orders[0] != orders[1]
    assert all(sorted(o) == list(range(g.channels)) for o, g in zip(orders[0], analysis.groups, strict=True))


# ---- what a reader's error is worth ---------------------------------------------------------------------------------

BRANCHES = """(float[N,6] x) => (float[N,3] y) <float[6,8] w, float[8,4] a, float[8,4] b, float[4,3] u, float[4,3] v>
    { h = MatMul (x, w) k = MatMul (h, a) l = MatMul (h, b) s = MatMul (k, u) t = MatMul (l, v) y = Add (s, t) }"""


def test_a_readers_worth_is_what_the_output_makes_of_it() -> None:
    """One of two readers of a group reaches the output a hundred times weaker, its squared error a ten-thousandth."""
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 4, 3))
    analysis = net(BRANCHES, u=u, v=v / 100)
    fitter, data = refitter(analysis, noise(analysis), ridge=1e-4), noise(analysis)
    score = Scorer(analysis.model.original, data, np.arange(SAMPLES), agreement, "agreement")
    found = worths(analysis, fitter, score.loss, seed=0)
    assert set(found) == {"k", "l"}
    assert 4e-4 <= found["l"] / found["k"] < 1e-2  # the floor is a thousandth of the mean, hence half of that of k


def test_elimination_listens_to_the_reader_that_counts() -> None:
    """Each reader sees channels that the other does not; weighted, those of the one that reaches the output stay."""
    a, b = np.zeros((2, 8, 4))
    a[:4], b[4:] = np.eye(4), 3 * np.eye(4)
    analysis = net(BRANCHES, a=a, b=b, u=np.ones((4, 3)), v=np.ones((4, 3)) / 1_000)
    group = next(g for g in analysis.groups if g.channels == 8)
    fitter = refitter(analysis, noise(analysis), ridge=1e-4)
    fitter.worth = {"k": 1.0, "l": 1e-3}
    assert set(fitter.rank(group).kept(4)) == {0, 1, 2, 3}
    fitter.worth = {"k": 1e-3, "l": 1.0}
    assert set(fitter.rank(group).kept(4)) == {4, 5, 6, 7}


# ---- layers that share a weight -----------------------------------------------------------------------------------

SIAMESE = {
    "Gemm": """(float[N,6] x, float[N,6] q) => (float[N,5] y) <float[8,6] w, float[8] b, float[8,5] v, float[5] c> {
        h = Gemm <transB = 1> (x, w, b) r = Relu (h) one = Gemm (r, v, c)
        k = Gemm <transB = 1> (q, w, b) s = Relu (k) two = Gemm (s, v, c) y = Sub (one, two) }""",
    "Conv": """(float[N,3,6,6] x, float[N,3,4,4] q) => (float[N,5] y) <float[8,3,3,3] w, float[8] b, float[5,8,3,3] v> {
        h = Conv (x, w, b) r = Relu (h) one = Conv (r, v) o = ReduceMax <axes = [2,3], keepdims = 0> (one)
        k = Conv <pads = [1,1,1,1]> (q, w, b) s = Relu (k) two = Conv (s, v) p = ReduceMax <axes = [2,3], keepdims = 0> (two)
        y = Sub (o, p) }""",
}  # fmt: skip


@pytest.mark.parametrize("case", SIAMESE)
def test_layers_of_one_weight_are_refitted_together(case: str) -> None:
    """One of each two equal channels stands in for the other in both branches."""
    pairs, plain = np.tile(np.arange(4), 2), net(SIAMESE[case])
    w, b = (plain.model.value(name)[pairs] for name in "wb")
    analysis = net(SIAMESE[case], w=w, b=b)
    data = noise(analysis)
    builder = Builder(analysis, replace(SETTINGS, ridge=1e-9), data, np.arange(SAMPLES))
    kept = builder.kept(np.array([4]))
    assert len(set(pairs[list(kept[analysis.groups[0].name])])) == 4
    assert not builder.refused
    whole, cut_only, refitted = (
        run(m, data, ["y"])[0] for m in (analysis.model.proto, cut(analysis, kept), builder.refined(kept))
    )
    np.testing.assert_allclose(refitted, whole, atol=5e-3)
    assert np.abs(cut_only - whole).max() > 0.1
    finished = builder.deliverable(kept)
    assert sum(int(np.prod(t.dims)) for t in finished.graph.initializer) == (8 * w[0].size + 8) // 2 + (
        20 + 5 if case == "Gemm" else 20 * 9
    )


def test_moments_of_one_weight_are_those_of_all_that_its_layers_read() -> None:
    analysis = net(SIAMESE["Gemm"])
    ((one, other),) = [x for x in find_siblings(analysis) if x[0].inputs is not None]
    data = noise(analysis)
    moments = gather_moments(analysis.model, [one, other], data, np.arange(SAMPLES), rows=10**6, seed=0, memory=1e-9)
    both = np.concatenate(run(analysis.model.proto, data, ["r", "s"]))
    assert moments[one.node] is moments[other.node]
    np.testing.assert_allclose(moments[one.node].covariance(), np.cov(both.T, bias=True), atol=1e-5)


@pytest.mark.parametrize(
    "nodes",
    [
        "<float[4,6] w> { h = Gemm <transB = 1> (x, w) r = Relu (h) y = Gemm (r, w) }",
        "<float[6,6] w, float[6,6] u> { h = Gemm (x, w) r = Relu (h) k = Gemm (r, w) s = Relu (k) y = Gemm (s, u) z = Exp (w) }",
    ],
    ids=["turned round", "read by another operator"],
)
def test_layers_that_take_a_weight_in_another_way_are_not_refitted(nodes: str) -> None:
    outputs = "float[N,6] y, float[6,6] z" if "z" in nodes else "float[N,6] y"
    analysis = net(f"(float[N,6] x) => ({outputs}) {nodes}")
    assert find_siblings(analysis) == []
    assert any("shared" in why for why in find_layers(analysis)[1].values())
