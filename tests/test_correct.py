"""Statistics correction, measured anew on the cut network in plain onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_refit import by_channel, net, noise, refitter, run

from onnx_amc.builder import Kept
from onnx_amc.delivery import input_specs
from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import load
from onnx_amc.graph.taps import LARGEST, SMALLEST
from onnx_amc.prune.layers import Layer, find_layers
from onnx_amc.prune.refit import Values
from onnx_amc.prune.surgery import cut
from onnx_amc.run import data as sources
from onnx_amc.run.correct import Corrector
from onnx_amc.run.data import Dataset

MODELS = Path(__file__).parents[1] / "models"

NETS = {
    "Conv and Gemm": """(float[N,3,6,6] x) => (float[N,5] y)
        <float[8,3,3,3] w, float[8] b, float[12,8,3,3] w2, float[12,5] w3, float[5] b3> {
        h = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu (h) k = Conv (r, w2) r2 = Relu (k)
        p = GlobalAveragePool (r2) f = Flatten (p) y = Gemm (f, w3, b3) }""",
    "residual and grouped": """(float[N,3,6,6] x) => (float[N,4,13,13] y)
        <float[8,3,1,1] w, float[8] b, float[8,4,3,3] w2, float[8] b2, float[8,4,3,3] w3> {
        h = Conv (x, w, b) r = Relu (h) k = Conv <pads = [1,1,1,1], group = 2> (r, w2, b2) s = Add (k, h)
        r2 = Relu (s) y = ConvTranspose <strides = [2,2]> (r2, w3) }""",
    "tokens": """(float[N,5,6] x) => (float[N,5,4] y) <float[8,6] w, float[8] b, float[8,8] w2, float[8] b2, float[8,4] w3> {
        t = Transpose (w) h = MatMul (x, t) k = Add (h, b) e = Erf (k) l = MatMul (e, w2) m = Add (b2, l) s = Add (m, k)
        r = Relu (s) y = MatMul (r, w3) }""",
    "weights on the left": """(float[N,6,5] x) => (float[N,4,5] y)
        <float[8,6] w, float[8,1] b, float[8,8] w2, float[8,1] b2, float[4,8] w3, float[4,1] b3> {
        h = MatMul (w, x) k = Add (h, b) e = Relu (k) l = MatMul (w2, e) m = Add (b2, l) s = Add (m, k)
        r = Relu (s) n = MatMul (w3, r) y = Add (n, b3) }""",
    "scales and shifts that follow": """(float[N,3,6,6] x) => (float[N,5] y) <float[8,3,3,3] w, float[8,1,1] m, float[1,8,1,1] b,
        float[8,8,1,1] w2, float[8] m2, float[8] b2, float[8,5] w3, float[5] m3, float[5] b3> { h = Conv <pads = [1,1,1,1]> (x, w)
        s = Mul (h, m) a = Add (s, b) r = Relu (a) k = Conv (r, w2) t = Transpose <perm = [0,2,3,1]> (k) s2 = Mul (t, m2)
        a2 = Add (s2, b2) t2 = Transpose <perm = [0,2,3,1]> (r) d = Add (a2, t2) r2 = Relu (d) v = Transpose <perm = [0,3,1,2]> (r2)
        o = GlobalAveragePool (v) g = Flatten (o) p = MatMul (g, w3) s3 = Mul (p, m3) y = Add (s3, b3) }""",
}  # fmt: skip


def statistics(model: onnx.ModelProto, data: Dataset, layers: list[Layer]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and deviation of each layer's outputs over the samples, (outputs,) each."""
    found = zip(layers, run(model, data, [layer.output for layer in layers]), strict=True)
    rows = [by_channel(y.astype(np.float64), layer) for layer, y in found]
    return [(y.mean(axis=1), y.std(axis=1)) for y in rows]


def corrected(analysis: Analysis, data: Dataset, kept: Kept, values: Values, biases: Values) -> tuple[Values, Values]:
    return Corrector(analysis, find_layers(analysis)[0], data, np.arange(len(data)), 512).correct(kept, values, biases)


