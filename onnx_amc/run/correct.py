"""Statistics correction: give each layer's output the mean and deviation it had, on the network as it is now cut.

Least squares shrinks the variance of what it predicts, layer after layer. One run of a graph with taps measures and corrects all
layers in order; the factors are then folded into weights and biases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.limits import room
from onnx_amc.graph.taps import Point, mark_of, tapped
from onnx_amc.prune.layers import Layer
from onnx_amc.prune.refit import Values, read, write
from onnx_amc.prune.surgery import cut, list_stored
from onnx_amc.run.capture import free_batch
from onnx_amc.run.data import Dataset
from onnx_amc.run.session import open_session, run_session

MEMORY = 2 * 2**30
"""Bytes that the single batch of a correction run may take."""

DEAD = 1e-6
"""A channel whose deviation is below this share of the layer's mean one is not rescaled."""


def drawn(index: np.ndarray, samples: int) -> np.ndarray:
    """Samples in the order in which a corrector takes as many of them as it may."""
    return np.random.default_rng(0).permutation(index)[:samples]


class Corrector:
    """Corrects the statistics of a cut network's layers.

    Args:
        analysis: Of the original model.
        layers: Layers whose outputs to correct.
        data: Samples.
        index: Which samples; as many of them are taken as fit into memory in one batch.
        samples: At most so many.
        memory: GB that the run may use; None for what there is.

    Raises:
        DataError: The graph runs on its own batch size only.

    """

    def __init__(
        self, analysis: Analysis, layers: Sequence[Layer], data: Dataset, index: np.ndarray, samples: int,
        memory: float | None = None,
    ) -> None:  # fmt: skip
        self.analysis = analysis
        model = analysis.model
        self.layers = [layer for layer in layers if layer.output in model.shapes]
        mark = mark_of(model.proto.graph)
        self.points = [self._point(layer, mark) for layer in self.layers]
        largest = max((int(np.prod(s)) for s in model.shapes.values()), default=1)
        count = int(np.clip(room(MEMORY, memory) // (24 * largest), 1, min(samples, len(index))))
        self._feed = data.batch(np.sort(drawn(index, count)))
        template = deepcopy(model.proto)
        del template.graph.value_info[:]
        free_batch(template, model)
        self._template = tapped(template, self.points, model.opset, correct=True)
        measured = self._run(tapped(template, self.points, model.opset, correct=False))
        self._means, self._stds = measured[0::2], measured[1::2]

    def _point(self, layer: Layer, mark: str) -> Point:
        rank = len(self.analysis.model.shapes[layer.output])
        return Point(layer.output, rank, layer.output_axis % rank, layer.affine, layer.weight.kinds[-1], mark)

    def _run(self, proto: onnx.ModelProto) -> list[np.ndarray]:
        session = open_session(proto, where=self.analysis.model.source)
        return [np.ravel(v) for v in run_session(session, None, self._feed, where=self.analysis.model.source)]

    def correct(self, kept: Mapping[str, Sequence[int]], values: Values, biases: Values) -> tuple[Values, Values]:
        """Return weights and biases with the correction folded in; the arguments are those of `surgery.cut`."""
        keep = self.analysis.keeper(kept)
        alive = [
            keep(layer.outputs) if layer.outputs is not None else np.ones(len(mean), dtype=bool)
            for layer, mean in zip(self.layers, self._means, strict=True)
        ]
        proto = free_batch(cut(self.analysis, kept, values, biases, self._template), self.analysis.model)
        goals: dict[str, np.ndarray] = {}
        for point, mean, std, mask in zip(self.points, self._means, self._stds, alive, strict=True):
            goals[point.name("mean0")] = mean[mask].reshape(point.shape)
            goals[point.name("std0")] = std[mask].reshape(point.shape)
            goals[point.name("live")] = (std[mask] > DEAD * std[mask].mean()).reshape(point.shape)
        for tensor in proto.graph.initializer:
            if tensor.name in goals:
                tensor.CopyFrom(numpy_helper.from_array(goals[tensor.name].astype(np.float32), tensor.name))
        list_stored(proto)
        measured = self._run(proto)
        values, biases = {k: v.copy() for k, v in values.items()}, dict(biases)
        for i, layer in enumerate(self.layers):
            goal = self._means[i][alive[i]]
            self._fold(layer, alive[i], measured[2 * i], measured[2 * i + 1], goal, values, biases)
        return values, biases

    def _fold(
        self, layer: Layer, alive: np.ndarray, mean: np.ndarray, scale: np.ndarray, goal: np.ndarray,
        values: Values, biases: Values,
    ) -> None:  # fmt: skip
        """W' = s W and b' = s (b - mean) + mean0, row by row."""
        w = read(self.analysis, layer.weight, values)
        rows = np.ones(len(alive))
        rows[alive] = scale
        write(self.analysis, values, layer.weight, w * rows.reshape(*w.shape[:2], 1, 1))
        if layer.bias is not None:
            b = read(self.analysis, layer.bias, values)
            b[alive] = scale * (b[alive] - mean) + goal
            write(self.analysis, values, layer.bias, b)
        elif layer.can_add_bias:
            b = biases.get(layer.node, np.zeros(int(alive.sum())))
            biases[layer.node] = scale * (b - mean) + goal
