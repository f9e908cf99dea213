"""Graphs read as torch modules: every operator of the table, and whole networks, against onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper, parser
from operator_rows import IMAGE, ROWS, Row, floats, weights
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


def test_a_weight_that_is_stored_in_bfloat16_is_read() -> None:
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]> g (float[N,6] x) => (float[N,6] y)
        { w = Cast <to = 1> (half)  h = MatMul (x, w)  y = Add (h, b) }""")
    half = helper.make_tensor("half", onnx.TensorProto.BFLOAT16, (6, 6), np.arange(36.0))
    model.graph.initializer.extend([half, numpy_helper.from_array(np.ones(6, np.float32), "b")])
    x = torch.eye(6)
    assert torch.equal(Reading(model)({"x": x})["y"], torch.arange(36.0).reshape(6, 6) + 1)


def test_a_type_that_torch_does_not_have_is_told() -> None:
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]> g (float[N,6] x) => (float[N,6] y)
        { w = Cast <to = 1> (four)  y = MatMul (x, w) }""")
    model.graph.initializer.append(helper.make_tensor("four", onnx.TensorProto.INT4, (6, 6), [1] * 36))
    with pytest.raises(ModelError, match="int4 in 'four'"):
        Reading(model)


def fill(model: onnx.ModelProto, value: float, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give a model initializers of one number."""
    for name, shape in shapes.items():
        model.graph.initializer.append(numpy_helper.from_array(np.full(shape, value, np.float32), name))


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
    fill(model, 0.0, {"q": (6, 6), "b": (6,), "mask": (4, 4), "row": (1, 1, 4)})
    assert trainable(model) == {"q", "b"}


def test_what_scales_and_shifts_each_output_of_a_product_is_trained() -> None:
    """A BatchNormalization that was not folded, biases behind a Reshape or by heads; no number that belongs to an activation."""
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]> g (float[N,3,6,6] x) => (float[N,P,2,2] y)
        {
            h = Conv (x, u)
            t = Transpose <perm = [0,2,3,1]> (h)
            k = Mul (t, m)
            a = Add (k, b)
            s = Add (a, three)
            r = Relu (s)
            q = Mul (r, gain)
            f = Reshape (q, rows)
            w = MatMul (f, v)
            z = Reshape (w, heads)
            l = Add (z, c)
            o = Relu (l)
            n = Mul (o, scale)
            y = Add (n, shift)
        }""")
    fill(model, 1.0, {"u": (4, 3, 1, 1), "m": (4,), "b": (4,), "three": (), "gain": (4,)})
    fill(model, 1.0, {"v": (4, 4), "c": (2, 2), "scale": (2, 1), "shift": (2, 1)})
    for name, shape in {"rows": (-1, 4), "heads": (-1, 36, 2, 2)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape), name))
    assert trainable(model) == {"u", "m", "b", "v", "c", "scale", "shift"}


def test_what_an_output_tells_of_a_weight_stays_true() -> None:
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]> g (float[N,6] x) => (float[N,6] y, float[6] b, float norm)
        {
            h = Gemm (x, u, a)
            k = Gemm (h, v, b)
            t = Transpose (w)
            norm = ReduceMax <keepdims = 0> (t)
            y = MatMul (k, w)
        }""")
    fill(model, 1.0, {"u": (6, 6), "v": (6, 6), "w": (6, 6), "a": (6,), "b": (6,)})
    assert trainable(model) == {"u", "v", "a"}


@pytest.mark.parametrize(
    ("listed", "trained"), [("ub", {"v", "a"}), ("uvab", {"u", "v", "a", "b"}), ("", {"u", "v", "a", "b"})]
)
def test_what_a_caller_may_replace_is_left_alone_unless_most_is_listed_so(listed: str, trained: set[str]) -> None:
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]> g (float[N,6] x) => (float[N,6] y)
        { h = Gemm (x, u, a)  y = Gemm (h, v, b) }""")
    shapes: dict[str, tuple[int, ...]] = {"u": (6, 6), "v": (6, 6), "a": (6,), "b": (6,)}
    fill(model, 1.0, shapes)
    model.graph.input.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shapes[name]) for name in listed
    )
    assert trainable(model) == trained
