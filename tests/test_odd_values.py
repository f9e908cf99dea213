"""Networks whose inputs, outputs or numbers are unusual: scalars, other types than float32, NaN and infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser

import onnx_amc
from onnx_amc.delivery import Result

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


def cut(model: onnx.ModelProto, **options: Any) -> Result:
    """A run that trains what the uniform plan leaves."""
    how: dict[str, Any] = {"params": 0.5, "policy": "uniform", "recover": True, "recover_epochs": 2, "round_to": 1}
    return onnx_amc.compress(model, options.pop("data", {"x": X}), **how | options)


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
