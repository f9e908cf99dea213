"""What a network is fed, doubts about it, and inputs that are made up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from shared_nets import SHARED, needs_shared

import onnx_amc
from onnx_amc.cli import main
from onnx_amc.run.feed import describe, informed, recalls, sentence
from onnx_amc.run.madeup import synthesise
from onnx_amc.run.samples import Dataset, InputSpec
from onnx_amc.run.scenes import scenes

F32 = np.dtype(np.float32)
MODELS = Path(__file__).parents[1] / "models"


def test_describe_says_range_mean_and_deviation_per_channel() -> None:
    x = np.zeros((8, 3, 4, 5), np.float32)
    x[:, 1], x[:, 2, :2] = 7, 2
    data = Dataset((InputSpec("x", F32, (None, 3, 4, 5)),), {"x": x}, None, "test")
    (row,) = describe(data, np.arange(8))
    assert row == {"name": "x", "type": "float32", "shape": [3, 4, 5], "layout": "NCHW", "min": 0.0, "max": 7.0,
                   "mean": [0.0, 7.0, 1.0], "std": [0.0, 0.0, 1.0]}  # fmt: skip
    assert "'x' (N, 3, 4, 5) float32 NCHW, from 0 to 7, mean 0, 7, 1" in sentence(row)
    ids = Dataset((InputSpec("ids", np.dtype(np.int64), (None, 2)),), {"ids": np.ones((8, 2), np.int64)}, None, "test")
    assert describe(ids, np.arange(8))[0]["mean"] == 1.0


def test_recall_of_a_network_that_looks_at_nothing_is_chance() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    assert recalls(np.zeros(100, int), labels) == 0.5
    assert recalls(labels, labels) == 1.0


def test_informed() -> None:
    sure = np.eye(4) * 100
    assert informed([sure]) == pytest.approx(np.log(4))
    assert informed([np.ones((4, 4))]) == pytest.approx(0)
    assert informed([np.eye(4)]) == pytest.approx(np.log(4)), "probabilities as they are"


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """The digits network with labels that belong to other images."""
    shutil.copy(MODELS / "digits_resnet.onnx", tmp_path)
    with np.load(MODELS / "digits_resnet.npz") as held:
        np.savez(tmp_path / "shuffled.npz", **{**held, "y": np.roll(held["y"], 7)})
    return tmp_path


def test_an_original_near_chance_is_doubted_before_the_search(wrong: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", wrong / "digits_resnet.onnx", "--data", wrong / "shuffled.npz", "--flops", 0.9,
               "--policy", "uniform", "--no-recover", "--json", wrong / "r.json", "-o", wrong / "out.onnx"]  # fmt: skip
    assert main(list(map(str, command))) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "would be chance" in told
    assert told.index("would be chance") < told.index("calibrate")
    record = json.loads((wrong / "r.json").read_text())
    assert "would be chance" in record["warnings"][0]
    assert record["fed"][0]["shape"]


@needs_shared
@pytest.mark.parametrize("labelled", [True, False])
def test_pixels_where_a_network_wants_them_normalised(tmp_path: Path, labelled: bool) -> None:
    with np.load(SHARED / "data" / "cifar10" / "search.npz") as held:
        x, y = held["x"][:300].transpose(0, 3, 1, 2).astype(np.float32), held["y"][:300]
        good = ((x / 255 - held["mean"][:, None, None]) / held["std"][:, None, None]).astype(np.float32)
    for name, value in (("raw", x), ("good", good)):
        np.savez(tmp_path / f"{name}.npz", input=value, **({"labels": y} if labelled else {}))
        model = SHARED / "models" / "resnet20_cifar10.onnx"
        command = ["evaluate", model, "--data", tmp_path / f"{name}.npz", "--json", tmp_path / f"{name}.json"]
        command += [] if labelled else ["--against", model]
        assert main(list(map(str, command))) == 0
    raw, fine = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("raw", "good"))
    assert len(raw["warnings"]) == 1 + labelled
    assert "from 0 to 255" in raw["warnings"][-1]
    assert fine["warnings"] == []
    assert raw["fed"][0]["max"] == 255


@needs_shared
def test_pixels_are_right_for_a_network_that_normalises_them_itself(tmp_path: Path) -> None:
    model = onnx.load(SHARED / "models" / "resnet20_cifar10.onnx")
    name = model.graph.input[0].name
    for node in model.graph.node:
        for i, read in enumerate(node.input):
            if read == name:
                node.input[i] = "scaled"
    for i, (kind, value, read, made) in enumerate(
        [("Sub", 120.0, name, "centred"), ("Div", 64.0, "centred", "scaled")]
    ):
        model.graph.initializer.append(onnx.helper.make_tensor(f"c{i}", 1, [], [value]))
        model.graph.node.insert(i, onnx.helper.make_node(kind, [read, f"c{i}"], [made]))
    onnx.save(model, tmp_path / "own.onnx")
    with np.load(SHARED / "data" / "cifar10" / "search.npz") as held:
        np.savez(tmp_path / "raw.npz", input=held["x"][:200].transpose(0, 3, 1, 2).astype(np.float32))
    own = tmp_path / "own.onnx"
    command = ["evaluate", own, "--against", own, "--data", tmp_path / "raw.npz", "--json", tmp_path / "r.json"]
    assert main(list(map(str, command))) == 0
    assert json.loads((tmp_path / "r.json").read_text())["warnings"] == []


# ----------------------------------------------------------------------------------------------------- made up


def test_scenes_look_natural() -> None:
    """Neighbours are alike, colours vary together, edges are far from Gaussian; noise has none of it."""
    x = scenes(8, 64, 48, seed=3).astype(float)
    assert x.shape == (8, 64, 48, 3)
    flat = x - x.mean(axis=(1, 2), keepdims=True)
    near = np.corrcoef(flat[:, 1:, :, 1].ravel(), flat[:, :-1, :, 1].ravel())[0, 1]
    assert near > 0.7
    assert np.corrcoef(flat[..., 0].ravel(), flat[..., 2].ravel())[0, 1] > 0.5
    steps = np.diff(x[..., 1], axis=1)
    assert (steps**4).mean() / (steps**2).mean() ** 2 > 5
    np.testing.assert_array_equal(scenes(3, 64, 48, seed=3), x[:3])
    assert not np.array_equal(scenes(3, 64, 48, seed=4), x[:3])


def test_made_up_images_follow_the_input() -> None:
    for shape, fed in (((None, 1, 28, 28), (9, 1, 28, 28)), ((None, 32, 32, 3), (9, 32, 32, 3))):
        data = synthesise([InputSpec("x", F32, shape)], 9, seed=0)
        assert data.pixels is not None
        assert data.batch(np.arange(9))["x"].shape == fed
    whole = synthesise([InputSpec("x", np.dtype(np.uint8), (None, 3, 32, 32))], 9, seed=0).batch(np.arange(9))["x"]
    assert whole.dtype == np.uint8
    assert whole.max() > 200
    signed = synthesise([InputSpec("x", F32, (None, 3, 32, 32))], 9, seed=0, preset="tf").batch(np.arange(9))["x"]
    assert -1 <= signed.min() < -0.9
    assert synthesise([InputSpec("x", F32, (None, 16, 32, 32))], 9, seed=0).pixels is None, "no image"


def test_a_classifier_sees_its_classes_in_made_up_images() -> None:
    from onnx_amc.delivery import input_specs
    from onnx_amc.graph.load import load
    from onnx_amc.recover.dream import dreamt
    from onnx_amc.run.metrics import agreement
    from onnx_amc.run.score import Scorer

    model = load(MODELS / "digits_resnet.onnx")
    made = synthesise(input_specs(model.proto), 40, 0, model.shapes)
    seen = dreamt(model.proto, made, 10, 0, lambda _done, _total: None)
    again = dreamt(model.proto, made, 10, 0, lambda _done, _total: None)
    name = made.inputs[0].name
    np.testing.assert_array_equal(seen.arrays[name][np.arange(40)], again.arrays[name][np.arange(40)])
    before, after = (
        informed(Scorer(model.original, d, np.arange(40), agreement, "agreement").reference) for d in (made, seen)
    )
    assert after > before + 0.2


@pytest.mark.parametrize("labels", [True, False])
def test_samples_that_are_all_alike_are_doubted_and_end_no_run(labels: bool) -> None:
    """A reader of images that has gone wrong; layers whose inputs never change have nothing to be refitted by."""
    model = MODELS / "digits_mlp.onnx"
    with np.load(model.with_suffix(".npz")) as held:
        data = {k: np.full_like(v, 7) if k == "x" else v for k, v in held.items() if labels or k != "y"}
    record = onnx_amc.compress(model, data, flops=0.6, policy="uniform", recover=False).record
    assert any("answers the same to all samples" in warning for warning in record["warnings"])
    few = {k: v[:3] if k in {"x", "y"} else v for k, v in data.items()}
    assert onnx_amc.evaluate(model, few, against=None if labels else model)["warnings"] == []


@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_targets_that_the_original_misses_are_doubted(tmp_path: Path, unit: float) -> None:
    """A network that answers x + 1 is held against x + 1, and against the same in another unit."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> toy (float[N,3] x) => (float[N,1] y) '
        "<float[3,1] w = {1, 0, 0}, float[1] b = {1}> { y = Gemm (x, w, b) }"
    )
    onnx.save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    np.savez(tmp_path / "m.npz", x=x, labels=unit * (x[:, :1] + 1))
    result = onnx_amc.compress(tmp_path / "m.onnx", data=tmp_path / "m.npz", channels=1.0, policy="uniform")
    doubted = [w for w in result.record["warnings"] if "always answering their mean" in w]
    assert len(doubted) == (unit != 1)


