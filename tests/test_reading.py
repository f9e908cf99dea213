"""Graphs read as torch modules: every operator of the table, and whole networks, against onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper, parser
from shared_nets import hydrated, needs_shared
from torch import Tensor
from torch.nn import functional

from onnx_amc.errors import ModelError
from onnx_amc.graph.load import load, true_inputs
from onnx_amc.recover.call import TABLE, Call, Result
from onnx_amc.recover.layout import MeanSquare, by_pixel, is_by_pixel
from onnx_amc.recover.reading import Reading, trainable

NETWORKS = [
    "resnet20_cifar10",
    "resnet56_cifar10",
    "mobilenet_v1_0.75_imagenet",
    "fastestdet",
    "mnist_cntk",
    "ultraface_rfb_320",
    "tv_densenet121",
    "tv_swin_t",
    "tv_convnext_tiny",
    "tv_shufflenet_v2_x0_5",
    "timm_edgenext_xx_small",
    "timm_eva02_tiny_patch14_224",
    "timm_levit_128s",
    "timm_resnest14d",
    "timm_swinv2_cr_tiny_224",
    "timm_mixer_s16_224",
    "timm_visformer_tiny",
    "timm_coat_lite_tiny",
]
"""All 71 that can be read were tried once; these have nearly every operator that any of them has."""
GAP = 1e-4
"""Largest difference to onnxruntime, relative to the largest value."""


@dataclass(frozen=True)
class Row:
    """One use of an operator: shapes are float inputs, arrays are constants, None is an input left out."""

    op: str
    inputs: tuple[tuple[int, ...] | np.ndarray | None, ...] = ((2, 3, 4),)
    attrs: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    positive: bool = False

    def __str__(self) -> str:
        return "-".join([self.op, *(f"{k}={v}" for k, v in self.attrs.items()), str(self.opset)])


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


X, Y, IMAGE = (2, 3, 4), (3, 4), (2, 4, 7, 8)
BOOLS = np.array([[True, False, True, False], [False, True, True, False], [True, True, False, False]])

PLAIN = (
    "Abs Asinh Atan Ceil Cos Cosh Erf Exp Floor HardSwish Identity IsNaN Mish Neg Reciprocal Relu Round Sigmoid Sign Sin Sinh "
    "Softplus Softsign Tan Tanh LeakyRelu ThresholdedRelu Elu Celu Selu HardSigmoid Flatten Shape Size Transpose Dropout"
)
REDUCTIONS = "ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceSumSquare"

ROWS = [
    *(Row(op, opset=18 if op == "Mish" else 17) for op in PLAIN.split()),
    *(Row(op, positive=True) for op in ("Log", "Sqrt")),
    *(Row(op, (floats(-0.9, 0.1, 0.7),)) for op in ("Acos", "Asin", "Atanh")),
    Row("Acosh", (floats(1.1, 2.0, 3.0),)),
    Row("ReduceSum", (np.arange(-6, 18, dtype=np.int32).reshape(2, 3, 4), ints(1))),
    Row("CumSum", (np.arange(-6, 18, dtype=np.int32).reshape(2, 3, 4), ints(1)), {"exclusive": 1}),
    *(Row(op, (X, Y)) for op in ("Add", "Sub", "Mul", "Div", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "PRelu")),
    Row("Div", (ints(7, -7, 5), ints(2, 2, -3))),
    Row("Equal", (ints(1, 2, 3), ints(1, 5, 3))),
    Row("Mod", (ints(7, -7, 5), ints(2, 2, -3))),
    Row("Mod", (X, Y), {"fmod": 1}),
    Row("Pow", (X, floats(2.0))),
    Row("Pow", (ints(2, 3), floats(2.0))),
    *(Row(op, (BOOLS, BOOLS[::-1].copy())) for op in ("And", "Or", "Xor")),
    Row("Not", (BOOLS,)),
    Row("Where", (BOOLS, Y, (1, 4))),
    *(Row(op, (X, Y, (1, 4))) for op in ("Max", "Mean", "Min", "Sum")),
    *(Row(op, (X,), {"axes": [1, -1], "keepdims": 0}) for op in REDUCTIONS.split()),
    Row("ReduceMean"),
    Row("ReduceMean", (X, ints(1)), {"keepdims": 0}, 18),
    Row("ReduceMean", (X, ints()), {"noop_with_empty_axes": 1}, 18),
    Row("ReduceSum", (X, ints(0, 2))),
    Row("ReduceLogSum", (X,), {"axes": [1]}, positive=True),
    Row("Clip", (X, floats(-0.5).reshape(()), floats(0.5).reshape(()))),
    Row("Clip", (X, None, floats(0.5).reshape(()))),
    Row("Clip", (X,), {"min": 0.0, "max": 6.0}, 10),
    Row("Clip"),
    Row("Gelu", opset=20),
    Row("Gelu", (X,), {"approximate": "tanh"}, 20),
    Row("Swish", (X,), {"alpha": 1.5}, 24),
    *(Row(op, (X,), {"axis": 1}, opset) for op in ("Softmax", "LogSoftmax") for opset in (11, 17)),
    *(Row(op, (X,), {"axis": 1, "keepdims": keep}) for op in ("ArgMax", "ArgMin") for keep in (0, 1)),
    *(Row("CumSum", (X, ints(1)), {"exclusive": e, "reverse": r}) for e in (0, 1) for r in (0, 1)),
    Row("MatMul", (X, (2, 4, 5))),
    Row("Gemm", ((3, 4), weights(5, 4), weights(5)), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Row("Gemm", ((4, 3), weights(4, 5)), {"transA": 1}),
    Row("Einsum", (X, (2, 4, 5)), {"equation": "bij,bjk->bik"}),
    Row("Cast", (X,), {"to": onnx.TensorProto.INT64}),
    Row("Cast", (ints(1, 0),), {"to": onnx.TensorProto.BOOL}),
    Row("CastLike", (X, ints(1))),
    # layers
    Row("Conv", (IMAGE, weights(6, 4, 3, 3), weights(6)), {"pads": [1, 2, 0, 1], "strides": [2, 1]}),
    Row("Conv", (IMAGE, weights(6, 2, 3, 3)), {"group": 2, "pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    *(Row("Conv", (IMAGE, weights(4, 4, 3, 2)), {"auto_pad": f"SAME_{p}", "strides": [2, 2]}) for p in ("UPPER", "LOWER")),
    Row("Conv", (IMAGE, weights(4, 4, 3, 2)), {"auto_pad": "VALID"}),
    Row("Conv", ((2, 4, 9), weights(3, 4, 3), weights(3)), {"pads": [1, 1]}),
    Row("Conv", ((1, 2, 5, 6, 7), weights(3, 2, 3, 3, 3)), {"strides": [2, 2, 2]}),
    Row("ConvTranspose", (IMAGE, weights(4, 3, 3, 3), weights(3)), {"strides": [2, 2], "pads": [1, 0, 1, 2]}),
    Row("ConvTranspose", (IMAGE, weights(4, 3, 2, 2)), {"strides": [2, 2], "output_padding": [1, 1], "group": 2}),
    Row("ConvTranspose", (IMAGE, weights(4, 3, 3, 3), weights(3)),
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1], "dilations": [1, 2]}),
    Row("MaxPool", (IMAGE,), {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    Row("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Row("MaxPool", (IMAGE,), {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1, "pads": [0, 0, 1, 1]}),
    Row("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Row("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "auto_pad": "VALID", "strides": [2, 2], "ceil_mode": 1}),
    Row("MaxPool", ((2, 4, 9),), {"kernel_shape": [3], "dilations": [2]}),
    Row("MaxPool", ((1, 2, 5, 6, 7),), {"kernel_shape": [2, 2, 2]}),
    *(
        Row("AveragePool", (IMAGE,),
            {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1], "count_include_pad": include, "ceil_mode": ceil}, 19)
        for include in (0, 1) for ceil in (0, 1)
    ),
    Row("AveragePool", (IMAGE,), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Row("AveragePool", (IMAGE,), {"kernel_shape": [3, 3], "auto_pad": "VALID", "strides": [2, 2], "ceil_mode": 1}),
    Row("AveragePool", ((2, 4, 9),), {"kernel_shape": [3]}),
    Row("GlobalAveragePool", (IMAGE,)),
    Row("GlobalMaxPool", (IMAGE,)),
    Row("BatchNormalization", (IMAGE, weights(4), weights(4), weights(4), np.abs(weights(4))), {"epsilon": 1e-3}),
    Row("InstanceNormalization", (IMAGE, weights(4), weights(4))),
    Row("GroupNormalization", (IMAGE, weights(4), weights(4)), {"num_groups": 2}, 21),
    Row("GroupNormalization", (IMAGE, weights(2), weights(2)), {"num_groups": 2}, 18),
    Row("LayerNormalization", (X, weights(4), weights(4))),
    Row("LayerNormalization", (X, weights(3, 4)), {"axis": 1}),
    Row("RMSNormalization", (X, weights(4)), opset=23),
    Row("LRN", (IMAGE,), {"size": 3, "alpha": 0.1}),
    Row("LpNormalization", (X,), {"p": 1, "axis": 1}),
    # shapes
    Row("Constant", (), {"value": numpy_helper.from_array(weights(2, 3))}),
    Row("Constant", (), {"value_floats": [1.0, 2.0]}),
    Row("ConstantOfShape", (ints(2, 3),), {"value": numpy_helper.from_array(ints(7))}),
    Row("ConstantOfShape", (ints(2, 3),)),
    Row("Shape", (X,), {"start": 1, "end": -1}),
    Row("Range", (ints(1).reshape(()), ints(9).reshape(()), ints(3).reshape(()))),
    Row("Reshape", (X, ints(0, -1))),
    Row("Flatten", (X,), {"axis": -1}),
    Row("Transpose", (X,), {"perm": [2, 0, 1]}),
    Row("Squeeze", ((2, 1, 3, 1),)),
    Row("Squeeze", ((2, 1, 3, 1), ints(-1))),
    Row("Squeeze", ((2, 1, 3, 1),), {"axes": [1]}, 11),
    Row("Unsqueeze", (X, ints(0, -1))),
    Row("Unsqueeze", (X,), {"axes": [1]}, 11),
    Row("Concat", (X, X), {"axis": -2}),
    Row("Split", (X, ints(1, 3)), {"axis": -1}, outputs=2),
    Row("Split", (X,), {"axis": 2}, 13, outputs=2),
    Row("Split", (X,), {"axis": 1, "num_outputs": 2}, 18, outputs=2),
    Row("Slice", (X, ints(1, 3), ints(9, -99), ints(1, -1), ints(1, -1))),
    Row("Slice", (X, ints(-2), ints(-1), ints(2))),
    Row("Slice", (X,), {"starts": [1], "ends": [3], "axes": [2]}, 9),
    Row("Slice", (X, ints(3), ints(1), ints(2))),
    Row("Gather", (X, ints(1, -1)), {"axis": 1}),
    Row("Gather", (ints(2, 3, 4), ints(1).reshape(()))),
    Row("GatherElements", (Y, ints(0, -1, 1, 1).reshape(2, 2)), {"axis": 1}),
    Row("GatherND", (X, ints(0, 1, 1, 2).reshape(2, 2))),
    Row("ScatterND", (Y, ints(0, 2).reshape(2, 1), weights(2, 4))),
    Row("Expand", ((3, 1), ints(2, 1, 4))),
    Row("Tile", (Y, ints(2, 1))),
    Row("Trilu", (Y, ints(1).reshape(()))),
    Row("Trilu", (Y,), {"upper": 0}),
    Row("Pad", (Y, ints(1, -1, 0, 2), floats(0.5).reshape(()))),
    Row("Pad", (Y, ints(1, 1), None, ints(-1)), opset=18),
    Row("Pad", (Y,), {"pads": [0, 1, 1, 0], "value": 2.0}, 10),
    *(Row("Pad", (Y, ints(1, 2, 1, 0)), {"mode": mode}, 19) for mode in ("reflect", "edge", "wrap")),
    *(Row("DepthToSpace", ((1, 8, 2, 3),), {"blocksize": 2, "mode": mode}) for mode in ("DCR", "CRD")),
    Row("SpaceToDepth", ((1, 2, 4, 6),), {"blocksize": 2}),
    *(
        Row("Resize", ((1, 2, 4, 5), None, floats(1, 1, 2, 1.5)), {"mode": mode, "coordinate_transformation_mode": kind})
        for mode in ("nearest", "linear") for kind in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ),
    *(
        Row("Resize", ((1, 2, 4, 5), None, None, ints(1, 2, 7, 3)), {"mode": "nearest", "nearest_mode": nearest})
        for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    Row("Resize", ((1, 2, 4, 5), None, None, ints(1, 2, 7, 3)),
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}, 19),
    Row("Resize", ((1, 2, 4, 5), floats(1, 1, 2, 2)), {"mode": "nearest"}, 10),
    Row("Resize", ((1, 2, 4, 5), floats(), floats(1, 1, 2, 3)),
        {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"}, 11),
    *(
        Row("Resize", ((1, 2, 10, 10), None, floats(1, 1, scale, scale)), {"mode": mode})
        for scale in (0.7, 1.1, 1.9) for mode in ("nearest", "linear")
    ),
    Row("ReduceSumSquare", ((2, 3),), {"noop_with_empty_axes": 1}, 18),
    Row("ReduceL1", ((2, 3),), {"noop_with_empty_axes": 1}, 18),
    Row("Upsample", ((1, 2, 4, 5), floats(1, 1, 2, 2)), {"mode": "linear"}, 9),
    Row("Upsample", ((1, 2, 4, 5),), {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 2.0]}, 7),
]  # fmt: skip


def network(row: Row) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A graph of that one node, and what to feed it."""
    rng = np.random.default_rng(0)
    names, feed, stored = [], {}, []
    for i, given in enumerate(row.inputs):
        names.append("" if given is None else f"i{i}")
        if isinstance(given, tuple):
            feed[f"i{i}"] = rng.standard_normal(given).astype(np.float32)
        elif given is not None:
            stored.append(numpy_helper.from_array(given, f"i{i}"))
    feed = {k: np.abs(v) + np.float32(0.1) for k, v in feed.items()} if row.positive else feed
    outputs = [f"o{i}" for i in range(row.outputs)]
    node = helper.make_node(row.op, names, outputs, **row.attrs)
    inputs = [helper.make_tensor_value_info(k, 1, v.shape) for k, v in feed.items()]
    graph = helper.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name=o) for o in outputs], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", row.opset)], ir_version=8), feed


