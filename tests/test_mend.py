"""Models that onnxruntime takes as they are, though onnx's checker does not: mended when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import oracle
import pytest
from nets import Row, flat
from onnxruntime.transformers.float16 import convert_float_to_float16

import onnx_amc
from onnx_amc.errors import ModelError
from onnx_amc.graph import light
from onnx_amc.graph.load import load

TOY = """(float[N,3,6,6] x) => (float[N,4,6,6] y) <float[8,3,3,3] w, float[8] b, float[8,8,1,1] k, float[4,8,1,1] v>
    { h = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu (h) q = Conv (r, k) s = Relu (q) p = Conv (s, k) y = Conv (p, v) }"""
FILL = {"k": np.full((8, 8, 1, 1), 0.1)}
"""Stored once, and masked for each of its readers by itself."""
PLAIN = Row("plain", TOY, 24, weights=FILL)
OLD = Row("IR 3", TOY, 24, opset=8, ir=3, weights=FILL)
GELU = Row("Gelu", TOY.replace("Relu", "com.microsoft.Gelu"), 24, weights=FILL, domains=', "com.microsoft" : 1')
BRANCHES = """c = ReduceMax <keepdims = 0> (h) d = Cast <to = 9> (c) q = Relu (h) p = If (d)
    <then_branch = one () => (float[N,5,8] p) { s = Neg (q) p = Neg (s) },
     else_branch = other () => (float[N,5,8] t) { t = Exp (q) }>
    s = Add (p, h) r = MatMul (s, k)"""
"""What a branch makes goes by names that the graph has too."""
BRANCHED = flat("branches", BRANCHES, 8, "float[8,8] k")


def backwards(model: onnx.ModelProto) -> None:
    place = {n.output[0]: -i for i, n in enumerate(model.graph.node)}
    model.graph.node.sort(key=lambda node: place[node.output[0]])


def without_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].ClearField("type")


def without_name(model: onnx.ModelProto) -> None:
    model.graph.name = ""


def without_domain(model: onnx.ModelProto) -> None:
    del model.opset_import[1]


def with_the_domain_named(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.domain = node.domain or "ai.onnx"


def with_unlisted_weights(model: onnx.ModelProto) -> None:
    del model.graph.input[1:]


@pytest.mark.parametrize(
    ("row", "spoil"),
    [
        (PLAIN, backwards),
        (BRANCHED, backwards),
        (PLAIN, without_type),
        (PLAIN, without_name),
        (GELU, without_domain),
        (PLAIN, with_the_domain_named),
        (OLD, with_unlisted_weights),
    ],
    ids=lambda value: getattr(value, "name", getattr(value, "__name__", "")),
)
def test_what_onnxruntime_takes_is_mended(tmp_path: Path, row: Row, spoil: Callable[[onnx.ModelProto], None]) -> None:
    model, path = row.model(), tmp_path / "m.onnx"
    expected = onnx_amc.compress(model, channels=0.5, policy="uniform", refit=False, recover=False)
    spoil(model)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    result = onnx_amc.compress(path, channels=0.5, policy="uniform", refit=False, recover=False)
    assert result.record["compressed"]["macs"] == expected.record["compressed"]["macs"]
    assert oracle.gap(expected.model, result.model) == 0
    light.check(result.model)
    assert result.record["original"]["bytes"] == path.stat().st_size
    assert result.analysis.model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result.analysis.model.original == model


def test_a_network_converted_to_half_precision_is_cut() -> None:
    """The converter puts its casts behind all other nodes."""
    model = convert_float_to_float16(PLAIN.model(), keep_io_types=True)
    result = onnx_amc.compress(model, channels=0.5, policy="uniform", refit=False, recover=False)
    onnx.checker.check_model(result.model)
    assert result.record["compressed"]["macs"] < 0.5 * result.record["original"]["macs"]


def test_a_circle_through_a_branch_is_refused() -> None:
    model = BRANCHED.model()
    node = next(n for n in model.graph.node if n.output[0] == "q")
    node.input[0] = "r"
    with pytest.raises(ModelError, match=r"in a circle: '\w' <- '\w'"):
        load(model)
