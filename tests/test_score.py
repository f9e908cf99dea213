"""Scores of whole networks: by parts of the samples, on some of them only, and where there is none."""

from __future__ import annotations

import time
from copy import deepcopy
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from test_metrics import MLP, dataset, segmenter

import onnx_amc
from onnx_amc.errors import DataError, ModelError
from onnx_amc.run.check import difference
from onnx_amc.run.metrics import SHARE, Outputs, fidelity, miou
from onnx_amc.run.samples import Dataset, InputSpec
from onnx_amc.run.score import RACED, WORST, Opened, Scorer


@pytest.mark.parametrize(("whole", "scale", "worst"), [(0.9, SHARE, 0.0), (-3.0, (0.0, 3.0), -3 * WORST)])
def test_a_network_without_a_score_is_the_worst(whole: float, scale: tuple[float, float], worst: float) -> None:
    """A cut network may blow up; that must not look like a good score where good scores are near 0."""

    def own(outputs: Outputs, _labels: np.ndarray | None, reference: Outputs) -> float:
        return whole if np.array_equal(outputs[0], reference[0]) else float("nan")

    other = segmenter()
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((16, 3, 3, 3), np.float32), "a"))
    scorer = Scorer(segmenter(), dataset(None), np.arange(24), own, "own")
    assert scorer.original.value == whole
    assert scorer.scale == scale
    assert scorer(other).value == worst < whole


def test_parts_are_scored_by_themselves() -> None:
    goal = np.random.default_rng(2).integers(0, 4, (24, 6, 6))
    scorer = Scorer(segmenter(), dataset(goal), np.arange(24), miou, "miou", parts=2)
    expected = [miou([z[k::2] for z in scorer.reference], goal[k::2], []) for k in range(2)]
    assert list(scorer.original.parts[::2]) == expected
    assert expected[0] != expected[1]


def test_a_race_runs_a_part_of_the_samples_or_finds_what_it_finds_without() -> None:
    goal = np.random.default_rng(2).integers(0, 4, (96, 6, 6))
    scorer = Scorer(segmenter(), dataset(goal, 96), np.arange(96), miou, "miou", parts=8, batch=4)
    other = segmenter()
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((16, 3, 3, 3), np.float32), "a"))
    told: list[tuple[float, float]] = []

    def hopeful(*first: float) -> None:
        told.append(first)  # type: ignore[arg-type]

    plain = scorer.numbers(other)
    assert scorer.numbers(other, dict.fromkeys(RACED, hopeful)) == pytest.approx(plain)
    both = np.array(plain[2:]).reshape(8, 2)
    expected = [pytest.approx(tuple(both[:looked].mean(axis=0))) for looked in RACED]
    assert told == expected, "each bar is told the mean of the first parts"
    seen: list[int] = []

    class Watched(Dataset):
        def batch(self, index: np.ndarray) -> dict[str, np.ndarray]:
            seen.append(len(index))
            return super().batch(index)

    scorer.data = Watched(scorer.data.inputs, scorer.data.arrays, goal, "test")
    for looked in RACED:
        seen.clear()
        bars = dict.fromkeys(RACED, hopeful) | {looked: lambda *_: (0.25, 0.5)}
        assert scorer.numbers(other, bars) == [0.25, 0.5]
        assert sum(seen) == 96 * looked // 8, "nothing is run twice, and nothing behind the bar that was missed"


def test_the_next_batch_is_made_ready_while_one_is_run_and_an_opened_network_scores_the_same() -> None:
    goal = np.random.default_rng(2).integers(0, 4, (12, 6, 6))
    scorer = Scorer(segmenter(), dataset(goal, 12), np.arange(12), miou, "miou", batch=4)
    plain, opened = scorer.numbers(segmenter()), scorer.opened(segmenter)
    asked: list[int] = []
    at_run: list[int] = []

    class Watched(Dataset):
        def batch(self, index: np.ndarray) -> dict[str, np.ndarray]:
            asked.append(len(index))
            return super().batch(index)

    class Session:
        get_inputs, get_outputs = opened.session.get_inputs, opened.session.get_outputs

        def run(self, *args: object) -> object:
            deadline = time.monotonic() + 10
            while len(asked) < min(3, len(at_run) + 2) and time.monotonic() < deadline:
                time.sleep(0.001)
            at_run.append(len(asked))
            return opened.session.run(*args)

    scorer.data = Watched(scorer.data.inputs, scorer.data.arrays, goal, "test")
    watched = Opened(opened.model, Session())
    assert scorer.numbers(watched) == plain
    assert at_run == [2, 3, 3], "while a batch is run, the one behind it is asked for"


