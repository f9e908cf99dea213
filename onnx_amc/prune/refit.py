"""From moments to an order of the channels, and from a plan to refitted weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_amc.fit.moments import Moments
from onnx_amc.fit.solve import Part, eliminate, refit
from onnx_amc.graph.groups import Analysis, Group
from onnx_amc.prune.criteria import magnitude
from onnx_amc.prune.layers import Layer, Stored

Values = dict[str, np.ndarray]

REMEMBERED = 2**28
"""Bytes of refitted weights that are kept: plans share most of their layers' counts with plans before them."""

SILENT = 1e-6
"""Of the largest scale of a layer's outputs: what is scaled by less has weights that are of no account."""


@dataclass(frozen=True)
class Ranking:
    """In which order the channels of a group go.

    Args:
        order: int (channels,), the first to go first.
        errors: (channels,), the readers' relative output error once so many + 1 have gone; NaN where it is not known.

    """

    order: np.ndarray
    errors: np.ndarray

    def kept(self, count: int) -> tuple[int, ...]:
        """Return the channels that stay when `count` do."""
        return tuple(np.sort(self.order[len(self.order) - count :]).tolist())

    def error(self, count: int) -> float:
        """Return the error when `count` channels stay."""
        gone = len(self.order) - count
        return 0.0 if gone == 0 else float(self.errors[gone - 1])