@pytest.mark.parametrize(
    ("outputs", "labels", "told"),
    [
        ("float[N,1] y", np.arange(40) % 2, ["labels count for nothing: fidelity"]),
        ("float[N,3] z", np.arange(40) % 2, []),
        ("float[N,3] z, float[N,1] y", np.arange(40) % 2, ["top1 looks at 'z' alone, of 2 outputs"]),
        ("float[N,3] z, float[N,1] y", None, ["agreement looks at 'z' alone"]),
        ("float[N,1] y, float[N,3] z", None, []),
    ],
    ids=["one logit", "classes", "classes and more", "no labels", "fidelity"],
)
def test_what_the_score_does_not_look_at_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], outputs: str, labels: np.ndarray | None, told: list[str]
) -> None:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> toy (float[N,4] x) => ({outputs}) <float[4,1] w = {{1, 0, 0, 0}}, '
        "int64[1] a = {0}, int64[1] b = {3}, int64[1] c = {1}> { y = MatMul (x, w) s = Slice (x, a, b, c) z = Exp (s) }"
    )
    onnx.save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    given: dict[str, Any] = {"x": x} if labels is None else {"x": x, "labels": labels}
    np.savez(tmp_path / "m.npz", **given)
    out = ["--data", str(tmp_path / "m.npz"), "--channels", "1", "--policy", "uniform", "-o", str(tmp_path / "o.onnx")]
    assert main(["compress", str(tmp_path / "m.onnx"), *out]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "count for nothing" in line or "alone" in line]
    assert len(notes) == len(told)
    assert all(part in note for part, note in zip(told, notes, strict=True))