def check(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> None:
    """The reading gives what onnxruntime gives: values, shapes and types."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options)
    expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
    reading, given = Reading(proto), {k: torch.from_numpy(v) for k, v in feed.items()}
    with torch.no_grad():
        found, by_pixels = reading(given), reading({k: by_pixel(v) for k, v in given.items()})
    # A device that has shapes but no numbers: what mixes it with the host, or waits to read from it, fails.
    elsewhere = reading.to("meta")({k: v.to("meta") for k, v in given.items()})
    assert {k: v.shape for k, v in elsewhere.items()} == {k: v.shape for k, v in found.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        for mine in (found[name].numpy(), by_pixels[name].numpy()):
            assert mine.shape == value.shape
            assert mine.dtype == value.dtype
            assert np.abs(mine.astype(float) - value).max(initial=0) <= GAP * max(np.abs(value).max(initial=0), 1e-6)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_an_operator_gives_what_onnxruntime_gives(row: Row) -> None:
    check(*network(row))


def test_every_operator_of_the_table_has_a_row() -> None:
    assert {row.op for row in ROWS} == set(TABLE)


@needs_shared
@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_network_gives_what_onnxruntime_gives(name: str) -> None:
    model = load(hydrated(name))
    rng = np.random.default_rng(0)
    feed = {i.name: rng.standard_normal(model.shapes[i.name]).astype(np.float32) for i in true_inputs(model.proto)}
    check(model.proto, feed)


@needs_shared
@pytest.mark.parametrize(("name", "operator"), [("dtln_1", "LSTM"), ("silero_vad", "If")])
def test_a_network_that_torch_cannot_read_is_refused_by_the_operator(name: str, operator: str) -> None:
    with pytest.raises(ModelError, match=f"no reading of .*{operator}"):
        Reading(load(hydrated(name)).proto)


def test_weights_are_trained_and_nothing_else_is() -> None:
    row = Row("Conv", (IMAGE, weights(6, 4, 3, 3), weights(6)))
    proto, feed = network(row)
    proto.graph.node.append(helper.make_node("Sub", ["o0", "mean"], ["o1"]))
    proto.graph.initializer.append(numpy_helper.from_array(floats(0.5), "mean"))
    proto.graph.output[0].name = "o1"
    assert trainable(proto) == {"i1", "i2"}
    reading = Reading(proto)
    before = {k: v.copy() for k, v in reading.trained().items()}
    optimizer = torch.optim.SGD(reading.parameters(), lr=0.1)
    reading({k: torch.from_numpy(v) for k, v in feed.items()})["o1"].square().mean().backward()
    optimizer.step()
    after = reading.trained()
    assert before.keys() == after.keys() == {"i1", "i2"}
    assert all(np.abs(after[k] - before[k]).max() > 0 for k in after)
    assert reading.initializer("mean").item() == 0.5


@needs_shared
def test_tensors_and_gradients_stay_by_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """resnet20 has all that used to break the order: strided slices, padded channels, sums and a mean at the end."""
    seen: list[tuple[str, Tensor]] = []

    def spied(call: Call, compute: Callable[[Call], Result]) -> Tensor:
        found = compute(call)
        assert isinstance(found, Tensor)
        if call.kind in {"Conv", "Relu"}:
            seen.append((call.kind, found))
            found.register_hook(lambda gradient: seen.append((f"gradient of {call.kind}", gradient)))  # type: ignore[no-untyped-call]
        return found

    for kind in ("Conv", "Relu"):
        monkeypatch.setitem(TABLE, kind, partial(spied, compute=TABLE[kind]))
    reading = Reading(load(hydrated("resnet20_cifar10")).proto)
    # As hooks run in turn and each sees what the one before it made, a spy sees a gradient before it is put in order; the layer
    # before has it then. Only what enters by the slices of the two shortcuts may be out of order.
    (logits,) = reading({"input": by_pixel(torch.randn(4, 3, 32, 32))}).values()
    logits.square().mean().backward()
    odd = [name for name, value in seen if not is_by_pixel(value)]
    assert len(seen) == 2 * (19 + 19)
    assert odd == ["gradient of Relu"] * 2


def test_the_mean_square_is_torch_s_own_and_its_gradient_lies_as_what_was_found() -> None:
    goal = torch.randn(3, 4, 5, 6)
    found = by_pixel(torch.randn(3, 4, 5, 6)).requires_grad_()
    apply: Callable[[Tensor, Tensor], Tensor] = MeanSquare.apply
    mine, theirs = apply(found, goal), functional.mse_loss(found, goal)
    (gradient,), (known,) = (torch.autograd.grad(3 * loss, found) for loss in (mine, theirs))
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.allclose(gradient, known, atol=1e-7)
    assert is_by_pixel(gradient)
    assert torch.autograd.grad(apply(found, found.detach()), found)[0].abs().max() == 0


def test_any_tensor_on_the_way_can_be_asked_for() -> None:
    proto, feed = network(Row("Relu"))
    proto.graph.node.append(helper.make_node("Neg", ["o0"], ["o1"]))
    proto.graph.output[0].name = "o1"
    found = Reading(proto)({k: torch.from_numpy(v) for k, v in feed.items()}, wanted=["o0"])
    assert found["o0"].numpy() == pytest.approx(np.maximum(feed["i0"], 0))
    assert (found["o1"] == -found["o0"]).all()


def test_an_operator_without_a_row_is_named() -> None:
    proto, _ = network(Row("Relu"))
    proto.graph.node[0].op_type = "Bernoulli"
    with pytest.raises(ModelError, match="Bernoulli"):
        Reading(proto)


def test_a_use_that_torch_cannot_repeat_is_named() -> None:
    proto, feed = network(Row("Resize", ((1, 2, 4, 5), None, floats(1, 1, 2, 2)), {"mode": "cubic"}))
    with pytest.raises(ModelError, match=r"'o0' \(Resize\).*cubic"):
        Reading(proto)({k: torch.from_numpy(v) for k, v in feed.items()})


def test_a_network_that_torch_computes_otherwise_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """No table knows every use of every operator: a training of another network would be worth nothing."""
    proto, feed = network(Row("Relu", ((2, 4),)))
    sent = {name: torch.from_numpy(value) for name, value in feed.items()}
    reading = Reading(proto)
    reading.hold(proto, feed, sent)
    for wrong in (lambda c: c.x, lambda c: c.x[:, :2].relu()):
        monkeypatch.setitem(TABLE, "Relu", wrong)
        with pytest.raises(ModelError, match="'o0' otherwise than onnxruntime"):
            reading.hold(proto, feed, sent)


def test_text_in_a_graph_has_no_reading() -> None:
    names = numpy_helper.from_array(np.array(["cat", "dog"], object), "names")
    node = helper.make_node("Gather", ["names", "i0"], ["o0"])
    inputs = [helper.make_tensor_value_info("i0", onnx.TensorProto.INT64, [3])]
    graph = helper.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name="o0")], [names])
    with pytest.raises(ModelError, match="text in 'names'"):
        Reading(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_a_mask_is_no_bias() -> None:
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]> g (float[N,4,6] x) => (float[N,4,6] y)
        {
            h = MatMul (x, q)
            k = Add (h, b)
            t = Transpose <perm = [0,2,1]> (k)
            s = MatMul (k, t)
            m = Add (s, mask)
            r = Add (m, row)
            p = Softmax (r)
            y = MatMul (p, k)
        }""")
    for name, shape in {"q": (6, 6), "b": (6,), "mask": (4, 4), "row": (1, 1, 4)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
    assert trainable(model) == {"q", "b"}
