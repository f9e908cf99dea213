"""Networks whose inputs, outputs or numbers are unusual: scalars, other types than float32, NaN and infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper, parser

import onnx_amc
from onnx_amc.delivery import Result
from onnx_amc.errors import OptionError
from onnx_amc.listener import Listener
from onnx_amc.run.metrics import fidelity, mse, power, psnr

SHAPES = {"a": (8, 32), "b": (32, 32), "c": (32, 5)}
X = np.random.default_rng(1).standard_normal((120, 8)).astype(np.float32)


def network(
    tail: str, inputs: str = "float[N,8] x", outputs: str = "float[N,5] y", **more: np.ndarray
) -> onnx.ModelProto:
    """Two hidden layers behind `h`, five numbers `z`, and a tail to the outputs."""
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17]> net ({inputs}) => ({outputs}) {{
            h = MatMul(x, a)
            i = Relu(h)
            j = MatMul(i, b)
            k = Relu(j)
            z = MatMul(k, c)
            {tail}
        }}""")
    rng = np.random.default_rng(0)
    weights = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32) for name, shape in SHAPES.items()
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in (weights | more).items())
    return model


class Warned(Listener):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


def answers(model: onnx.ModelProto) -> np.ndarray:
    """The first output for all samples."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": X})[0]
    return found


def cut(model: onnx.ModelProto, **options: Any) -> Result:
    """A run that trains what the uniform plan leaves, unless told otherwise."""
    how: dict[str, Any] = {"params": 0.5, "policy": "uniform", "recover": True, "round_to": 1} | options
    epochs = {"recover_epochs": 2} if how["recover"] else {}
    return onnx_amc.compress(model, how.pop("data", {"x": X}), **epochs | how)


def test_a_scalar_that_all_samples_share_does_not_stop_a_training() -> None:
    model = network("y = Mul(z, t)", inputs="float[N,8] x, float t")
    told = cut(model, data={"x": X, "t": np.float32(1.5)}).record["recover"]
    assert told["epochs"] == 2


def test_outputs_of_float64_are_trained_towards() -> None:
    told = cut(network("y = Cast<to = 11>(z)", outputs="double[N,5] y")).record["recover"]
    assert told["epochs"] == 2
    assert told["after"] >= told["before"]


@pytest.mark.parametrize(
    "options", [{"policy": "uniform"}, {"policy": "ddpg", "episodes": 3}], ids=["recovery", "search"]
)
def test_a_run_does_not_depend_on_torch_s_default_type(options: dict[str, Any]) -> None:
    model = network("y = Identity(z)")
    expected = cut(model, **options).model.SerializeToString()
    torch.set_default_dtype(torch.float64)
    try:
        assert cut(model, **options).model.SerializeToString() == expected
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_a_refit_takes_nothing_from_what_half_precision_cannot_hold(granularity: str) -> None:
    """The last hidden layer goes beyond 65504 on some samples, where a Min behind it takes it back."""
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]> net (float16[N,8] x) => (float16[N,5] y) {
            h = MatMul(x, a)
            i = Relu(h)
            j = MatMul(i, b)
            k = Min(j, most)
            l = Max(k, least)
            y = MatMul(l, c)
        }""")
    rng = np.random.default_rng(0)
    values = {
        "a": rng.standard_normal((8, 32)),
        "b": 2e3 * rng.standard_normal((32, 32)),
        "c": rng.standard_normal((32, 5)),
    }
    values |= {"most": np.array(100.0), "least": np.array(-100.0)}
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float16), name) for name, v in values.items())
    found = cut(model, data={"x": X.astype(np.float16)}, granularity=granularity, recover=False)
    weights = [numpy_helper.to_array(t) for t in found.model.graph.initializer]
    assert all(np.isfinite(w).all() for w in weights)
    assert found.record["warnings"] == []


def test_outputs_that_are_no_longer_numbers_are_warned_of() -> None:
    """A square root of what is positive in the original alone."""
    inside = answers(network("y = Identity(z)"))
    model, heard = network("s = Sub(z, least)  y = Sqrt(s)", least=inside.min(axis=0)), Warned()
    found = cut(model, refit=False, recover=False, listener=heard)
    assert len(heard.said) == 1
    assert "answers NaN or infinity to" in heard.said[0]
    assert found.record["warnings"] == heard.said


def test_an_original_that_answers_no_number_is_refused_and_single_ones_are_warned_of() -> None:
    inside = answers(network("y = Identity(z)"))
    never, always = (bound(axis=0) for bound in (inside.max, inside.min))
    with pytest.raises(OptionError, match="the original itself answers NaN or infinity to each of the"):
        cut(network("s = Sub(z, top)  y = Sqrt(s)", top=never + 1))
    heard = Warned()
    bare = {"refit": False, "recover": False, "metric": "agreement"}
    found = cut(network("s = Sub(z, low)  y = Sqrt(s)", low=np.quantile(inside, 0.02, axis=0)), listener=heard, **bare)
    assert "the original itself answers NaN or infinity to" in heard.said[0]
    assert 0.5 < found.record["original"]["score"] < 1
    heard = Warned()
    found = cut(network("s = Sub(z, low)  y = Sqrt(s)", low=always), listener=heard, **bare)
    assert found.record["original"]["score"] == 1


MASK = np.array([0, 0, 0, 0, -np.inf], np.float32)


def test_a_class_that_is_ruled_out_is_no_difference() -> None:
    z = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    off = z + np.float32(0.1)
    plain, masked = ([a[:, :4] for a in (z, off)], [a + MASK for a in (z, off)])
    for metric in (mse, psnr):
        share = 0.8 if metric is mse else 1.0  # of the elements that can differ
        assert metric([masked[1]], None, [masked[0]]) == pytest.approx(
            share * metric([plain[1]], None, [plain[0]]), rel=0.05
        )
    assert fidelity([masked[1]], None, [masked[0]]) == pytest.approx(fidelity([plain[1]], None, [plain[0]]))
    assert fidelity([masked[0]], None, [masked[0]]) == 1
    assert fidelity([z], None, [masked[0]]) == 1 - 1e6
    now_and_then = np.where(np.arange(200).reshape(40, 5) % 7 == 0, -np.inf, z)
    assert power(now_and_then) / power(z) == pytest.approx(6 / 7, rel=0.1)


def test_a_network_that_rules_a_class_out_is_searched_and_trained_as_one_that_does_not() -> None:
    models = [network("y = Add(z, mask)", mask=mask) for mask in (np.zeros(5, np.float32), MASK)]
    plain, masked = (cut(model, policy="ddpg", episodes=2) for model in models)
    assert all(t.loss < 10 for t in masked.trials)
    assert masked.record["recover"]["epochs"] == plain.record["recover"]["epochs"] == 2
    assert all(e["error"] < 10 for e in masked.details["layer_errors"])
    assert masked.details["layer_errors"]
