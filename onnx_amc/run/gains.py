"""Biases that a refit gives to layers which have none: a plan costs what they take, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnx_amc.graph import cost, light
from onnx_amc.graph.groups import Analysis
from onnx_amc.prune.layers import Layer, find_layers
from onnx_amc.prune.refit import read
from onnx_amc.run.sequential import reached

AROUND = 36
"""Bytes of a bias in the file, about, besides its elements and twice the name of the layer's output."""


class Gains:
    """What layers gain for whichever of their causes is cut.

    Args:
        analysis: Of the network.
        layers: Those that are refitted.
        own: By layer, bool (units,), the units that it is refitted for by itself.
        tops: int (units,), what each unit has uncut.
        channels: Whether the units are the groups of channels, of which a bias may lose some.
        sequential: Whether it is refitted for what the cut of others reaches too.

    """

    def __init__(
        self, analysis: Analysis, layers: Sequence[Layer], own: Mapping[str, np.ndarray], tops: np.ndarray, *,
        channels: bool, sequential: bool,
    ) -> None:  # fmt: skip
        bare = [x for x in layers if x.bias is None and x.can_add_bias]
        causes = reached(analysis, layers, own) if sequential and bare else own
        found = [causes.get(x.node, np.zeros(len(tops))) for x in bare]
        # Numbers are multiplied faster than truths.
        self._causes, self._tops = np.array(found, dtype=np.float32).reshape(len(bare), len(tops)), tops
        outputs = {x.node: int(np.prod(x.weight.index.shape[:2])) if x.outputs is None else x.outputs for x in bare}
        self._price, self._full = cost.lengths(analysis, outputs), None if channels else analysis.full
        self._widths = np.array([light.width_of(x.weight.kinds[-1]) for x in bare], dtype=np.int64)
        self._around = np.array([2 * len(x.node.encode()) + AROUND for x in bare], dtype=np.int64)

    def elements(self, plans: np.ndarray) -> np.ndarray:
        """Elements of the biases that plans bring, int (plans,), from int (plans, units)."""
        return np.asarray(self._each(plans).sum(axis=1))

    def bytes(self, plans: np.ndarray) -> np.ndarray:
        """What they take in the file."""
        each = self._each(plans)
        return np.asarray((each * self._widths + (each > 0) * self._around).sum(axis=1))

    def _each(self, plans: np.ndarray) -> np.ndarray:
        hit = (plans < self._tops).astype(np.float32) @ self._causes.T > 0
        counts = plans if self._full is None else self._full[None]
        return np.asarray(self._price.each(counts) * self._price.constant * hit)


def by_channels(analysis: Analysis, *, refit: bool, sequential: bool) -> Gains:
    """The biases that come with cut channels; a correction of statistics, in place of a sequential refit, is one of all layers."""
    layers, groups = find_layers(analysis)[0] if refit else [], np.arange(len(analysis.groups))
    own = {x.node: np.isin(groups, analysis.groups_at(x.inputs)) | (not sequential) for x in layers}
    return Gains(analysis, layers, own, analysis.full, channels=True, sequential=sequential)


def by_weights(
    analysis: Analysis, thinned: Sequence[Layer], tops: np.ndarray, *, refit: bool, sequential: bool
) -> Gains:
    """The biases that come with zeros; a layer that has some as it comes is refitted with any that is thinned."""
    layers, names = find_layers(analysis)[0] if refit else [], np.array([x.node for x in thinned], dtype=np.str_)
    own = {x.node: (names == x.node) | (sequential and not read(analysis, x.weight).all()) for x in layers}
    return Gains(analysis, layers, own, tops, channels=False, sequential=sequential)
