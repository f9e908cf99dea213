"""What the tests of latency tables time: a network, its plans, and cut models of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx

from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import load
from onnx_amc.prune.surgery import cut, finish
from onnx_amc.run.clock import Effort
from onnx_amc.search.space import levels_of

MODELS = Path(__file__).parents[1] / "models"
QUICK = Effort(random=6, rounds=1, runs=4, seconds=1.0)


@cache
def network(name: str = "digits_resnet") -> Analysis:
    return analyse(load(MODELS / f"{name}.onnx"))


def levels(analysis: Analysis) -> list[np.ndarray]:
    return [levels_of(g.channels, None, 0.2, g.lanes) for g in analysis.groups]


def whole(analysis: Analysis) -> np.ndarray:
    return np.array([g.channels for g in analysis.groups], dtype=np.int64)


def built(analysis: Analysis, counts: np.ndarray) -> onnx.ModelProto:
    """The first channels of each group."""
    pairs = zip(analysis.groups, counts.tolist(), strict=True)
    return finish(analysis, cut(analysis, {g.name: tuple(range(n)) for g, n in pairs if n < g.channels}))


def up(lengths: np.ndarray, block: int) -> np.ndarray:
    return -(-lengths // block) * block