class Refitter:
    """Refits every layer that reads a cut group, from the original network's moments.

    Args:
        analysis: Of the original model.
        layers: Its layers.
        moments: Of their inputs, by node.
        ridge: Relative pull towards the original weights.

    Attributes:
        worth: What a unit of a layer's relative error counts for in `rank`, by node; 1 unless set.

    """

    def __init__(
        self, analysis: Analysis, layers: Sequence[Layer], moments: Mapping[str, Moments], ridge: float
    ) -> None:
        self.analysis, self.layers, self.moments, self.ridge = analysis, list(layers), moments, ridge
        self.worth: dict[str, float] = {}
        self.weights = {layer.node: read(analysis, layer.weight) for layer in layers}
        self._known: dict[tuple[str, bytes], tuple[np.ndarray, np.ndarray]] = {}
        self._bytes = 0

    def matrix(self, layer: Layer, group: int) -> np.ndarray:
        """What least squares sees of a layer's inputs: their covariance where there is a bias, else their second moments."""
        moments = self.moments[layer.node]
        return moments.covariance(group) if layer.affine else moments.second(group)

    def solve(self, kept: Mapping[str, Sequence[int]]) -> tuple[Values, Values]:
        """Weights and biases for a plan.

        Returns:
            New contents of initializers in their original shapes, and by node the biases that layers gain (surviving outputs).

        """
        keep = self.analysis.keeper(kept)
        values: Values = {}
        added: Values = {}
        for layer in self.layers:
            if layer.inputs is None or layer.node not in self.moments:
                continue
            alive = keep(layer.inputs)
            if alive.all():
                continue
            w, shift = self._looked_up(layer, alive)
            if not storable(layer.weight, w, shift):
                continue
            write(self.analysis, values, layer.weight, w)
            if layer.bias is not None:
                move(self.analysis, values, layer, shift)
            elif layer.can_add_bias:
                outputs = keep(layer.outputs) if layer.outputs is not None else slice(None)
                added[layer.node] = shift[outputs]
        return values, added

    def _looked_up(self, layer: Layer, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `_refitted` gives, the weights in the precision in which they are stored; remembered as long as there is room."""
        key = layer.node, alive.tobytes()
        if key not in self._known:
            w, shift = self._refitted(layer, alive)
            with np.errstate(over="ignore"):  # what half precision cannot hold is not taken
                found = w.astype(self.analysis.model.value(layer.weight.name).dtype), shift
            for array in found:
                array.flags.writeable = False
            if self._bytes + found[0].nbytes > REMEMBERED:
                return found
            self._bytes += found[0].nbytes
            self._known[key] = found
        return self._known[key]

    def _refitted(self, layer: Layer, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(groups, outputs, inputs, taps) weights, zero where inputs are cut, and what the bias gains, (outputs,)."""
        old, moments = self.weights[layer.node], self.moments[layer.node]
        groups, outputs, inputs, taps = old.shape
        new, shift = np.zeros_like(old), np.zeros((groups, outputs))
        for g in range(groups):
            columns = np.repeat(alive[g], taps)
            if columns.all():
                new[g] = old[g]
            if columns.all() or not columns.any():
                shift[g] = (old[g] - new[g]).reshape(outputs, -1) @ moments.mean(g)
                continue
            h = self.matrix(layer, g)
            w = old[g].reshape(outputs, inputs * taps)
            v = np.zeros_like(w)
            v[:, columns] = refit(h, w, columns, self.ridge)
            new[g] = v.reshape(outputs, inputs, taps)
            shift[g] = (w - v) @ moments.mean(g)
        return new, shift.ravel()

    def rank(self, group: Group) -> Ranking:
        """Order a group's channels by elimination over all its readers; by magnitude where none has moments."""
        parts = [p for layer in self.layers for p in self._parts(group, layer)]
        if not parts:
            return by_score(magnitude(self.analysis, group))
        order, errors = eliminate(parts, group.channels, self.ridge)
        return Ranking(order, errors)

    def _parts(self, group: Group, layer: Layer) -> list[Part]:
        if layer.inputs is None or layer.node not in self.moments:
            return []
        analysis, position = self.analysis, self.analysis.index[group.name]
        classes = analysis.labels[layer.inputs]
        w = self.weights[layer.node]
        taps = w.shape[3]
        found: list[Part] = []
        for g in range(len(w)):
            mine = np.flatnonzero(analysis.home[classes[g]] == position)
            if len(mine) == 0 or len(mine) % group.channels:
                continue
            channel = analysis.place[classes[g][mine]]
            inputs = mine[np.argsort(channel, kind="stable")].reshape(group.channels, -1)
            columns = (inputs[:, :, None] * taps + np.arange(taps)).reshape(group.channels, -1)
            h = self.matrix(layer, g)
            found.append(Part(h, w[g].reshape(w.shape[1], -1), columns, self.worth.get(layer.node, 1.0)))
        return found


def by_score(score: np.ndarray) -> Ranking:
    """The order of a score: the lowest goes first."""
    return Ranking(np.argsort(score, kind="stable"), np.full(len(score), np.nan))


def read(analysis: Analysis, stored: Stored, values: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """Return the tensor behind `stored` in float64, from `values` where it was changed; in C order, so that views can be taken."""
    array = (values or {}).get(stored.name)
    source = analysis.model.value(stored.name) if array is None else array
    found = np.ascontiguousarray(stored.held(source.reshape(-1)[stored.index]), dtype=np.float64)
    found = found if stored.scale is None else found * stored.scale
    return found if stored.offset is None else found + stored.offset


def write(analysis: Analysis, values: Values, stored: Stored, new: np.ndarray) -> None:
    """Put a tensor back where it is stored, into `values`."""
    if stored.name not in values:
        values[stored.name] = analysis.model.value(stored.name).copy()
    flat = values[stored.name].reshape(-1)
    flat[stored.index] = _bare(stored, new, flat[stored.index]).astype(flat.dtype)


def _bare(stored: Stored, new: np.ndarray, before: np.ndarray) -> np.ndarray:
    """What to store for a tensor to arrive as it should; as before where it arrives as nothing anyway."""
    new = new if stored.offset is None else new - stored.offset
    if stored.scale is None:
        return new
    alive = np.abs(stored.scale) > SILENT * np.abs(stored.scale).max()
    found = before.astype(np.float64)
    np.divide(new, stored.scale, out=found, where=alive)
    return found


def move(analysis: Analysis, values: Values, layer: Layer, shift: np.ndarray) -> None:
    """Put a layer's original bias, moved by `shift`, into `values`; with it those of the layers for which it stands."""
    for bias in filter(None, (layer.bias, *layer.others)):
        write(analysis, values, bias, read(analysis, bias) + shift)


def storable(stored: Stored, new: np.ndarray, shift: np.ndarray) -> bool:
    """Whether a tensor, and what a bias gains, are finite in the tensor's type, and stay so when they are stored."""
    with np.errstate(over="ignore", invalid="ignore"):
        return all(bool(np.isfinite(stored.held(v)).all()) for v in (_bare(stored, new, 0 * new), shift))
