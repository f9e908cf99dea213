"""Where inside the network the cut one can be held against the original: block outputs.

A hint is a tensor that everything passes through: when it has been computed, nothing computed before it is needed any more. In a
residual network these are the sums at the ends of the blocks, in a chain the outputs of the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor

from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.proto import last_uses, names_read

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

MOST = 12
"""Hints of a network, at most; of more, this many evenly spread ones are taken."""


@dataclass(frozen=True)
class Hint:
    """A tensor inside the network.

    Args:
        name: Its name, the same in both graphs.
        picks: By axis, the positions of the original's tensor that the cut one's has; None where they are all there.

    """

    name: str
    picks: tuple[np.ndarray | None, ...]

    def of(self, value: Tensor) -> Tensor:
        """The part of the original's tensor that is left in the cut network."""
        for axis, pick in enumerate(self.picks):
            if pick is not None:
                value = value.index_select(axis, torch.from_numpy(pick).to(value.device))
        return value


def hints_of(analysis: Analysis, kept: Mapping[str, Sequence[int]]) -> list[Hint]:
    """Return the block outputs of a network, evenly spread if there are many."""
    keep = analysis.keeper(kept)
    found: list[Hint] = []
    for name in narrows(analysis.model.proto):
        axes = analysis.axes.get(name)
        if axes is None:
            continue
        alive = [None if tokens is None else keep(tokens) for tokens in axes]
        picks = tuple(None if a is None or a.ndim != 1 or a.all() else np.flatnonzero(a) for a in alive)
        found.append(Hint(name, picks))
    spread = np.linspace(0, len(found) - 1, min(MOST, len(found))).round()
    return [found[int(i)] for i in spread]


def narrows(proto: onnx.ModelProto) -> list[str]:
    """Tensors that all information passes through, made by a layer with weights or by a sum, in the order of the graph."""
    fixed = {t.name for t in proto.graph.initializer}
    last = last_uses(proto)
    ends = {o.name for o in proto.graph.output}
    alive = {i.name for i in proto.graph.input} - fixed
    found: list[str] = []
    for i, node in enumerate(proto.graph.node):
        read = {name for name in names_read(node) if name not in fixed}
        if not read:
            fixed |= set(node.output)
            continue
        alive = {name for name in {*alive, *node.output} if name and (last.get(name, -1) > i or name in ends)}
        if alive == {node.output[0]} and not alive & ends and (len(read) > 1 or node.op_type in LAYERS):
            found.append(node.output[0])
    return found
