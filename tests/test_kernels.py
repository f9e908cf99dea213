"""onnxruntime's own profile: read, told apart by models that run in turn, and the stopwatch beside it."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from timed import network

from onnx_amc.delivery import one_feed
from onnx_amc.errors import ModelError
from onnx_amc.run.kernels import CPU, Feed, Kernel, alternated, in_turn, read_profile, stopwatch, undisturbed
from onnx_amc.run.learn import Anchors
from onnx_amc.run.session import open_session


def event(name: str, start: int, length: int, kind: str = "Node") -> dict[str, object]:
    return {"cat": kind, "name": name, "ts": start, "dur": length, "args": {"op_name": "Op"}}


def test_a_profile_is_read_without_its_first_runs_and_without_what_runs_inside_a_loop() -> None:
    events: list[dict[str, object]] = []
    for i, length in enumerate([900, 800, 10, 30, 20, 1000]):
        at = 10_000 * i
        events += [
            event("model_run", at, 5000, "Session"),
            event("loop_kernel_time", at + 1, length),
            event("body_kernel_time", at + 2, length - 5),
            event("body_kernel_time", at + 3, 1),
            event("after_kernel_time", at + 1 + length, 2 + i),
            event("after_fence_before", at + 1 + length, 7),
        ]
    found = read_profile(json.dumps(events))
    assert found == (Kernel("loop", "Op", 15.0), Kernel("after", "Op", 4.5))


@pytest.mark.parametrize("text", ['[{"name": "it\'s "quoted"" }]', "[]", json.dumps([event("a_kernel_time", 1, 1)])])
def test_a_profile_that_cannot_be_read_is_none(text: str) -> None:
    assert read_profile(text) == ()


def test_kernels_of_a_real_network_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    analysis = network()
    nameless = onnx.ModelProto()
    nameless.CopyFrom(analysis.model.original)
    for node in nameless.graph.node:
        node.name = ""
    feed = one_feed(analysis.model)
    for model in (analysis.model.original, nameless):
        found = in_turn([model], feed, threads=1, runs=5)[1][0]
        assert sum(k.op == "Conv" for k in found) == sum(n.op_type == "Conv" for n in model.graph.node)
        assert all(0 <= k.microseconds < 1e5 for k in found)
        assert sum(k.microseconds for k in found) > 0
        anchors = Anchors(analysis)
        assert {anchors.find(k.name) for k in found if k.op == "Conv"} <= set(analysis.model.shapes)
    assert list(tmp_path.iterdir()) == []
    assert not nameless.graph.node[0].name


def test_models_run_in_turn_are_told_apart() -> None:
    def product(size: int) -> onnx.ModelProto:
        weight = numpy_helper.from_array(np.ones((size, size), np.float32), "w")
        nodes = [
            helper.make_node("Expand", ["x", "n"], ["y"]),
            helper.make_node("MatMul", ["y", "w"], ["z"]),
            helper.make_node("ReduceMax", ["z"], ["r"], keepdims=0),
        ]
        shape = numpy_helper.from_array(np.array([size, size]), "n")
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])],
            [helper.make_tensor_value_info("r", TensorProto.FLOAT, [])], [weight, shape],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    feed = {"x": np.ones((1, 1), np.float32)}
    laps, kernels = in_turn([product(256), product(16), product(256)], feed, threads=1, runs=6)
    assert [pair.shape for pair in laps] == [(12, 2), (6, 2), (6, 2)]
    assert np.median(laps[1][:, 0]) > 5 * np.median(laps[1][:, 1])
    assert np.median(laps[2][:, 0]) < 3 * np.median(laps[2][:, 1])
    assert (laps[0][:, 0] == laps[0][:, 1]).all()
    assert [[k.op for k in found] for found in kernels] == [["Expand", "MatMul", "ReduceMax"]] * 3
    assert kernels[0][1].microseconds > 5 * max(kernels[1][1].microseconds, 1)
    assert in_turn([product(16)], feed, threads=1, runs=4, watch=False)[1] == [()]


@pytest.mark.skipif(sys.platform == "win32", reason="its processor time moves in steps of 16 ms")
def test_one_thread_is_timed_without_what_others_do_meanwhile() -> None:
    clocks = stopwatch(1, CPU), stopwatch(2, CPU), stopwatch(1, "CUDAExecutionProvider")
    before = [c() for c in clocks]
    time.sleep(0.2)
    slept = [c() - b for c, b in zip(clocks, before, strict=True)]
    assert slept[0] < 0.1 <= min(slept[1:])


def test_a_provider_that_is_not_there_is_refused() -> None:
    analysis = network()
    with pytest.raises(ModelError, match="no provider 'NoSuchProvider'"):
        in_turn([analysis.model.original], one_feed(analysis.model), provider="NoSuchProvider")


class Recorded:
    """A session that writes down when it is run."""

    def __init__(self, name: str, order: list[str]) -> None:
        analysis = network()
        self._session, self._name, self._order = open_session(analysis.model.original, threads=1), name, order

    def get_inputs(self) -> list[Any]:
        return list(self._session.get_inputs())

    def run(self, names: list[str] | None, feed: Feed) -> list[Any]:
        self._order.append(self._name)
        return list(self._session.run(names, feed))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_no_third_model_comes_between_the_first_and_another(count: int) -> None:
    order: list[str] = []
    sessions = [Recorded(str(i), order) for i in range(count)]
    laps = alternated(sessions, one_feed(network().model), time.perf_counter, 1, lambda done, _: done < 3)
    assert "".join(order) == "".join(f"0{i}" * 4 for i in range(1, count)) or order == ["0"] * 4
    assert [len(pairs) for pairs in laps] == [3 * max(count - 1, 1), *[3] * (count - 1)]
    assert (np.concatenate(laps) > 0).all()


def test_threads_of_a_network_timed_beside_another_leave_the_cores_to_it() -> None:
    key, model = "session.force_spinning_stop", network().model.original
    assert open_session(model, beside=True).get_session_options().get_session_config_entry(key) == "1"


def test_what_else_a_machine_does_hardly_moves_a_ratio() -> None:
    """Waiting takes a short run as long as a long one: the median of the ratios was 0.69."""
    laps = np.array([1.0, 0.5]) * (1 + 0.02 * np.random.default_rng(0).random((300, 2)))
    laps[50:250] += 0.6
    assert np.median(laps[:, 1] / laps[:, 0]) > 0.65
    assert undisturbed(laps) == pytest.approx(0.5, rel=0.01)
