"""A cut network beside the original, layer by layer: how far its activations are off, and how long its kernels take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.ledger import Keep
from onnx_amc.graph.limits import WIDTH, at_a_time
from onnx_amc.prune.layers import Layer
from onnx_amc.run.capture import feeds, fixed_batch
from onnx_amc.run.data import Dataset
from onnx_amc.run.kernels import CPU, Feed, in_turn
from onnx_amc.run.learn import Anchors
from onnx_amc.run.samples import spread
from onnx_amc.run.session import open_session, run_session

SAMPLES = 64
"""Samples that errors are measured on, at most: a layer has hundreds of values in each."""

MEMORY = 2**29
"""Bytes of the activations of one batch, of both networks together."""

RUNS, SECONDS = 12, 4.0
"""Of each network, until its kernels' times are known."""


@dataclass
class _Sums:
    """What a relative error is made of, channel by channel, so that batches can be added up."""

    count: int = 0
    gap: float = 0.0
    first: np.ndarray | float = 0.0
    second: np.ndarray | float = 0.0

    def add(self, found: np.ndarray, goal: np.ndarray) -> None:
        """Add a batch of values (n, channels), and what the original has there; where that is not finite, it is left out."""
        goal = goal.astype(np.float64)
        self.count += len(goal)
        if not (known := np.isfinite(goal)).all():
            found, goal = (np.where(known, values, 0) for values in (found, goal))
        gap = found - goal
        self.gap += float(np.square(gap, out=gap).sum())
        self.first = self.first + goal.sum(axis=0)
        self.second = self.second + np.square(goal).sum(axis=0)

    @property
    def relative(self) -> float:
        """E|y - y0|^2 / E|y0 - E y0|^2; 1e6 where y is not finite."""
        if not np.isfinite(self.gap):
            return 1e6
        spread = float(np.sum(self.second - np.square(self.first) / max(self.count, 1)))
        return self.gap / max(spread, 1e-30)


def layer_errors(
    analysis: Analysis, layers: Sequence[Layer], model: onnx.ModelProto, keep: Keep, data: Dataset, index: np.ndarray
) -> dict[str, float]:
    """Relative squared error of what each layer computes, against the original, in the channels that are left.

    It is taken behind the addition and the activation that follow a layer alone: what these take away is no error.

    Args:
        analysis: Of the original.
        layers: Which ones.
        model: The cut network.
        keep: Which tokens it keeps.
        data: Samples.
        index: Which samples; 64 of them at most.

    Returns:
        Errors by the layers' nodes; a layer whose output one of the networks does not have, or in another shape, is left out.

    Raises:
        ModelError: onnxruntime refuses one of the networks with its activations as outputs.
        DataError: It cannot run one of them.

    """
    have = {o for n in model.graph.node for o in n.output}
    behind = {node: last for node, last in tensors_behind(analysis, layers).items() if last in have}
    tensors = sorted(set(behind.values()))
    if not tensors:
        return {}
    index = spread(index, SAMPLES)
    proto, shapes = analysis.model.proto, analysis.model.shapes
    size = 2 * WIDTH * (at_a_time(proto, shapes) + sum(int(np.prod(shapes[t][1:])) for t in tensors))
    pairs = zip(_values(proto, tensors, data, index, size), _values(model, tensors, data, index, size), strict=True)
    sums = {layer.node: _Sums() for layer in layers if layer.node in behind}
    for goals, found in pairs:
        for layer in layers:
            if layer.node in behind:
                goal, mine = (_flat(values[behind[layer.node]], layer) for values in (goals, found))
                alive = slice(None) if layer.outputs is None else keep(layer.outputs)
                if mine.shape == goal[:, alive].shape:
                    sums[layer.node].add(mine, goal[:, alive])
    return {node: s.relative for node, s in sums.items() if s.count}


def _flat(values: np.ndarray, layer: Layer) -> np.ndarray:
    """Values as (n, channels)."""
    axis = layer.output_axis
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


def tensors_behind(analysis: Analysis, layers: Sequence[Layer]) -> dict[str, str]:
    """By layer the tensor behind its addition and activation, where these are all that reads its output."""
    users, shapes = analysis.model.consumers, analysis.model.shapes
    ends, found = {o.name for o in analysis.model.proto.graph.output}, {}
    for layer in layers:
        tensor = layer.output
        for kinds in (("Add",), ("Relu", "Clip")):
            read = users.get(tensor, [])
            after = read[0].output[0] if len(read) == 1 and read[0].op_type in kinds and tensor not in ends else None
            tensor = after if after is not None and shapes.get(after) == shapes.get(tensor) else tensor
        if tensor in shapes:
            found[layer.node] = tensor
    return found


def _values(
    model: onnx.ModelProto, tensors: Sequence[str], data: Dataset, index: np.ndarray, size: int
) -> Iterator[Mapping[str, np.ndarray]]:
    """The tensors' values, batch by batch; `size` is their bytes in one sample, of both networks together."""
    session = open_session(model, extra=tensors)
    together = fixed_batch(model) or int(np.clip(MEMORY // max(size, 1), 1, SAMPLES))
    for feed, count in feeds(model, data, index, together):
        found = run_session(session, tensors, feed, where=data.source)
        yield {name: value[:count] for name, value in zip(tensors, found, strict=True)}


def layer_times(
    analysis: Analysis, model: onnx.ModelProto, feed: Feed, *, threads: int = 0, provider: str = CPU
) -> dict[str, tuple[float, float]]:
    """Microseconds of each layer in the original and in a cut network, by onnxruntime's own profile.

    Args:
        analysis: Of the original.
        model: The cut network.
        feed: Input of one run.
        threads: Within an operator; 0 takes all cores.
        provider: Execution provider; only the CPU's kernels can be timed.

    Returns:
        Times by tensors that both networks compute with kernels of their own, in the order of the graph; what onnxruntime inserts
        or fuses counts for the tensor it serves. Empty where there is no profile.

    """
    if provider != CPU:
        return {}
    _, profiles = in_turn([analysis.model.original, model], feed, threads=threads, runs=RUNS, seconds=SECONDS)
    anchors = Anchors(analysis)
    shared = frozenset.intersection(*(frozenset(anchors.grouped(p)) for p in profiles))
    before, after = (
        {t: sum(k.microseconds for k in kernels) for t, kernels in anchors.grouped(p, shared).items()} for p in profiles
    )
    return {t: (before[t], after[t]) for t in before}
