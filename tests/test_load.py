"""Reading models: errors, folding, sharing, and what must survive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import oracle
import pytest
from nets import Row, flat, image
from onnx import TensorProto, helper, numpy_helper

from onnx_amc import compress
from onnx_amc.errors import ModelError
from onnx_amc.graph import light
from onnx_amc.graph.groups import analyse
from onnx_amc.graph.load import load
from onnx_amc.graph.shapes import OTHER_BATCH, OTHER_LENGTH, other_shapes
from onnx_amc.prune.surgery import cut, finish


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"", "not an ONNX model"),
        (b"\x00\x01nonsense", "not an ONNX model"),
        (image("x", "r = Relu (h)").model().SerializeToString()[:-20], "truncated"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "it holds no graph"),
    ],
    ids=["missing", "empty", "nonsense", "truncated", "no graph"],
)
def test_errors_name_the_file(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=said) as caught:
        load(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    assert caught.value.fix


def test_a_model_the_checker_refuses(tmp_path: Path) -> None:
    model = image("x", "r = Relu (h)").model()
    model.graph.node[1].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="checker refuses"):
        load(tmp_path / "m.onnx")


def test_missing_external_data(tmp_path: Path) -> None:
    model = image("x", "r = Relu (h)").model()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert load(tmp_path / "m.onnx").value("w").shape == (8, 3, 3, 3)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"w\.bin"):
        load(tmp_path / "m.onnx")


def test_size_arithmetic_is_folded() -> None:
    row = image("x", "s = Shape (w) d = Gather (s, i) u = Unsqueeze (d, z) p = Concat <axis = 0> (a, u, e) r = Reshape (h, p)", 8,
                "int64 i, int64[1] z, int64[1] a, int64[2] e", weights={"i": 0, "z": [0], "a": [0], "e": [6, 6]})  # fmt: skip
    model = load(row.model())
    assert [n.op_type for n in model.proto.graph.node] == ["Conv", "Reshape", "Conv"]
    assert model.value("p").tolist() == [0, 8, 6, 6]


@pytest.mark.parametrize("stale", ["value_info", "output"])
def test_shapes_that_a_file_states_may_be_out_of_date(stale: str) -> None:
    """Somebody has set the input's batch free and nothing else."""
    text = """(float[N,3,6,6] x) => (float[N,4] y, float[N,3,6,6] z)
        <float[8,3,1,1] w, float[288,4] v, int64 i, int64[1] a, int64[1] e> {
        z = Neg (x) h = Conv (z, w) n = Shape (%s) d = Gather (n, i) b = Unsqueeze (d, a) t = Concat <axis = 0> (b, e)
        f = Reshape (h, t) y = MatMul (f, v) }"""
    row = Row("n", text % ("h" if stale == "value_info" else "z"), 8, weights={"i": 0, "a": [0], "e": [-1]})
    model = row.model()
    if stale == "value_info":
        model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 8, 6, 6]))
    else:
        model.graph.output[1].type.tensor_type.shape.dim[0].dim_value = 1
    analysis = analyse(load(model))
    assert sum(g.channels for g in analysis.groups) == 8
    assert oracle.difference(analysis, {g.name: (1, 2, 5) for g in analysis.groups}) <= row.tolerance


@pytest.mark.parametrize("ir", [3, 8])
def test_a_default_that_a_caller_may_replace_is_no_constant(ir: int) -> None:
    """How often an image is enlarged; before IR 4 it is a constant that has to be listed."""
    row = image("n", """k = Mul (twice, two) t = Concat <axis = 0> (one, one, k, k) s = Cast <to = 1> (t) u = Upsample (h, s)
        m = Shape (u) q = Relu (u) r = Reshape (q, m)""", 8, "int64[1] twice, int64[1] two, int64[1] one",
        weights={"twice": [2], "two": [2], "one": [1]}, opset=9, ir=ir)  # fmt: skip
    model = row.model()
    if ir > 3:
        model.graph.input.append(helper.make_tensor_value_info("twice", TensorProto.INT64, [1]))
    analysis = analyse(load(model))
    kept = {g.name: (1, 2, 5) for g in analysis.groups}
    assert sum(g.channels for g in analysis.groups) == 8
    assert oracle.difference(analysis, kept) <= row.tolerance
    small, masked = oracle.delivered(analysis, kept), oracle.masked(model, oracle.document_of(analysis, kept))
    assert ("twice" in {i.name for i in small.graph.input}) == (ir > 3)
    if ir > 3:
        feed = oracle.feed(model, 2, 0) | {"twice": np.array([3])}
        (ours,), (theirs,) = (oracle.run(m, [feed])[0] for m in (small, masked))
        assert ours.shape == (2, 4, 36, 36)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_default_for_places_fixes_what_it_picks_from() -> None:
    row = image("n", "r = Gather <axis = 1> (h, i)", 0, "int64[8] i", weights={"i": [7, 1, 5, 3, 4, 2, 0, 6]})
    model = row.model()
    model.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, [8]))
    analysis = analyse(load(model))
    assert not analysis.groups
    assert [i.name for i in finish(analysis, cut(analysis, {})).graph.input] == ["x", "i"]


