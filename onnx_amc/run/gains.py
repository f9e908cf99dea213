"""Biases that a refit gives to layers which have none: a plan costs what they take, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_amc.graph import cost
from onnx_amc.graph.groups import Analysis
from onnx_amc.prune.layers import Layer, find_layers
from onnx_amc.prune.refit import read
from onnx_amc.run.sequential import reached

AROUND = 36
"""Bytes of a bias in the file, about, besides its elements and twice the name of the layer's output."""


@dataclass(frozen=True)
class Gains:
    """What layers gain for whichever of their causes is cut.

    Args:
        causes: bool (layers, units), what each layer is refitted for.
        lengths: Plans, int (plans, units), -> elements of each layer's bias, int (plans, layers).
        widths: int (layers,), bytes of an element.
        around: int (layers,), bytes of a bias besides its elements.

    """

    causes: np.ndarray
    lengths: Callable[[np.ndarray], np.ndarray]
    widths: np.ndarray
    around: np.ndarray

    def elements(self, plans: np.ndarray, tops: np.ndarray) -> np.ndarray:
        """Elements of the biases that plans bring, int (plans,), from int (plans, units) and what each unit has uncut."""
        return np.asarray(self._each(plans, tops).sum(axis=1))

    def bytes(self, plans: np.ndarray, tops: np.ndarray) -> np.ndarray:
        """What they take in the file."""
        each = self._each(plans, tops)
        return np.asarray((each * self.widths + (each > 0) * self.around).sum(axis=1))

    def _each(self, plans: np.ndarray, tops: np.ndarray) -> np.ndarray:
        hit = (plans < tops).astype(np.float32) @ self.causes.T.astype(
            np.float32
        )  # numbers are multiplied faster than truths
        return np.asarray(self.lengths(plans) * (hit > 0))


def by_channels(analysis: Analysis, *, refit: bool, sequential: bool) -> Gains:
    """The biases that come with cut channels.

    Args:
        analysis: Of the network.
        refit: Whether there is a refit.
        sequential: Whether it goes layer by layer, to what the cut reaches; a correction of statistics is one of all layers.

    """
    layers = find_layers(analysis)[0] if refit else []
    own: dict[str, np.ndarray] = {}
    for layer in layers:
        homes = [] if layer.inputs is None else analysis.home[analysis.labels[layer.inputs]]
        own[layer.node] = np.isin(np.arange(len(analysis.groups)), homes) | (not sequential)
    price = cost.lengths(analysis, {x.node: _outputs(x) if x.outputs is None else x.outputs for x in _bare(layers)})
    return _gains(
        analysis,
        layers,
        own,
        lambda plans: price.each(plans) * price.constant,
        len(analysis.groups),
        sequential=sequential,
    )


def by_weights(analysis: Analysis, thinned: Sequence[Layer], *, refit: bool, sequential: bool) -> Gains:
    """The biases that come with zeros; layers that have some as they come are refitted with any that is thinned.

    Args:
        analysis: Of the network.
        thinned: The layers whose weights may go, a unit each.
        refit: Whether there is a refit.
        sequential: Whether it goes layer by layer, to what zeros reach.

    """
    layers = find_layers(analysis)[0] if refit else []
    places = {layer.node: np.arange(len(thinned)) == i for i, layer in enumerate(thinned)}
    own = {x.node: places.get(x.node, np.zeros(len(thinned), bool)) for x in layers}
    if sequential:
        own |= {x.node: np.ones(len(thinned), bool) for x in layers if not read(analysis, x.weight).all()}
    lengths = np.array([_outputs(x) for x in _bare(layers)], dtype=np.int64)
    return _gains(analysis, layers, own, lambda _plans: lengths, len(thinned), sequential=sequential)


def _gains(
    analysis: Analysis, layers: Sequence[Layer], own: Mapping[str, np.ndarray],
    lengths: Callable[[np.ndarray], np.ndarray], units: int, *, sequential: bool,
) -> Gains:  # fmt: skip
    bare = _bare(layers)
    reach = reached(analysis, layers, own) if sequential and bare else own
    causes = [reach.get(layer.node, np.zeros(units, bool)) for layer in bare]
    kinds = [analysis.model.weights[layer.weight.name].data_type for layer in bare]
    widths = [onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize for kind in kinds]
    around = [2 * len(layer.node.encode()) + AROUND for layer in bare]
    return Gains(
        np.array(causes, bool).reshape(len(bare), units),
        lengths,
        np.array(widths, dtype=np.int64),
        np.array(around, dtype=np.int64),
    )


def _bare(layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if layer.bias is None and layer.can_add_bias]


def _outputs(layer: Layer) -> int:
    return int(np.prod(layer.weight.index.shape[:2]))
