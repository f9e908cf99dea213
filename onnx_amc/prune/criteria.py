"""Named alternatives to the elimination order: which channels of a group go first when nothing is solved for.

Each is what the literature calls by that name, summed over all tensors of the group; the first of an order goes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx_amc.fit.moments import Moments
    from onnx_amc.graph.groups import Analysis, Group, Slice
    from onnx_amc.prune.layers import Layer

CRITERIA = ("obs", "wanda", "fpgm", "magnitude", "random")
"""Names; `obs`, the default, is `fit.solve.eliminate`."""


def magnitude(analysis: Analysis, group: Group) -> np.ndarray:
    """L1 norm of the weights that read the channel (AMC section 3.4), (channels,)."""
    return _summed(analysis, group, [p for p in group.slices if p.mask], lambda rows: np.abs(rows).sum(axis=1))


def fpgm(analysis: Analysis, group: Group) -> np.ndarray:
    """Distance of the channel's filters to all others of the group, (channels,): what is near the median is redundant.

    Source: He et al. 2019, "Filter pruning via geometric median", equation 7.
    """
    return _summed(analysis, group, [p for p in group.slices if p.role == "produces"], _distances)


def wanda(
    analysis: Analysis, group: Group, layers: Sequence[Layer], moments: Mapping[str, Moments],
    weights: Mapping[str, np.ndarray],
) -> np.ndarray:  # fmt: skip
    """Weights that read the channel times the norm of what they read, (channels,), in shares of each reader's total.

    Source: Sun et al. 2023, "A simple and effective pruning approach for large language models", equation 1.
    """
    score, position = np.zeros(group.channels), analysis.index[group.name]
    for layer in layers:
        if layer.inputs is None or layer.node not in moments:
            continue
        w, found = weights[layer.node], moments[layer.node]
        norms = np.stack([np.sqrt(np.maximum(np.diag(found.second(g)), 0.0)) for g in range(len(w))])
        each = (np.abs(w).sum(axis=1) * norms.reshape(len(w), w.shape[2], w.shape[3])).sum(axis=2)
        classes = analysis.labels[layer.inputs]
        mine = analysis.home[classes] == position
        np.add.at(score, analysis.place[classes[mine]], each[mine] / max(float(each.sum()), 1e-300))
    return score


def _summed(
    analysis: Analysis, group: Group, pieces: Sequence[Slice], per_row: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    score = np.zeros(group.channels)
    for piece in pieces:
        array = analysis.model.value(piece.owner.tensor).astype(np.float64)
        rows = np.moveaxis(array, piece.owner.axis, 0).reshape(array.shape[piece.owner.axis], -1)
        np.add.at(score, piece.channel, per_row(rows[piece.index]))
    return score


def _distances(rows: np.ndarray) -> np.ndarray:
    squares = np.square(rows).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * rows @ rows.T, 0.0)).sum(axis=1))
