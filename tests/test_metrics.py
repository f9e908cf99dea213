"""Metrics: each against figures worked out by hand, on any part of the samples; what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from sklearn.metrics import jaccard_score

import onnx_amc
from onnx_amc.cli import main
from onnx_amc.errors import OptionError
from onnx_amc.run.metrics import (
    METRICS,
    SHARE,
    agreement,
    fidelity,
    find_metric,
    miou,
    mse,
    psnr,
    scale_of,
    shown,
    top1,
    top5,
)
from onnx_amc.run.samples import Dataset, InputSpec

ROOT = Path(__file__).parents[1]
MLP = ROOT / "models" / "digits_mlp.onnx"
SIDECAR = MLP.with_suffix(".npz")
F32 = np.dtype(np.float32)

# ---- by hand -------------------------------------------------------------------------------------------------------

PAIRS = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
TARGET = np.array([[1.0, 0.0], [3.0, 8.0]])
"""Errors of PAIRS: 0, 2, 0 and 4, mean square 5; range 8."""


def test_mse_is_minus_the_mean_squared_error() -> None:
    assert mse([PAIRS], TARGET, [PAIRS]) == -5.0
    assert mse([PAIRS], None, [TARGET.astype(np.float32)]) == -5.0, "without labels the original is the target"
    assert mse([PAIRS], np.array([0, 1]), [TARGET.astype(np.float32)]) == -5.0, "class numbers are no target"
    assert str(mse([PAIRS], PAIRS, [TARGET])) == "0.0", "and not -0.0"


def test_targets_may_lack_axes_of_length_1() -> None:
    assert mse([np.array([[1.0], [2.0]])], np.array([1.0, 4.0]), [PAIRS]) == -2.0
    assert mse([np.array([[1.0], [2.0]])], np.array([1, 4]), [PAIRS]) == -2.0, "one number per sample is a target here"
    assert mse([np.zeros((2, 1, 3, 3))], np.ones((2, 3, 3), np.uint8), [PAIRS]) == -1.0


def test_psnr_is_in_decibels_of_the_targets_range() -> None:
    assert psnr([PAIRS], TARGET, [PAIRS]) == pytest.approx(10 * np.log10(64 / 5))
    assert psnr([PAIRS], None, [TARGET]) == pytest.approx(10 * np.log10(64 / 5))
    assert psnr([1000 * PAIRS], 1000 * TARGET, [PAIRS]) == pytest.approx(psnr([PAIRS], TARGET, [PAIRS]))
    image = np.array([[[[0, 255]]]], np.uint8)
    assert psnr([image + np.float32(2.55)], image, [PAIRS]) == pytest.approx(40.0, abs=1e-4)


def test_psnr_is_always_finite() -> None:
    assert psnr([PAIRS], PAIRS, [PAIRS]) == 100.0
    assert psnr([TARGET + 1e-9], TARGET, [PAIRS]) == 100.0
    assert psnr([np.full((2, 2), np.nan)], TARGET, [PAIRS]) == psnr([1e12 * PAIRS], TARGET, [PAIRS]) == -100.0
    assert psnr([np.full((2, 2), 0.1)], np.zeros((2, 2)), [PAIRS]) == pytest.approx(20.0), "the peak of a constant is 1"


def logits(classes: np.ndarray, count: int) -> np.ndarray:
    """Float32 (N,C,H,W) that are highest at the classes (N,H,W)."""
    return np.moveaxis(np.eye(count, dtype=np.float32)[classes], 3, 1)


FOUND = np.array([[[0, 0], [1, 1]], [[2, 2], [1, 0]]])
GOAL = np.array([[[0, 1], [1, 1]], [[2, 255], [1, 1]]])
"""Of 5 classes. Class 0: 1 of 3 pixels; 1: 3 of 5; 2: 1 of 1, the other one found does not count; 3 and 4 occur in neither."""


def test_miou_is_the_mean_over_the_classes_that_occur() -> None:
    assert miou([logits(FOUND, 5)], GOAL, []) == pytest.approx((1 / 3 + 3 / 5 + 1) / 3)
    assert miou([FOUND.astype(np.int32)], GOAL[:, None].astype(np.uint8), []) == pytest.approx((1 / 3 + 3 / 5 + 1) / 3)
    assert miou([logits(GOAL % 5, 5)], GOAL, []) == 1.0
    assert miou([logits(FOUND, 5)], np.full_like(GOAL, 255), []) == 0.0, "nothing is left"


def test_miou_without_maps_is_against_the_original() -> None:
    other = np.where(GOAL == 255, 2, GOAL)
    for labels in (None, np.array([0, 1])):
        assert miou([logits(FOUND, 5)], labels, [logits(other, 5)]) == pytest.approx((1 / 3 + 3 / 5 + 1) / 3)


def test_255_is_a_class_where_there_are_as_many() -> None:
    goal = np.full((1, 1, 2), 255)
    assert miou([logits(goal, 256)], goal, []) == 1.0
    assert miou([logits(np.array([[[255, 3]]]), 256)], goal, []) == pytest.approx(1 / 4)


def test_miou_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((6, 7, 5, 4)).astype(np.float32)
    goal = rng.integers(0, 6, (6, 5, 4))
    found = z.argmax(axis=1).ravel()
    seen = np.union1d(found, goal)
    assert miou([z], goal, []) == pytest.approx(jaccard_score(goal.ravel(), found, labels=seen, average="macro"))


def test_shares() -> None:
    z = np.array([[3.0, 2, 1, 0, 5, 4], [1, 2, 3, 4, 5, 6]])
    assert top1([z], np.array([4, 0]), []) == 0.5
    assert top5([z], np.array([1, 0]), []) == 0.5
    assert agreement([z], None, [z[::-1]]) == 0.0
    assert fidelity([PAIRS + 1], None, [PAIRS]) == 0.0, "the variance from sample to sample is 1"


# ---- any part of the samples ---------------------------------------------------------------------------------------

rng = np.random.default_rng(0)
IMAGES = rng.standard_normal((24, 4, 6, 6)).astype(np.float32)
SMALL: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
    "top1": (rng.standard_normal((24, 9)), rng.integers(0, 9, 24)),
    "top5": (rng.standard_normal((24, 9)), rng.integers(0, 9, 24)),
    "agreement": (rng.standard_normal((24, 9)), None),
    "fidelity": (rng.standard_normal((24, 9)), None),
    "mse": (IMAGES, IMAGES + 0.1),
    "psnr": (IMAGES, IMAGES + 0.1),
    "miou": (IMAGES, np.repeat(np.arange(24) % 4, 36).reshape(24, 6, 6)),
}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_takes_any_part(name: str) -> None:
    """Thirds score much as the whole does (a part's own range, hence its decibels, may differ); a single sample has a score."""
    z, labels = SMALL[name]
    original = z + 0.5 * np.random.default_rng(1).standard_normal(z.shape)
    parts = [slice(None), *(slice(k, None, 3) for k in range(3)), slice(5, 6)]
    found = [METRICS[name]([z[p]], None if labels is None else labels[p], [original[p]]) for p in parts]
    assert np.isfinite(found).all()
    assert all(isinstance(f, float) for f in found)
    if name in {"top1", "top5", "agreement", "mse"}:
        assert found[0] == pytest.approx(np.mean(found[1:4])), "a mean over samples"
    else:
        slack = 1.0 if name == "psnr" else 0.2
        assert min(found[1:4]) - slack <= found[0] <= max(found[1:4]) + slack


# ---- what does not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "z", "labels", "words"),
    [
        ("top1", np.ones((3, 4)), np.ones((3, 4)), ("float64 (N, 4)", "one class number", "mse or psnr")),
        ("top5", np.ones((3, 4)), np.ones((3, 2, 2), int), ("labels are int64 (N, 2, 2)", "miou for class maps")),
        ("mse", np.ones((3, 4)), np.ones((3, 5)), ("output is float64 (N, 4)", "target float64 (N, 5)", "the output's shape")),
        ("mse", np.ones((3, 4)), np.ones(3), ("target float64 (N)",)),
        ("psnr", np.ones((3, 3, 8, 8)), np.ones((3, 3, 4, 4)), ("(N, 3, 8, 8)", "(N, 3, 4, 4)")),
        ("mse", np.full((3, 4), "a"), None, ("<U1 (N, 4)",)),
        ("miou", np.ones((3, 4)), None, ("output is float64 (N, 4)", "logits (N, C, H, W)", "module:function")),
        ("miou", np.ones((3, 1, 4, 4)), np.ones((3, 4, 4), int), ("(N, 1, 4, 4)", "two classes or more")),
        ("miou", np.full((3, 4, 4), -1), np.ones((3, 4, 4), int), ("values from -1", "from 0")),
        ("miou", np.ones((3, 2, 4, 4)), np.ones((3, 8, 8), int), ("labels are int64 (N, 8, 8)", "height and width")),
        ("miou", np.ones((3, 2, 4, 4)), np.ones((3, 4, 4)), ("labels are float64", "mse or psnr")),
        ("miou", np.ones((3, 2, 4, 4)), np.full((3, 4, 4), 2), ("label 2 (48 such pixels); 2 classes", "255")),
        ("miou", np.ones((3, 2, 4, 4)), np.full((3, 4, 4), -1), ("label -1",)),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit(name: str, z: np.ndarray, labels: np.ndarray | None, words: tuple[str, ...]) -> None:
    with pytest.raises(OptionError) as caught:
        METRICS[name]([z], labels, [z])
    assert caught.value.where == f"--metric {name}"
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


# ---- which one -----------------------------------------------------------------------------------------------------


def dataset(labels: np.ndarray | None, n: int = 24) -> Dataset:
    spec = InputSpec("x", F32, (None, 3, 6, 6))
    return Dataset((spec,), {"x": np.random.default_rng(0).standard_normal((n, 3, 6, 6), F32)}, labels, "test")


@pytest.mark.parametrize(
    ("labels", "classes", "name"),
    [
        (None, None, "fidelity"),
        (None, 10, "agreement"),
        (np.zeros(24, int), 10, "top1"),
        (np.zeros(24, int), None, "fidelity"),
        (np.zeros((24, 6, 6), int), None, "miou"),
        (np.zeros((24, 1, 6, 6), np.uint8), None, "miou"),
        (np.zeros(24), None, "mse"),
        (np.zeros((24, 10)), 10, "mse"),
        (np.zeros((24, 3, 6, 6), np.float32), None, "mse"),
    ],
)
def test_what_suits_the_data(labels: np.ndarray | None, classes: int | None, name: str) -> None:
    assert find_metric(None, dataset(labels), classes) == (name, METRICS[name])


def test_class_numbers_suit_a_network_that_gives_them() -> None:
    assert find_metric(None, dataset(np.zeros(24, int)), None, named=True)[0] == "top1"
    assert find_metric(None, dataset(None), None, named=True)[0] == "fidelity"


def test_a_vector_as_long_as_the_input_is_no_classifiers() -> None:
    held = Dataset(
        (InputSpec("x", np.dtype(np.float32), (None, 7)),), {"x": np.zeros((24, 7), np.float32)}, None, "test"
    )
    assert find_metric(None, held, 7)[0] == "fidelity"
    assert find_metric(None, held, 6)[0] == "agreement"
    assert find_metric(None, replace(held, labels=np.zeros(24, int)), 7)[0] == "top1"


def test_labels_that_suit_nothing_need_a_function() -> None:
    with pytest.raises(OptionError, match=r"int64 \(N, 5\) suit no metric by themselves"):
        find_metric(None, dataset(np.zeros((24, 5), int)), None)
    assert find_metric("fidelity", dataset(np.zeros((24, 5), int)), None)[1] is fidelity


def test_scales() -> None:
    z = [np.array([[0.0, 0.0], [2.0, 4.0]])]
    assert [scale_of(METRICS[n], None, z, 0.3) for n in ("top1", "top5", "agreement", "fidelity", "miou")] == [
        SHARE
    ] * 5
    assert scale_of(mse, None, z, 0.0) == (0.0, 2.5), "the mean of the variances 1 and 4"
    assert scale_of(mse, 10 * z[0], z, -7.0) == (0.0, 250.0)
    assert scale_of(mse, np.zeros((2, 2)), z, -7.0) == (0.0, 1.0)
    assert scale_of(psnr, None, z, 100.0) == (100.0, 100.0)

    def own(*_given: object) -> float:
        raise AssertionError("only the original's score counts")

    known = {0.7: SHARE, 1.0: SHARE, 74.0: (74.0, 74.0), 0.0: (0.0, 1.0), -0.2: (0.0, 1.0), -500.0: (0.0, 500.0)}
    assert {score: scale_of(own, None, z, score) for score in known} == known


@pytest.mark.parametrize(
    ("score", "text"), [(0.98765, "0.9877"), (0.0, "0.0000"), (-123.4, "-123.4000"), (-3.857e-8, "-3.86e-08")]
)
def test_small_scores_are_not_hidden(score: float, text: str) -> None:
    assert shown(score) == text


# ---- toy networks --------------------------------------------------------------------------------------------------


def segmenter() -> onnx.ModelProto:
    """Two convolutions, (N,3,6,6) -> logits (N,4,6,6)."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(s).astype(np.float32) / 3 for s in ((16, 3, 3, 3), (4, 16, 1, 1))]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, 1, ["N", c, 6, 6]) for n, c in (("x", 3), ("y", 4)))
    named = [numpy_helper.from_array(w, n) for w, n in zip(weights, "ab", strict=True)]
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], named), opset_imports=opsets, ir_version=9)


def regressor(unit: float = 1.0) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The shipped MLP with a random projection of its classes to four numbers behind it, and the targets of its sidecar."""
    model, data = onnx.load(MLP), dict(np.load(SIDECAR))
    projection = unit * np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(projection, "projection"))
    graph.node.append(helper.make_node("Softmax", [graph.output[0].name], ["share"], axis=-1))
    graph.node.append(helper.make_node("MatMul", ["share", "projection"], ["target"]))
    graph.output[0].CopyFrom(helper.make_tensor_value_info("target", 1, ["N", 4]))
    data["labels"] = projection[data.pop("y")]
    return model, data


def test_class_maps_come_in_an_npz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(segmenter(), tmp_path / "s.onnx")
    x = np.random.default_rng(1).standard_normal((40, 3, 6, 6)).astype(np.float32)
    goal = np.random.default_rng(2).integers(0, 4, (40, 6, 6))

    def evaluated(labels: np.ndarray, code: int = 0) -> str:
        np.savez(tmp_path / "s.npz", x=x, labels=labels)
        assert main(["evaluate", str(tmp_path / "s.onnx"), "--data", str(tmp_path / "s.npz")]) == code
        shown = capsys.readouterr()
        return shown.out if code == 0 else shown.err

    score = float(evaluated(goal).split()[1])
    assert 0 < score < 0.3
    for dtype in (np.uint8, np.int32):
        assert evaluated(goal.astype(dtype)) == f"miou {score:.4f} on 40 samples\n"
    assert evaluated(np.where(goal == 3, 255, goal)).startswith("miou")
    assert "label 4" in evaluated(goal + 1, code=2)
    assert "height and width" in evaluated(goal[:, :3], code=2)
    assert evaluated(x[:, :1].repeat(4, axis=1)).startswith("mse -")


def test_a_segmenter_is_compressed_by_miou(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((160, 3, 6, 6)).astype(np.float32)
    found = onnx_amc.compress(
        segmenter(), {"x": x}, flops=0.5, policy="knapsack", metric="miou", round_to=1, recover=False
    )
    assert found.record["original"]["score"] == 1.0
    assert 0.2 < found.record["compressed"]["score"] < 1.0
    onnx.save(found.model, tmp_path / "small.onnx")
    alone, against = (
        onnx_amc.evaluate(found.model, {"x": x}, metric="miou", **k)["score"] for k in ({}, {"against": segmenter()})
    )
    assert alone == 1.0, "against itself"
    assert against == pytest.approx(found.record["compressed"]["score"], abs=0.1)


def test_evaluate_compares_with_the_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small.onnx"
    command = ["compress", str(MLP), "--channels", "0.3", "--no-refit", "--no-recover", "--quiet", "-o", str(small)]
    assert main(command) == 0
    same = ["evaluate", str(small), "--data", str(SIDECAR), "--metric", "psnr"]
    assert main(same) == main([*same, "--against", str(MLP), "--json", str(tmp_path / "e.json")]) == 0
    alone, against = capsys.readouterr().out.splitlines()
    assert alone == "psnr 100.0000 on 500 samples"
    score = json.loads((tmp_path / "e.json").read_text())["score"]
    assert against == f"psnr {score:.4f} on 500 samples"
    assert 5 < score < 40
    plain = ["evaluate", str(small), "--data", str(SIDECAR)]
    assert main([*plain, "--against", str(MLP)]) == 0
    assert capsys.readouterr().out.startswith("agreement 0."), "not top1, which looks at the labels"
    assert main([*plain, "--metric", "agreement"]) == 0
    assert "without one a model with itself: add --against" in capsys.readouterr().err
    assert main([*plain, "--metric", "top1", "--against", str(MLP)]) == 0
    assert "top1 looks at labels, not at --against" in capsys.readouterr().err
    assert main(plain) == 0
    assert "warning" not in capsys.readouterr().err
    assert main([*plain, "--against", str(tmp_path / "none.onnx")]) == 2
    onnx.save(segmenter(), tmp_path / "other.onnx")
    assert main([*same, "--against", str(tmp_path / "other.onnx")]) == 2
    assert "its outputs are 'y' (N, 4, 6, 6), those of" in capsys.readouterr().err


@pytest.mark.parametrize(("metric", "units"), [("psnr", [1.0]), ("mse", [1.0, 2.0**12])])
def test_a_search_by_decibels_and_by_squared_errors(metric: str, units: list[float]) -> None:
    """What counts is how well the targets are met, whatever their unit: those scaled by a power of two give the same plan."""
    plans = []
    for unit in units:
        model, data = regressor(unit)
        how: dict[str, Any] = {"metric": metric, "episodes": 8, "round_to": 1, "recover": False}
        found = onnx_amc.compress(model, data, flops=0.25, **how)
        record = found.record
        assert record["compressed"]["macs"] <= 0.25 * record["original"]["macs"]
        assert record["compressed"]["score"] > record["baselines"]["uniform"]["score"]
        assert -6 < min(record["rewards"]) < max(record["rewards"]) < 0, "the agent's rewards are those of a share"
        plans.append(found.plan.kept)
    assert plans[0] == plans[-1]


def test_a_classifier_may_have_an_axis_of_length_one_behind_its_classes() -> None:
    """A one-dimensional network that ends in a global pool; of a sequence (N, steps, classes) the last step counts."""
    z = np.random.default_rng(0).normal(size=(50, 10)).astype(F32)
    goal = z.argmax(axis=1)
    for shape in ((50, 10, 1), (50, 10, 1, 1), (50, 1, 10)):
        assert top1([z.reshape(shape)], goal, []) == 1.0
        assert agreement([z.reshape(shape)], None, [z[::-1].reshape(shape)]) < 0.4


# ---- what names no class -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [top1, agreement])
def test_class_numbers_are_held_against_each_other(metric: Any) -> None:
    found, goal = np.array([3, 1, 2, 2]), np.array([3, 1, 0, 2])
    for shape in ((4,), (4, 1)):
        assert metric([found.reshape(shape)], goal, [goal.reshape(shape)]) == 0.75


@pytest.mark.parametrize(("name", "columns"), [("top1", 1), ("agreement", 1), ("top5", 5), ("top5", 1)])
def test_a_metric_that_could_not_change_is_refused(name: str, columns: int) -> None:
    z = np.random.default_rng(0).random((8, columns))
    with pytest.raises(OptionError, match=name):
        METRICS[name]([z], np.zeros(8, int), [z])


def test_what_is_not_a_number_names_no_class() -> None:
    z, nothing = np.eye(8), np.full((8, 8), np.nan)
    assert top1([nothing], np.zeros(8, int), []) == top5([nothing], np.zeros(8, int), []) == 0.0
    assert agreement([nothing], None, [z]) == agreement([nothing], None, [nothing]) == 0.0
    assert agreement([np.full(8, -1)], None, [np.full(8, -1)]) == 1.0, "the number of a class"
    masked = np.where(z > 0, z, -np.inf)
    assert top1([masked], np.arange(8), []) == 1.0, "a class may be ruled out"


def test_how_far_an_output_is_off_has_an_end() -> None:
    zeros = np.zeros((8, 3))
    assert fidelity([zeros + 1e-6], None, [zeros]) == fidelity([zeros * np.nan], None, [zeros]) == 1 - 1e6


def test_the_peak_of_psnr_is_the_range_of_the_target() -> None:
    target = np.linspace(-3.0, 1.0, 32).reshape(4, 8)
    assert psnr([target + 0.4], target, []) == pytest.approx(20.0)