def test_an_output_with_several_rows_per_sample_is_not_scored_on_some_of_them() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> rows (float[N, 3, 4] x) => (float[M, 4] y)
    <int64[2] flat = {-1, 4}> { y = Reshape(x, flat) }"""
    data = Dataset(
        (InputSpec("x", np.dtype(np.float32), (None, 3, 4)),), {"x": np.ones((20, 3, 4), np.float32)}, None, "test"
    )
    with pytest.raises(ModelError, match="no output has a row for each sample"):
        Scorer(parser.parse_model(text), data, np.arange(20), fidelity, "fidelity", batch=5)


def test_a_network_that_ends_in_an_argmax_is_scored_by_what_it_says() -> None:
    model = onnx.load(MLP)
    last = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("ArgMax", [last], ["class"], axis=1, keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("class", onnx.TensorProto.INT64, ["N"]))
    data = MLP.with_suffix(".npz")
    how: dict[str, Any] = {"flops": 0.6, "policy": "knapsack", "recover": False}
    record = onnx_amc.compress(model, data=data, metric="fidelity", **how).record
    assert record["original"]["score"] == 1.0
    assert 0.9 < record["compressed"]["score"] < 1.0
    assert record["baselines"]["uniform"]["score"] != record["compressed"]["score"]
    told = onnx_amc.compress(model, data=data, **how).record
    assert told["metric"] == onnx_amc.evaluate(model, data)["metric"] == "top1", "there are labels"
    assert told["warnings"] == []
    with np.load(data) as file:
        wrong = onnx_amc.evaluate(model, {**file, "y": (file["y"] + 1) % 10})
    assert "of a class right on average" in wrong["warnings"][0]


@pytest.mark.parametrize("count", [1, 2])
def test_one_sample_can_be_scored(count: int) -> None:
    """A network of a fixed batch too; and of so few nobody says that they are guessed."""
    fixed = onnx.load(MLP)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    with np.load(MLP.with_suffix(".npz")) as file:
        few = {k: v[:count] if k in {"x", "y"} else v for k, v in file.items()}
    few["y"] = (few["y"] + 1) % 10
    for model in (onnx.load(MLP), fixed):
        found = onnx_amc.evaluate(model, few)
        assert (found["samples"], found["score"], found["warnings"]) == (count, 0.0, [])
    with pytest.raises(DataError, match="only 0 samples\n  -> give 1 or more"):
        onnx_amc.evaluate(MLP, {k: v[:0] if k in {"x", "y"} else v for k, v in few.items()})


def test_maps_of_classes_are_scored_and_checked_as_the_tensor_that_they_are_made_of() -> None:
    """As scikit-learn's exporter writes a classifier: a class, and a sequence of maps, which nothing can be compared with."""
    text = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 1]> g (float[N, 12] x) => (int64[N] label, float[N] maps)
    { h = Gemm (x, w, b) r = Relu (h) k = Gemm (r, v) p = Softmax (k) label = ArgMax <axis = 1, keepdims = 0> (p)
      maps = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1, 2]> (p) }"""
    model, rng = parser.parse_model(text), np.random.default_rng(0)
    for name, shape in {"w": (12, 32), "b": (32,), "v": (32, 3)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    model.graph.output[1].type.CopyFrom(
        onnx.helper.make_sequence_type_proto(
            onnx.helper.make_map_type_proto(onnx.TensorProto.INT64, onnx.helper.make_tensor_type_proto(1, []))
        )
    )
    data = {"x": rng.normal(size=(100, 12)).astype(np.float32)}
    result = onnx_amc.compress(model, data, flops=0.5, policy="uniform")
    assert result.record["compressed"]["macs"] <= 0.5 * result.record["original"]["macs"]
    assert [o.name for o in result.model.graph.output] == ["label", "maps"]
    spec = InputSpec("x", np.dtype(np.float32), (None, 12))
    scorer = Scorer(model, Dataset((spec,), data, None, "noise"), np.arange(100), fidelity, "fidelity")
    assert [z.shape for z in scorer.reference] == [(100,), (100, 3)]
    other = deepcopy(model)
    other.graph.node[3].op_type = "Identity"
    assert difference(model, other, data) > 0.1
