"""Counts come in the blocks that this machine's convolutions take; those of devices elsewhere come in the usual ones."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnx_amc
from onnx_amc import granularity, inspection
from onnx_amc.run.blocks import USUAL, block_of

WIDE = 256


def wide() -> onnx.ModelProto:
    """Two convolutions with 256 channels between them."""
    rng = np.random.default_rng(0)
    shapes = {"w": (WIDE, 3, 3, 3), "v": (4, WIDE, 1, 1)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "first", pads=[1] * 4),
        helper.make_node("Conv", ["h", "v"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", c, 8, 8]) for n, c in (("x", 3), ("y", 4))]
    graph = helper.make_graph(nodes, "wide", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def kept(**settings: Any) -> int:
    """Channels that a cut of a tenth leaves."""
    result = onnx_amc.compress(wide(), channels=0.9, policy="uniform", refit=False, **settings)
    return int(result.model.graph.initializer[0].dims[0])


@pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"} or sys.platform != "linux",
    reason="reads the features of an x86 Linux",
)
def test_the_block_is_what_the_processor_has() -> None:
    known = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    assert block_of() == (16 if "avx512f" in known else 8)


def test_of_a_device_elsewhere_the_usual_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert block_of("CUDAExecutionProvider") == USUAL
    monkeypatch.setattr(granularity, "block_of", lambda _provider: 16)
    told = f"{sys.executable} -c print(1) "
    assert kept(latency_command=told) == 232


@pytest.mark.parametrize(("block", "channels"), [(8, 232), (16, 224)])
def test_auto_keeps_whole_blocks(block: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(granularity, "block_of", lambda _provider: block)
    assert kept() == channels
    assert kept(round_to=1) == 230, "the user's word goes first"


@pytest.mark.parametrize(("here", "there"), [(8, 16), (16, 8)])
def test_a_plan_is_replayed_where_blocks_are_others(
    here: int, there: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(granularity, "block_of", lambda _provider: here)
    result = onnx_amc.compress(wide(), channels=0.9, policy="uniform", refit=False)
    result.plan.save(tmp_path / "plan.json", result.analysis)
    monkeypatch.setattr(granularity, "block_of", lambda _provider: there)
    again = onnx_amc.apply(wide(), tmp_path / "plan.json")
    assert again.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)


def test_inspect_counts_with_the_same_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    smallest = {}
    for block in (8, 16):
        monkeypatch.setattr(inspection, "block_of", lambda block=block: block)
        smallest[block] = onnx_amc.inspect(wide(), min_keep=0.2)["smallest_macs"]
    assert smallest[8] * 64 == smallest[16] * 56, "56 and 64 of 256 channels are the fewest from a fifth on"
