"""Sequential refit: layer by layer on what the cut network really computes, towards what the original computes there.

The one-shot refit answers each layer's own loss on the original's inputs; here each layer also makes up for what the layers before
it have lost, and the last one of two that are added for what its partner lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx

from onnx_amc.fit.patches import choose, patches
from onnx_amc.fit.rows import Bounds, Rows, fit
from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.ledger import Keep
from onnx_amc.graph.proto import attributes, names_read
from onnx_amc.prune.layers import Layer
from onnx_amc.prune.refit import Values, read, write
from onnx_amc.prune.surgery import cut
from onnx_amc.run.capture import free_batch
from onnx_amc.run.data import Dataset
from onnx_amc.run.stages import Stages, live_bytes

MEMORY = 3 * 2**30
"""Bytes of activations that are held between two layers, of both networks together."""

BATCH = 100

WIDEST = 6_000
"""Inputs above which a layer is fitted to no more than so many rows, by the dual."""

Progress = Callable[[int, int], None]


class Sequential:
    """Refits a cut network in the order of its layers.

    Args:
        analysis: Of the original model.
        layers: Its layers, in the order of the graph.
        data: Samples.
        index: Which samples; as many of them are taken as fit into memory.
        rows: Rows of each layer's least squares.
        seed: Of the positions that rows are taken from.

    """

    def __init__(
        self, analysis: Analysis, layers: Sequence[Layer], data: Dataset, index: np.ndarray, *, rows: int, seed: int
    ) -> None:
        self.analysis, self.rows, self.seed = analysis, rows, seed
        model = analysis.model
        self.layers = [layer for layer in layers if layer.output in model.shapes]
        held = live_bytes(model.proto, model.shapes, {layer.node for layer in self.layers})
        count = int(np.clip(MEMORY // (2 * held), 1, len(index)))
        chosen = np.sort(np.random.default_rng(seed).permutation(index)[:count])
        self._batches = [data.batch(chosen[at : at + BATCH]) for at in range(0, count, BATCH)]
        self._original = onnx.ModelProto()
        self._original.CopyFrom(model.proto)
        del self._original.graph.value_info[:]
        free_batch(self._original, model)
        self._graph = _Graph(self._original, analysis)

    def refine(
        self, kept: Mapping[str, Sequence[int]], values: Values, biases: Values,
        progress: Progress = lambda _done, _total: None,
    ) -> tuple[Values, Values]:  # fmt: skip
        """Return better weights and biases; arguments and results are those of `surgery.cut`.

        Raises:
            DataError: The network cannot be run in pieces, or not on this many samples at once.

        """
        keep = self.analysis.keeper(kept)
        values, biases = {k: v.copy() for k, v in values.items()}, dict(biases)
        todo = self._graph.changed(self.layers, keep)
        around = [self._graph.behind(layer.output) for layer in todo]
        partners = [[] if partner is None else [partner] for partner, _ in around]
        theirs = self._stages(name for lay, more in zip(todo, partners, strict=True) for name in (lay.output, *more))
        ours = self._stages(name for lay, more in zip(todo, partners, strict=True) for name in (lay.x, *more))
        rng = np.random.default_rng(self.seed)
        for done, (layer, added, (partner, bounds)) in enumerate(zip(todo, partners, around, strict=True), start=1):
            proto = free_batch(cut(self.analysis, kept, values, biases, self._original), self.analysis.model)
            found = ours.until(proto, layer.node, [layer.x, *added])
            goal = theirs.until(self._original, layer.output, [layer.output, *added], through=True)
            self._refit(layer, keep, found, goal, partner, bounds, values, biases, rng)
            progress(done, len(todo))
        return values, biases

    def _stages(self, wanted: Iterable[str]) -> Stages:
        return Stages(self._batches, wanted, self.analysis.model.source)

    def _refit(
        self, layer: Layer, keep: Keep, found: Mapping[str, np.ndarray], goal: Mapping[str, np.ndarray],
        partner: str | None, bounds: Bounds | None, values: Values, biases: Values, rng: np.random.Generator,
    ) -> None:  # fmt: skip
        w = read(self.analysis, layer.weight, values)
        groups, outputs, inputs, taps = w.shape
        alive = np.ones((groups, inputs), bool) if layer.inputs is None else keep(layer.inputs)
        lives = np.ones(groups * outputs, bool) if layer.outputs is None else keep(layer.outputs)
        x, look = self._rows(layer, found[layer.x], goal[layer.output], int(alive[0].sum()) * taps, rng)
        y, base = look(goal[layer.output])[lives], None
        if partner is not None:
            base = look(found[partner])
            y = y + look(goal[partner])[lives] - base
        shift = np.zeros(groups * outputs)
        at, to = np.cumsum([0, *alive.sum(axis=1) * taps]), np.cumsum([0, *lives.reshape(groups, -1).sum(axis=1)])
        for g in range(groups):
            columns, rows = np.repeat(alive[g], taps), lives.reshape(groups, -1)[g]
            if not columns.any() or not rows.any():
                continue
            flat = w[g].reshape(outputs, -1)
            mine = slice(to[g], to[g + 1])
            problem = Rows(
                x[at[g] : at[g + 1]], y[mine], flat[np.ix_(rows, columns)], None if base is None else base[mine],
                layer.affine,
            )  # fmt: skip
            flat[np.ix_(rows, columns)], shift[np.flatnonzero(rows) + g * outputs] = fit(problem, bounds)
        write(self.analysis, values, layer.weight, w)
        if layer.bias is not None:
            bias = read(self.analysis, layer.bias, values)
            bias[lives] = shift[lives]
            write(self.analysis, values, layer.bias, bias)
        elif layer.can_add_bias:
            biases[layer.node] = shift[lives]

    def _rows(
        self, layer: Layer, x: np.ndarray, y: np.ndarray, width: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """The inputs at some positions as columns, and what takes an output's values there."""
        rows = self.rows if width <= WIDEST else min(self.rows, WIDEST)
        if layer.channels_last:
            at = choose((y.size // y.shape[-1],), rows, rng)[:, 0]
            return _wide(x.reshape(-1, x.shape[-1])[at].T), lambda v: _wide(v.reshape(-1, v.shape[-1])[at].T)
        positions = choose(y.shape[2:], -(-rows // len(y)), rng)
        there = (slice(None), slice(None), *positions.T)
        return _wide(patches(x, layer.window, positions)), lambda v: _wide(
            np.moveaxis(v[there], 0, 1).reshape(v.shape[1], -1)
        )


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32, copy=False) if values.dtype == np.float16 else values


class _Graph:
    """Looks up what lies around a layer."""

    def __init__(self, proto: onnx.ModelProto, analysis: Analysis) -> None:
        self.analysis = analysis
        self.nodes = list(proto.graph.node)
        self.producer = {o: i for i, n in enumerate(self.nodes) for o in n.output if o}
        self.consumers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in names_read(node):
                self.consumers.setdefault(name, []).append(i)
        self.outputs = {o.name for o in proto.graph.output}

    def changed(self, layers: Sequence[Layer], keep: Keep) -> list[Layer]:
        """The layers that read cut channels, or anything behind such a layer."""
        by_node = {layer.node: layer for layer in layers}
        touched: set[str] = set()
        found: list[Layer] = []
        for node in self.nodes:
            layer = by_node.get(node.output[0])
            reads_cut = layer is not None and layer.inputs is not None and not keep(layer.inputs).all()
            if reads_cut or not touched.isdisjoint(names_read(node)):
                touched |= set(node.output) - {""}
                found += [] if layer is None else [layer]
        return found

    def behind(self, tensor: str) -> tuple[str | None, Bounds | None]:
        """What is added to a tensor, if that is there before it, and the activation that follows, if one alone does."""
        partner = None
        users = self.consumers.get(tensor, [])
        if len(users) == 1 and self.nodes[users[0]].op_type == "Add" and tensor not in self.outputs:
            other = next((n for n in self.nodes[users[0]].input if n != tensor), tensor)
            shapes = self.analysis.model.shapes
            early = self.producer.get(other, len(self.nodes)) < self.producer[tensor]
            if not early or shapes.get(other) != shapes[tensor]:
                return None, None
            partner, tensor = other, self.nodes[users[0]].output[0]
        users = self.consumers.get(tensor, [])
        found = {self._bounds(self.nodes[i]) for i in users}
        return partner, found.pop() if len(found) == 1 and tensor not in self.outputs else None

    def _bounds(self, node: onnx.NodeProto) -> Bounds | None:
        if node.op_type == "Relu":
            return Bounds(0.0)
        if node.op_type != "Clip":
            return None
        attrs, model = attributes(node), self.analysis.model
        given = [node.input[i] if i < len(node.input) else "" for i in (1, 2)]
        if any(n and n not in model.weights for n in given):
            return None
        low, high = (
            float(model.value(n)) if n else float(attrs.get(key, default))  # type: ignore[arg-type]
            for n, key, default in zip(given, ("min", "max"), (-np.inf, np.inf), strict=True)
        )
        return Bounds(low, high)