def halved(analysis: Analysis, data: Dataset) -> tuple[Kept, Values, Values]:
    """Half the channels, and what the refit makes of the rest."""
    refit = refitter(analysis, data, ridge=1e-4)
    kept = {g.name: refit.rank(g).kept(g.channels // 2) for g in analysis.groups}
    return kept, *refit.solve(kept)


def gaps(analysis: Analysis, data: Dataset) -> dict[str, tuple[float, float]]:
    """Halve and correct a network: the largest change of mean and deviation in each layer."""
    kept, values, biases = halved(analysis, data)
    layers, keep = find_layers(analysis)[0], analysis.keeper(kept)
    model = cut(analysis, kept, *corrected(analysis, data, kept, values, biases))
    pairs = zip(statistics(analysis.model.proto, data, layers), statistics(model, data, layers), strict=True)
    found = {}
    for layer, (old, new) in zip(layers, pairs, strict=True):
        alive = slice(None) if layer.outputs is None else keep(layer.outputs)
        mean, std = (float(np.abs(a[alive] - b).max()) for a, b in zip(old, new, strict=True))
        found[layer.node] = mean, std
    return found


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("case", NETS)
def test_every_layer_gets_back_its_mean_and_deviation(case: str, opset: int) -> None:
    analysis = net(NETS[case], opset)
    scaled_only = [layer.node for layer in find_layers(analysis)[0] if not layer.affine]
    assert scaled_only == (["y"] if case == "tokens" else [])
    for node, (mean, std) in gaps(analysis, noise(analysis)).items():
        assert std < 1e-3
        assert node in scaled_only or mean < 1e-3


@pytest.mark.parametrize("name", ["digits_mlp", "digits_mobilenet", "digits_resnet"])
def test_trained_networks_get_back_theirs(name: str) -> None:
    analysis = analyse(load(MODELS / f"{name}.onnx"))
    whole = sources.load(MODELS / f"{name}.npz", input_specs(analysis.model.proto), classes=10)
    data = replace(whole, arrays={k: v[np.arange(100)] for k, v in whole.arrays.items()}, labels=None)
    assert max(max(pair) for pair in gaps(analysis, data).values()) < 1e-3


def test_only_the_samples_asked_for_count() -> None:
    analysis = net(NETS["Conv and Gemm"])
    data, layers = noise(analysis), find_layers(analysis)[0]
    odd = replace(data, arrays={"x": data.arrays["x"][np.arange(1, len(data), 2)]})
    found = Corrector(analysis, layers, data, np.arange(1, len(data), 2), 512).correct({}, {}, {})
    wanted = Corrector(analysis, layers, odd, np.arange(len(odd)), 512).correct({}, {}, {})
    for a, b in zip(found, wanted, strict=True):
        assert {k: v.tolist() for k, v in a.items()} == {k: v.tolist() for k, v in b.items()}


@pytest.mark.parametrize("case", NETS)
def test_correcting_an_uncut_network_changes_nothing(case: str) -> None:
    analysis = net(NETS[case])
    values, biases = corrected(analysis, noise(analysis), {}, {}, {})
    for name, value in values.items():
        np.testing.assert_allclose(value, analysis.model.value(name), atol=1e-4)
    assert all(np.abs(b).max() < 1e-4 for b in biases.values())


def test_layers_without_a_bias_get_one_and_a_bare_product_is_only_scaled() -> None:
    analysis = net(NETS["Conv and Gemm"])
    kept, values, biases = halved(analysis, noise(analysis))
    assert set(corrected(analysis, noise(analysis), kept, values, biases)[1]) == {"k"}
    analysis = net(NETS["tokens"])
    kept, values, biases = halved(analysis, noise(analysis))
    values, biases = corrected(analysis, noise(analysis), kept, values, biases)
    assert not biases
    assert {"w", "b", "w2", "b2", "w3"} == set(values)


TWO = """(float[N,2] x) => (float[N,3] y) <float[2,2] w, float[2] b, float[2,3] v, float[3] c> {
    h = Gemm (x, w, b) y = Gemm (h, v, c) }"""


def test_a_scale_stays_within_its_bounds() -> None:
    """The second hidden channel nearly repeats the first, which is cut without a refit."""
    v = np.array([[1.0, 1.0, 0.5], [0.05, -1.0, 0.5]])  # loses nearly all of it; no longer cancels; loses half
    analysis = net(TWO, w=[[1, 1], [0, 0.1]], v=v)
    data = noise(analysis)
    kept: Kept = {analysis.groups[0].name: (1,)}
    values, _ = corrected(analysis, data, kept, {}, {})
    scale = values["v"][1] / v[1]
    np.testing.assert_allclose(scale[:2], [LARGEST, SMALLEST], rtol=1e-6)
    assert scale[2] == pytest.approx(2, rel=0.02)


def test_a_channel_that_never_moves_is_left_alone() -> None:
    v = np.array([[1.0, 0.0, 0.5], [1.0, 0.0, -0.5]])
    analysis = net(TWO, v=v)
    values, _ = corrected(analysis, noise(analysis), {analysis.groups[0].name: (1,)}, {}, {})
    np.testing.assert_array_equal(values["v"][:, 1], [0, 0])
    assert values["c"][1] == pytest.approx(analysis.model.value("c")[1], abs=1e-6)
    assert (values["v"][1, [0, 2]] != v[1, [0, 2]]).all()


# ---- what the taps must agree with the fold on ---------------------------------------------------------------------


def test_a_bias_that_cannot_be_written_back_does_no_harm_further_on() -> None:
    analysis = net(
        """(float[N,6] x) => (float[N,5] y) <float[6,16] w, float[16] b, float[16,12] w2, float[1] c, float[12,5] w3, float[5] d> {
        h = Gemm (x, w, b) r = Relu (h) k = Gemm (r, w2, c) r2 = Relu (k) y = Gemm (r2, w3, d) }""",
        c=[2.0],
    )
    assert max(gaps(analysis, noise(analysis))["y"]) < 1e-3


def test_an_output_that_comes_alive_does_no_harm_further_on() -> None:
    """The second output is the difference of two equal channels, until one of them is cut without a refit."""
    analysis = net(
        """(float[N,2] x) => (float[N,2] y) <float[2,2] w, float[2] b, float[2,3] v, float[3] c, float[3,2] u, float[2] d> {
        h = Gemm (x, w, b) k = Gemm (h, v, c) y = Gemm (k, u, d) }""",
        w=[[1, 1], [0, 0]],
        b=[0.5, 0.5],
        v=[[1.0, 1.0, 0.5], [0.5, -1.0, 0.5]],
    )
    data, layers = noise(analysis), find_layers(analysis)[0]
    kept: Kept = {analysis.groups[0].name: (1,)}
    model = cut(analysis, kept, *corrected(analysis, data, kept, {}, {}))
    old, new = (statistics(m, data, layers)[-1] for m in (analysis.model.proto, model))
    np.testing.assert_allclose(new, old, atol=1e-3)


def test_tensors_that_have_the_names_of_a_taps_are_none() -> None:
    odd = {"b": "h/tap/mean0", "c": "h/tap2/scale"}
    model = onnx.ModelProto()
    model.CopyFrom(net(TWO).model.proto)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [odd.get(name, name) for name in names]
    for tensor in model.graph.initializer:
        tensor.name = odd.get(tensor.name, tensor.name)
    analysis = analyse(load(model))
    assert max(max(pair) for pair in gaps(analysis, noise(analysis)).values()) < 1e-3


# ---- networks of other kinds --------------------------------------------------------------------------------------

MLP = """(T[B,6] x) => (T[B,5] y) <T[6,16] w, T[16] b, T[16,12] w2, T[12] c, T[12,5] w3, T[5] d> {
    h = Gemm (x, w, b) r = Relu (h) k = Gemm (r, w2, c) r2 = Relu (k) y = Gemm (r2, w3, d) }"""


@pytest.mark.parametrize(
    ("dtype", "near"),
    [
        ("float", 1e-3),
        pytest.param("double", 1e-3),
        pytest.param("float16", 1e-2),
    ],
)
def test_other_float_types_are_corrected(dtype: str, near: float) -> None:
    analysis = net(MLP.replace("T[", f"{dtype}[").replace("B", "N"))
    assert max(max(pair) for pair in gaps(analysis, noise(analysis)).values()) < near


def test_a_bias_that_is_added_has_the_type_of_the_weight_wherever_that_is_stored() -> None:
    analysis = net("""(float16[N,3,6,6] x) => (float16[N,4,6,6] y) <float16[8,3,1,1] w, float16[8,4,1,1] v> { h = Conv (x, w)
        r = Relu (h) i = Identity (v) k = Transpose <perm = [1,0,2,3]> (i) y = Conv (r, k) }""")
    assert max(max(pair) for pair in gaps(analysis, noise(analysis)).values()) < 1e-2


def test_types_that_numpy_has_not_are_no_matter_for_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    analysis = net("""(float[N,6] x) => (float[N,5] y) <bfloat16[6,16] w, float[16,5] v> {
        f = Cast <to = 1> (w) h = MatMul (x, f) r = Relu (h) y = MatMul (r, v) }""")
    assert gaps(analysis, noise(analysis))["y"][1] < 1e-3
    assert not capsys.readouterr().out


def test_a_fixed_batch_is_corrected_as_a_free_one() -> None:
    fixed, free = (net(MLP.replace("T[", "float[").replace("B", batch)) for batch in "4N")
    data = noise(free)
    kept, values, biases = halved(free, data)
    found, wanted = (corrected(a, data, kept, values, biases)[0] for a in (fixed, free))
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in wanted.items()}


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_that_a_reshape_names_is_corrected(batch: int) -> None:
    analysis = net(
        f"""(float[{batch},3,4,4] x) => (float[{batch},5] y)
        <float[8,3,3,3] w, float[8] b, float[32,5] v, float[5] c, int64[2] s> {{
        h = Conv (x, w, b) r = Relu (h) f = Reshape (r, s) y = Gemm (f, v, c) }}""",
        s=[batch, 32],
    )
    kept, values, biases = halved(analysis, noise(analysis))
    values, _ = corrected(analysis, noise(analysis), kept, values, biases)
    assert {"w", "b", "v", "c"} == set(values)
