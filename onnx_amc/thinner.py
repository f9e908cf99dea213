"""From numbers of weights to a model: which single weights stay, what becomes of them, and how the zeros are stored."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from onnx_amc.builder import Builder, Kept
from onnx_amc.errors import PlanError
from onnx_amc.fit.sparse import Choose, largest, of_each, refit_rows, support
from onnx_amc.granularity import NARROW, most_of, thinnable
from onnx_amc.prune.layers import Layer, find_layers
from onnx_amc.prune.refit import Refitter, Values, read, write
from onnx_amc.prune.sparse import store
from onnx_amc.prune.surgery import cut, finish
from onnx_amc.recover.course import Course, Task
from onnx_amc.run.check import same
from onnx_amc.run.sequential import Sequential


class Thinner(Builder):
    """Builds networks with single weights set to zero, from one calibration pass.

    A plan maps weights' names to how many of their elements stay. Which ones do is found from the original's moments, once for each
    number; what they become is solved in each network anew.
    """

    ratios = (0.5, 0.25, 0.1)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.thinned = {layer.weight.name: layer for layer in thinnable(self.analysis)[0]}
        self._most = {name: most_of(self.analysis, layer, self.settings) for name, layer in self.thinned.items()}
        self._sparse = frozenset(t.values.name for t in self.analysis.model.original.graph.sparse_initializer)
        self._masks: dict[tuple[str, int], np.ndarray] = {}

    def _losing(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.width >= NARROW]

    def prepare(self) -> None:
        """Nothing: each plan chooses its weights anew."""

    def kept(self, counts: np.ndarray) -> dict[str, Any]:
        """How many weights stay, for the layers that lose any."""
        pairs = zip(self._most.items(), counts.tolist(), strict=True)
        return {name: n for (name, most), n in pairs if n < most}

    def masks(self, kept: Kept) -> dict[str, np.ndarray]:
        """By layer which weights stay, bool (groups, outputs, inputs x taps)."""
        return {self.thinned[name].node: self._mask(self.thinned[name], n) for name, n in kept.items()}

    def _mask(self, layer: Layer, count: int) -> np.ndarray:
        key = layer.node, count
        if key not in self._masks:
            groups, outputs, _, _ = layer.weight.index.shape
            w = read(self.analysis, layer.weight).reshape(groups, outputs, -1)
            shares = np.full(groups, count // groups) + (np.arange(groups) < count % groups)
            mask = np.stack([self._chosen(layer, g, w[g], int(n)) for g, n in enumerate(shares)])
            self._masks[key] = mask & (w != 0)  # a pattern may have more room than there are weights
        return self._masks[key]

    def _chosen(self, layer: Layer, group: int, w: np.ndarray, count: int) -> np.ndarray:
        criterion, fitter = self.settings.criterion, self.refitter
        choose = largest(count) if self.settings.pattern is None else self._patterned(layer)
        if criterion == "random":
            return choose(np.random.default_rng([self.settings.seed, count, group]).random(w.shape))
        if criterion == "magnitude" or fitter is None or layer.node not in fitter.moments:
            return choose(np.abs(w))
        if criterion == "wanda":
            return choose(np.abs(w) * np.sqrt(np.maximum(np.diag(fitter.moments[layer.node].second(group)), 0.0)))
        return support(fitter.matrix(layer, group), w, choose, self.settings.ridge)

    def _patterned(self, layer: Layer) -> Choose:
        keep, of = self.settings.pattern or (1, 1)
        inputs, taps = layer.weight.index.shape[2:]
        columns = np.arange(inputs * taps).reshape(inputs // of, of, taps)
        return of_each(keep, columns.swapaxes(1, 2).reshape(-1, of))

    def build(self, kept: Kept, *, correct: bool = True) -> onnx.ModelProto:  # noqa: ARG002  biases are refitted with the rest
        """Return the network with its weights refitted from the original's moments."""
        values: Values = {}
        biases: Values = {}
        for name in kept:
            self._solve(self.thinned[name], self._mask(self.thinned[name], kept[name]), values, biases)
        return cut(self.analysis, {}, values, biases)

    def _solve(self, layer: Layer, mask: np.ndarray, values: Values, biases: Values) -> None:
        fitter = self.refitter
        w = read(self.analysis, layer.weight)
        flat = w.reshape(*mask.shape)
        shift = np.zeros(mask.shape[:2])
        for g, mine in enumerate(mask):
            if fitter is None or layer.node not in fitter.moments:
                flat[g] *= mine
                continue
            v = refit_rows(fitter.matrix(layer, g), flat[g], mine, self.settings.ridge)
            shift[g] = (flat[g] - v) @ fitter.moments[layer.node].mean(g) * layer.affine
            flat[g] = v
        write(self.analysis, values, layer.weight, w)
        if layer.bias is not None:
            write(self.analysis, values, layer.bias, read(self.analysis, layer.bias) + shift.ravel())
        elif layer.can_add_bias and shift.any():
            biases[layer.node] = shift.ravel()

    @cached_property
    def _zeros(self) -> dict[str, tuple[Layer, np.ndarray]]:
        """By weight the layers that have zeros as they come, and where they have none."""
        layers = find_layers(self.analysis)[0]
        read_by = {layer.weight.name: (layer, read(self.analysis, layer.weight) != 0) for layer in layers}
        return {
            name: (layer, alive.reshape(*alive.shape[:2], -1))
            for name, (layer, alive) in read_by.items()
            if not alive.all()
        }

    def _refit_on_itself(self, sequential: Sequential, fitter: Refitter, kept: Kept) -> onnx.ModelProto:  # noqa: ARG002
        still = {layer.node: alive for name, (layer, alive) in self._zeros.items() if name not in kept}
        return cut(self.analysis, {}, *sequential.refine({}, {}, {}, still | self.masks(kept)))

    def task(self, kept: Kept, start: onnx.ModelProto, index: np.ndarray, course: Course) -> Task:
        """What is to be trained; the zeros stay."""
        thinned = frozenset({*self._sparse, *self._zeros, *kept})
        return replace(super().task({}, start, index, course), thinned=thinned)

    def checked(self, kept: Kept, feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Hold the network with sparse weights against the same one with dense weights.

        Raises:
            PlanError: A weight that cannot be thinned so.
            SelfCheckError: They differ.

        """
        for name, count in kept.items():
            self._check(name, count)
        dense = finish(self.analysis, self.build(kept))
        stored = deepcopy(dense)
        store(stored, frozenset({*self._sparse, *kept}))
        return {"masked_equals_cut": same(dense, stored, feed, self.analysis.model.source), "checker": True}

    def _check(self, name: str, count: int) -> None:
        """Refuse what a plan that somebody has written by hand asks of a weight."""
        fix, pattern = "give the plan.json of a run on this model, as it was written", self.settings.pattern
        if name not in self.thinned:
            raise PlanError(f"the elements of {name!r} cannot go one by one", where="plan", fix=fix)
        index = self.thinned[name].weight.index
        if pattern is None:
            return
        keep, of = pattern
        if index.shape[2] % of:
            what = f"weight {name!r} has {index.shape[2]} inputs, which are not a whole number of times {of} as {keep}:{of} asks"
            raise PlanError(what, where="plan", fix=fix)
        if count != index.size * keep // of:
            what = f"{keep}:{of} leaves {index.size * keep // of} elements of {name!r}, but the plan keeps {count}"
            raise PlanError(what, where="plan", fix=fix)

    def deliverable(self, kept: Kept, ready: onnx.ModelProto | None = None) -> onnx.ModelProto:
        """Return the finished model, each of its thinned weights in the form that takes fewer bytes."""
        model = super().deliverable(kept, ready)
        if kept:  # else it is the original, to the byte
            store(model, frozenset({*self._sparse, *kept}))
        return model