@pytest.mark.parametrize(
    ("body", "declared", "values", "free"),
    [
        ("q = Pad (h, p, k)", "int64[6] p, float k", {"p": [0] * 6, "k": 0.0}, "k"),
        ("d = QuantizeLinear (h, s) q = DequantizeLinear (d, s, o)", "float s, uint8 o", {"s": 0.05, "o": 0}, "o"),
        (
            "d = QuantizeLinear (h, s, z) q = DequantizeLinear (d, s, o)",
            "float s, int8 z, int8 o",
            {"s": 0.05, "z": 3, "o": 3},
            "o",
        ),
        ("p = Mul (h, h) n = ReduceMean <axes = [1]> (p) d = Add (n, k) q = Div (h, d)", "float k", {"k": 2.0}, "k"),
    ],
)
def test_a_default_is_no_zero_and_no_divisor_that_is_none(
    body: str, declared: str, values: dict[str, object], free: str
) -> None:
    """Channels that are contracted with themselves are masked at their source: it must be zero behind, whatever a caller gives."""
    row = flat(
        "n",
        f"{body} t = Transpose <perm = [0,2,1]> (q) m = MatMul (q, t) r = MatMul (m, h)",
        8,
        declared,
        weights=values,
    )
    model = row.model()
    assert sum(g.channels for g in analyse(load(model)).groups) == 8
    tensor = next(t for t in model.graph.initializer if t.name == free)
    model.graph.input.append(helper.make_tensor_value_info(free, tensor.data_type, list(tensor.dims)))
    assert not analyse(load(model)).groups


def test_sparse_initializers_and_local_functions_are_written_out() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]> toy (float[N,6] x) => (float[N,4] y) <float[8,4] v>
        { h = own.twice (x) m = MatMul (h, s) r = Relu (m) y = MatMul (r, v) }
        <opset_import: ["" : 17], domain: "own"> twice (a) => (b) { b = Add (a, a) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((8, 4), np.float32), "v"))
    del model.graph.value_info[:]
    values = numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "s")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [2], [3, 17]), [6, 8])
    )
    loaded = load(model)
    assert [n.op_type for n in loaded.proto.graph.node] == ["Add", "MatMul", "Relu", "MatMul"]
    assert loaded.value("s").reshape(-1)[[3, 17]].tolist() == [2.0, 3.0]
    assert sum(g.channels for g in analyse(loaded).groups) == 8


def test_sizes_that_an_input_leaves_open_are_looked_at_with_other_numbers() -> None:
    model = image("x", "r = Relu (h)").model()
    model.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", "C", 3, "L"]))
    assert other_shapes(model, {"x": (1, 1, 3, 6)})["x"] == (OTHER_BATCH, 1 + OTHER_LENGTH, 3, 6 + OTHER_LENGTH)
    model.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, ["T", "N", 3, 6]))
    assert other_shapes(model, {"x": (7, 1, 3, 6)})["x"] == (7 + OTHER_LENGTH, 1 + OTHER_LENGTH, 3, 6)
    model.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [1, 3, 6, 6]))
    assert other_shapes(model, {"x": (1, 3, 6, 6)}) == {}


def test_models_too_large_for_a_file_are_told_apart_by_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light, "LARGEST", 1)
    row = image("x", "r = Conv (h, u)", 16, "float[64,8,3,3] u", 64)
    one, other = row.model(), row.model()
    array = next(t for t in other.graph.initializer if t.name == "u")
    array.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(array) + 1, "u"))
    assert load(one).sha256 == load(row.model()).sha256
    assert load(one).sha256 != load(other).sha256


