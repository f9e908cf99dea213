"""A copy of the graph that measures, and if asked corrects, the statistics of chosen tensors as it runs.

Nodes are inserted everywhere, so it is where onnx-graphsurgeon works; what that loses of a file (metadata, doc strings) does not
matter here, since these graphs are only run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from onnx_amc.graph.proto import names_of

SMALLEST, LARGEST = 0.2, 5.0
"""Bounds of a correction's scale: beyond these a channel is dead or the estimate is noise."""


@dataclass(frozen=True)
class Point:
    """An activation to tap.

    Args:
        tensor: Its name.
        rank: Its number of axes.
        axis: Its channel axis.
        shift: Whether its mean may be corrected as well as its deviation.
        dtype: Its ONNX element type; statistics are taken in float32 whatever it is.
        mark: Part of the names of the tap's tensors that none of the graph's has, see `mark_of`.

    """

    tensor: str
    rank: int
    axis: int
    shift: bool
    dtype: int = onnx.TensorProto.FLOAT
    mark: str = "tap"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of per-channel numbers that broadcasts against the activation."""
        return tuple(-1 if i == self.axis else 1 for i in range(self.rank))

    def name(self, part: str) -> str:
        """Name of one of the tap's tensors: outputs `mean` and `scale`, initializers `mean0`, `std0`, `live`."""
        return f"{self.tensor}/{self.mark}/{part}"


def mark_of(graph: onnx.GraphProto) -> str:
    """A mark for the points of a graph: no tensor there has it in its name."""
    known = "\n".join(names_of(graph))
    marks = (f"tap{i}" if i > 1 else "tap" for i in itertools.count(1))
    return next(mark for mark in marks if f"/{mark}/" not in known)


def tapped(model: onnx.ModelProto, points: Sequence[Point], opset: int, *, correct: bool) -> onnx.ModelProto:
    """Return a graph whose outputs are the mean and scale of each point, over all but its channel axis, in turn.

    Without `correct`, scale is the standard deviation. With it, scale is what brings the deviation to the initializer `std0`
    (within bounds; 1 where the initializer `live` is 0), and everything downstream sees (y - mean) scale + mean0: one run then
    corrects all layers in order, each on the corrected output of those before it.
    """
    with G_LOGGER.suppress():  # what it warns of would go to stdout, which may be a pipe
        graph = gs.import_onnx(model)
    known = graph.tensors()
    users = {p.tensor: [n for n in graph.nodes if any(i is known[p.tensor] for i in n.inputs)] for p in points}
    graph.outputs.clear()
    for point in points:
        y = known[point.tensor]
        ops = _Ops(graph, point, opset)
        wide = ops.apply("Cast", [y], "wide", to=onnx.TensorProto.FLOAT) if point.dtype != onnx.TensorProto.FLOAT else y
        mean = ops.mean(wide, "mean")
        centred = ops.apply("Sub", [wide, mean], "centred")
        variance = ops.mean(ops.apply("Mul", [centred, centred], "squared"), "variance")
        std = ops.apply("Sqrt", [variance], "std" if correct else "scale")
        graph.outputs += [mean, std]
        if correct:
            graph.outputs[-1] = ops.correct(centred, mean, std, users[point.tensor], y)
    graph.toposort()
    for output in graph.outputs:
        output.dtype = np.float32
    with G_LOGGER.suppress():
        result: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    return result


class _Ops:
    """Appends nodes behind one point."""

    def __init__(self, graph: Any, point: Point, opset: int) -> None:
        self.graph, self.point, self.opset = graph, point, opset

    def apply(self, op: str, inputs: list[Any], part: str, **attrs: Any) -> Any:
        """Append one node and return its output."""
        out = gs.Variable(self.point.name(part))
        self.graph.nodes.append(gs.Node(op, self.point.name(part), attrs=attrs, inputs=inputs, outputs=[out]))
        return out

    def constant(self, part: str, value: float | np.ndarray) -> Any:
        """A float32 initializer."""
        return gs.Constant(self.point.name(part), np.asarray(value, dtype=np.float32))

    def mean(self, x: Any, part: str) -> Any:
        """Mean over all axes but the channel's."""
        axes = [i for i in range(self.point.rank) if i != self.point.axis]
        if self.opset >= 18:
            constant = gs.Constant(self.point.name(f"{part}/axes"), np.array(axes, dtype=np.int64))
            return self.apply("ReduceMean", [x, constant], part, keepdims=1)
        return self.apply("ReduceMean", [x], part, keepdims=1, axes=axes)

    def clip(self, x: Any, part: str, low: float, high: float) -> Any:
        """Bounds as inputs, before opset 11 as attributes."""
        if self.opset < 11:
            return self.apply("Clip", [x], part, min=low, max=high)
        return self.apply("Clip", [x, self.constant(f"{part}/low", low), self.constant(f"{part}/high", high)], part)

    def correct(self, centred: Any, mean: Any, std: Any, users: list[Any], y: Any) -> Any:
        """Hand the corrected activation to all that read it, and return the scale."""
        shape = [1 if d < 0 else d for d in self.point.shape]
        target, goal, live = (self.constant(n, np.ones(shape)) for n in ("std0", "mean0", "live"))
        one = self.constant("one", 1.0)
        ratio = self.apply("Div", [target, self.clip(std, "positive", 1e-12, 1e30)], "ratio")
        bounded = self.clip(ratio, "bounded", SMALLEST, LARGEST)
        change = self.apply("Mul", [live, self.apply("Sub", [bounded, one], "less")], "change")
        scale = self.apply("Add", [one, change], "scale")
        centre = goal if self.point.shift else self.apply("Mul", [mean, scale], "centre")
        fixed = self.apply("Add", [self.apply("Mul", [centred, scale], "scaled"), centre], "corrected")
        if self.point.dtype != onnx.TensorProto.FLOAT:
            fixed = self.apply("Cast", [fixed], "narrow", to=self.point.dtype)
        for node in users:
            for i, tensor in enumerate(node.inputs):
                if tensor is y:
                    node.inputs[i] = fixed
        return scale
