"""Eight bits after compression: what is written, what it is worth, what is said where it cannot be had."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nets import Row
from onnx import TensorProto, numpy_helper

import onnx_amc
from onnx_amc.cli import main
from onnx_amc.delivery import figures, input_specs
from onnx_amc.errors import ModelError
from onnx_amc.graph.load import load
from onnx_amc.prune.sparse import store
from onnx_amc.report import record, view
from onnx_amc.run import data as sources
from onnx_amc.run.metrics import relative
from onnx_amc.run.quantise import quantised
from onnx_amc.run.samples import Dataset

MODELS = Path(__file__).parents[1] / "models"
PLAIN = ("--flops", "0.6", "--policy", "uniform", "--no-refit", "--int8")
"""A run of a second: what is quantised is not how a plan was found."""


def samples(model: onnx.ModelProto, count: int = 40) -> Dataset:
    """Noise for a toy network."""
    (spec,) = input_specs(model)
    shape = (count, *(d or 8 for d in spec.shape[1:]))
    return Dataset((spec,), {spec.name: np.random.default_rng(1).normal(size=shape).astype(np.float32)}, None, "noise")


def in_int8(model: onnx.ModelProto, provider: str = "CPUExecutionProvider") -> onnx.ModelProto:
    return quantised(model, samples(model), np.arange(32), provider=provider)


def error(model: onnx.ModelProto, other: onnx.ModelProto) -> float:
    """Squared error of the second on samples that no range was taken from, relative to the first's variance."""
    data = samples(model)
    feed = data.batch(np.arange(32, 40))
    left, right = (ort.InferenceSession(m.SerializeToString()).run(None, feed)[0] for m in (model, other))
    return relative(right, left)


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mobilenet"])
def test_the_int8_model_lies_beside_the_float_one_and_both_are_told_of(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, told = tmp_path / "small.onnx", tmp_path / "told.json"
    data = str(MODELS / f"{name}.npz")
    assert (
        main(["compress", str(MODELS / f"{name}.onnx"), "--data", data, *PLAIN, "-o", str(out), "--json", str(told)])
        == 0
    )
    shown = capsys.readouterr()
    small, eight = out, tmp_path / "small.int8.onnx"
    found = json.loads(told.read_text())
    assert "int8" in shown.out
    assert str(eight) in shown.out
    assert found["int8"]["out"] == str(eight)
    assert found["int8"]["bytes"] == eight.stat().st_size < small.stat().st_size == found["compressed"]["bytes"]
    assert found["int8"]["macs"] == found["compressed"]["macs"] == figures(onnx.load(eight))["macs"]
    assert found["int8"]["params"] == found["compressed"]["params"]
    assert found["int8"]["latency_ms"] > 0
    assert found["seconds"]["int8"] > 0
    whole = [onnx_amc.evaluate(path, MODELS / "digits_test.npz")["score"] for path in (small, eight)]
    assert abs(whole[1] - whole[0]) <= 0.02
    assert abs(found["int8"]["score"] - found["compressed"]["score"]) <= 0.02
    run = record.read_all(tmp_path / "small.run")[0]
    assert run.record["int8"] == found["int8"]
    assert run.details["sha256"]["int8"] == hashlib.sha256(eight.read_bytes()).hexdigest()
    assert list(view.comparison(run).head) == ["", "original", "uniform", "delivered", "int8"]
    assert not list(tmp_path.glob(".*"))


def test_the_float_model_is_the_same_as_without(tmp_path: Path) -> None:
    model, data = str(MODELS / "digits_mobilenet.onnx"), str(MODELS / "digits_mobilenet.npz")
    with_int8 = onnx_amc.compress(model, data, flops=0.6, policy="uniform", refit=False, int8=True)
    without = onnx_amc.compress(model, data, flops=0.6, policy="uniform", refit=False)
    assert with_int8.model.SerializeToString(deterministic=True) == without.model.SerializeToString(deterministic=True)
    assert without.int8 is None
    assert "int8" not in without.record
    assert not without.save_int8(tmp_path / "none.onnx")
    assert not list(tmp_path.iterdir())
    assert with_int8.save_int8(tmp_path / "eight.onnx")
    assert onnx.load(tmp_path / "eight.onnx") == with_int8.int8


def test_without_data_the_ranges_come_from_made_up_inputs(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes((MODELS / "digits_mobilenet.onnx").read_bytes())
    assert main(["compress", str(model), *PLAIN, "--quiet"]) == 0
    assert (tmp_path / "model.amc.int8.onnx").is_file()


def test_each_budget_has_its_own(tmp_path: Path) -> None:
    model, data = str(MODELS / "digits_mlp.onnx"), str(MODELS / "digits_mlp.npz")
    out, options = tmp_path / "s.onnx", ["--policy", "uniform", "--no-refit", "--int8", "--quiet"]
    assert main(["compress", model, "--data", data, "--flops", "0.8,0.5", "-o", str(out), *options]) == 0
    sizes = [(tmp_path / f"s-{ratio}.int8.onnx").stat().st_size for ratio in ("0.8", "0.5")]
    assert sizes[0] > sizes[1]


def test_what_cannot_be_quantised_is_delivered_in_float(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "eight.onnx"
    data = sources.load(MODELS / "digits_mlp.npz", input_specs(load(MODELS / "digits_mlp.onnx").proto), classes=10)
    onnx.save(quantised(onnx.load(MODELS / "digits_mlp.onnx"), data, np.arange(50)), model)
    told = tmp_path / "told.json"
    again = ["compress", str(model), "--data", str(MODELS / "digits_mlp.npz"), *PLAIN, "--json", str(told)]
    assert main(again) == 0
    assert "no int8 model, only the float one: it is quantised already" in capsys.readouterr().err
    assert (tmp_path / "eight.amc.onnx").is_file()
    assert not (tmp_path / "eight.amc.int8.onnx").exists()
    assert json.loads(told.read_text())["int8"] == {"refused": "it is quantised already"}


def test_a_place_that_cannot_be_written_is_refused_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.int8.onnx").mkdir()
    assert main(["compress", str(MODELS / "digits_mlp.onnx"), *PLAIN, "-o", str(tmp_path / "small.onnx")]) == 2
    assert "small.int8.onnx: is a folder" in capsys.readouterr().err
    assert not (tmp_path / "small.onnx").exists()


def test_the_model_that_is_read_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "small.int8.onnx"
    model.write_bytes((MODELS / "digits_mlp.onnx").read_bytes())
    assert main(["compress", str(model), *PLAIN, "-o", str(tmp_path / "small.onnx")]) == 2
    assert "is MODEL itself" in capsys.readouterr().err
    assert model.read_bytes() == (MODELS / "digits_mlp.onnx").read_bytes()


# ---- the network -----------------------------------------------------------------------------------------------------

DEPTHWISE = Row(
    "depthwise",
    "(float[N,4,8,8] x) => (float[N,6,8,8] y) <float[6,4,1,1] a, float[6] b, float[6,1,3,3] w, float[6] v> "
    "{ c = Conv(x, a, b)  r = Relu(c)  y = Conv<group=6,pads=[1,1,1,1]>(r, w, v) }",
    0,
)


def test_every_output_channel_has_a_scale_and_a_depthwise_filter_too() -> None:
    weights = np.random.default_rng(0).normal(size=(6, 1, 3, 3)) * np.logspace(-3, 1, 6).reshape(6, 1, 1, 1)
    model = Row(DEPTHWISE.name, DEPTHWISE.text, 0, weights={"w": weights}).model()
    eight = in_int8(model)
    found = stored(eight)
    assert found["w_quantized"].dtype == np.int8
    assert found["w_scale"].shape == (6,)
    assert np.allclose(
        found["w_quantized"] * found["w_scale"].reshape(6, 1, 1, 1),
        weights,
        rtol=0,
        atol=0.04 * np.abs(weights).max((1, 2, 3), keepdims=True),
    )
    assert np.abs(found["w_quantized"]).max(axis=(1, 2, 3)).min() >= 126
    assert error(model, eight) < 5e-3


@pytest.mark.parametrize(("provider", "kind"), [("CPUExecutionProvider", np.uint8), ("CUDAExecutionProvider", np.int8)])
def test_activations_are_what_the_provider_likes(provider: str, kind: type) -> None:
    eight = in_int8(DEPTHWISE.model(), provider)
    points = stored(eight)
    zeros = [points[n.input[2]] for n in eight.graph.node if n.op_type == "QuantizeLinear"]
    assert zeros
    assert {z.dtype.type for z in zeros} == {kind}
    if kind is np.int8:
        assert not any(z.any() for z in zeros)


@pytest.mark.parametrize(
    "row",
    [
        Row("old", DEPTHWISE.text, 0, opset=9, ir=3),
        Row(
            "keras dense",
            "(float[N,16] x) => (float[N,8] y) <float[16,8] w, float[1,8] b> { m = MatMul(x, w)  y = Add(m, b) }",
            0,
        ),
        Row(
            "batch norm",
            "(float[N,4,8,8] x) => (float[N,6,8,8] y) <float[6,4,1,1] w, float[6] s, float[6] b, float[6] m, float[6] v> "
            "{ c = Conv(x, w)  n = BatchNormalization(c, s, b, m, v)  y = Relu(n) }",
            0,
            weights={"v": np.ones(6), "s": np.ones(6)},
        ),
    ],
    ids=lambda row: row.name,
)
def test_it_computes_about_the_same(row: Row) -> None:
    model = row.model()
    before = model.SerializeToString()
    eight = in_int8(model)
    onnx.checker.check_model(eight)
    assert model.SerializeToString() == before
    assert any(t.data_type == TensorProto.INT8 for t in eight.graph.initializer)
    assert error(model, eight) < 5e-3
    assert {p.key for p in eight.metadata_props} == {"author"}
    assert {o.domain for o in eight.opset_import} == {""}


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_weights_that_are_stored_by_their_nonzeros_are_quantised_too(op: str) -> None:
    weights = np.random.default_rng(0).normal(size=(32, 32))
    weights[np.abs(weights) < 1] = 0
    text = f"(float[N,32] x) => (float[N,32] y) <float[32,32] w> {{ y = {op}(x, w) }}"
    model = Row("sparse", text, 0, weights={"w": weights}).model()
    expected = stored(in_int8(model))
    assert store(model, frozenset({"w"})) == 1
    eight = in_int8(model)
    assert not eight.graph.sparse_initializer
    assert len(model.graph.sparse_initializer) == 1
    found = stored(eight)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_single_weights_are_stored_by_their_nonzeros_in_int8_too() -> None:
    model = MODELS / "digits_mlp.onnx"
    how: dict[str, Any] = {"granularity": "weight", "policy": "uniform", "refit": False, "recover": False, "int8": True}
    result = onnx_amc.compress(model, params=0.1, **how)
    eight = result.int8
    assert eight is not None
    assert {s.values.data_type for s in eight.graph.sparse_initializer} == {TensorProto.INT8}
    assert len(eight.SerializeToString()) == result.record["int8"]["bytes"] < result.record["compressed"]["bytes"]
    few = onnx_amc.compress(model, params=0.9, **how).int8
    assert few is not None
    assert not few.graph.sparse_initializer


def test_nothing_to_quantise_is_said() -> None:
    model = Row(
        "none",
        "(float[N,8] x) => (float[N,8] y) <float[8,8] w> { y = Einsum<equation='ij,jk->ik'>(x, w) }".replace("'", '"'),
        0,
    ).model()
    with pytest.raises(ModelError, match="no operator that onnxruntime quantises"):
        in_int8(model)


def test_what_the_tools_raise_becomes_a_message() -> None:
    model = DEPTHWISE.model()
    data = samples(model)
    with pytest.raises(ModelError, match=r"onnxruntime cannot quantise it: .*No data"):
        quantised(model, data, np.arange(0))


def test_the_tools_are_silent_and_leave_logging_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    model = DEPTHWISE.model()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    in_int8(model)
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""
    assert logging.root.manager.disable == logging.NOTSET


def test_same_samples_same_bytes_whatever_the_hash_seed() -> None:
    script = (
        "import sys, hashlib, numpy as np\n"
        "from test_int8 import DEPTHWISE, in_int8\n"
        "print(hashlib.sha256(in_int8(DEPTHWISE.model()).SerializeToString(deterministic=True)).hexdigest())"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(MODELS.parent)])
    found = {
        subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1
    assert len(found.pop().strip()) == 64