def params(model: onnx.ModelProto) -> int:
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer)


def test_what_was_stored_once_is_stored_once_again() -> None:
    row = image("x", "q = Conv (h, u, b) p = Relu (q) r = Conv (p, k, b)", 24, "float[8,8,1,1] u, float[8,8,1,1] k",
                weights={"b": np.zeros(8)})  # fmt: skip
    analysis = analyse(load(row.model()))
    assert params(finish(analysis, cut(analysis, {}))) == params(row.model())
    kept = {g.name: tuple(range(4)) for g in analysis.groups}
    small = finish(analysis, cut(analysis, kept))
    assert sorted(t.name for t in small.graph.initializer) == sorted(t.name for t in row.model().graph.initializer)
    some = finish(analysis, cut(analysis, {analysis.groups[0].name: (0, 1)}))
    assert sorted(t.dims[0] for t in some.graph.initializer if len(t.dims) == 1) == [2, 4, 8]


def test_constants_stay_nodes_and_everything_else_survives() -> None:
    row = image("x", "k = Constant <value = float[1] {2.0}> () r = Mul (h, k)")
    model = row.model()
    model.graph.node[0].doc_string = "a remark"
    model.graph.node[0].name = "first/conv::0"
    analysis = analyse(load(model))
    small = finish(analysis, cut(analysis, {g.name: (1, 2, 3) for g in analysis.groups}))
    assert [g.name for g in analysis.groups] == ["first/conv::0"]
    assert sorted(n.op_type for n in small.graph.node) == ["Constant", "Conv", "Conv", "Mul"]
    conv = next(n for n in small.graph.node if n.name == "first/conv::0")
    assert conv.doc_string == "a remark"
    assert small.producer_name == "tests"


def test_the_original_is_not_touched() -> None:
    model = image("x", "r = Relu (h)").model()
    before = model.SerializeToString(deterministic=True)
    analysis = analyse(load(model))
    cut(analysis, {g.name: (0,) for g in analysis.groups})
    assert model.SerializeToString(deterministic=True) == before
    assert analysis.model.original.SerializeToString(deterministic=True) == before


def test_packed_integers_reach_onnxruntime_as_they_are() -> None:
    """Block-quantised weights, two to a byte."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT4)
    packed = numpy_helper.from_array(np.random.default_rng(1).integers(-8, 8, (64, 64)).astype(kind), "u")
    scales = numpy_helper.from_array(np.full((2, 64), 0.1, np.float32), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["u", "s"], ["d"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, 1, ["N", 64]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [packed, scales])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    feed = {"x": np.ones((1, 64), np.float32)}
    expected = ort.InferenceSession(model.SerializeToString()).run(None, feed)[0]
    assert np.array_equal(light.session(model, ort.SessionOptions()).run(None, feed)[0], expected)
    assert load(model).bytes == model.ByteSize()


def test_an_image_whose_channels_come_last_is_taken_for_one() -> None:
    text = """(float[N,H,W,3] x) => (float[N,5] y) <float[16,3,3,3] a, float[5,16] v> { t = Transpose <perm = [0,3,1,2]> (x)
        h = Conv <strides = [2,2]> (t, a) p = GlobalAveragePool (h) q = Flatten (p) y = Gemm <transB = 1> (q, v) }"""
    row = Row("n", text, 0)
    assert load(row.model()).shapes["x"] == (1, 224, 224, 3)


def test_what_only_a_function_imports_is_imported() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18, "own" : 1]> f (float[N,6] x) => (float[N,4] y)
    <float[6,8] w, float[8] b, float[8,4] v> { g = own.layer (x, w, b) y = MatMul (g, v) }
    <opset_import: ["" : 18, "com.microsoft" : 1], domain: "own"> layer (a, k, c) => (r)
    { m = MatMul (a, k) n = Add (m, c) r = com.microsoft.Gelu (n) }"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for info in model.graph.value_info:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), info.name))
    del model.graph.value_info[:]
    result = compress(model, channels=0.5, policy="uniform", refit=False)
    assert result.record["compressed"]["macs"] == result.record["original"]["macs"] // 2
