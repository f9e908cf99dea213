"""Sequential refit: layer by layer on what the cut network really computes, towards what the original computes there.

The one-shot refit answers each layer's own loss on the original's inputs; here each layer also makes up for what the layers before
it have lost, and the last one of two that are added for what its partner lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx

from onnx_amc.fit.patches import choose, patches, picked, widened
from onnx_amc.fit.rows import RIDGES, Bounds, Rows, fit
from onnx_amc.fit.sparse import refit_rows
from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.ledger import Keep
from onnx_amc.graph.limits import room
from onnx_amc.graph.proto import names_read
from onnx_amc.prune.layers import WIDEST, Layer
from onnx_amc.prune.refit import Values, read, storable, write
from onnx_amc.prune.surgery import Cut
from onnx_amc.run.capture import batch_of, free_batch
from onnx_amc.run.data import Dataset
from onnx_amc.run.stages import Stages, live_bytes

MEMORY = 3 * 2**30
"""Bytes of activations that are held between two layers, of both networks together, where the machine has room for them."""

GOALS = 2**30
"""Bytes of the original's outputs that are remembered from one plan to the next."""

SMALL = 64
"""Inputs times taps of a convolution group up to which all groups are solved at once."""

FEW = 2_000
"""Rows that a depthwise layer is fitted to: it has as many unknowns per channel as its kernel has taps."""


Answers = Sequence[Mapping[str, np.ndarray]]
Masks = Mapping[str, np.ndarray]
NOTHING: Masks = MappingProxyType({})


@dataclass(frozen=True)
class Effort:
    """What a sequential refit may cost.

    Args:
        samples: That it runs on, at most; as many of them are taken as fit into memory.
        rows: Of each layer's least squares.
        rounds: Times that the target is moved through the activation, see `fit.rows.fit`.
        ridges: Pulls towards the weights of before that are tried, likewise.

    """

    samples: int
    rows: int
    rounds: int = 3
    ridges: tuple[float, ...] = RIDGES


@dataclass(frozen=True)
class _Spot:
    """A layer, what is added to its output, the activation behind, and the seed of the positions looked at."""

    layer: Layer
    partner: str | None
    bounds: Bounds | None
    rng: tuple[int, int]

    @property
    def beside(self) -> list[str]:
        return [] if self.partner is None else [self.partner]


class Sequential:
    """Refits cut networks in the order of their layers.

    Args:
        analysis: Of the original model.
        layers: Its layers, in the order of the graph.
        data: Samples.
        index: Which samples.
        effort: What it may cost.
        seed: Of samples, and of the positions that rows are taken from.
        memory: GB that the run may use; None for what there is.

    """

    def __init__(
        self,
        analysis: Analysis,
        layers: Sequence[Layer],
        data: Dataset,
        index: np.ndarray,
        effort: Effort,
        *,
        seed: int,
        memory: float | None = None,
    ) -> None:
        self.analysis = analysis
        model = analysis.model
        layers = [layer for layer in layers if layer.output in model.shapes]
        held = live_bytes(model.proto, model.shapes, {layer.node for layer in layers})
        self._held = 2 * held
        self._data = data
        self._memory, self._remembered = room(MEMORY, memory), room(GOALS, memory)
        self._index = np.random.default_rng(seed).permutation(index)[: max(1, self._memory // self._held)]
        self._original = deepcopy(model.proto)
        del self._original.graph.value_info[:]
        free_batch(self._original, model)
        self._graph = _Graph(analysis)
        self._spots = {
            layer.node: _Spot(layer, *self._graph.behind(layer), (seed, i)) for i, layer in enumerate(layers)
        }
        self._spend(effort)

    def _spend(self, effort: Effort) -> None:
        self.effort = effort
        chosen = np.sort(self._index[: effort.samples])
        self._samples = len(chosen)
        size = batch_of(self.analysis.model)
        self._batches = [self._data.batch(chosen[at : at + size]) for at in range(0, len(chosen), size)]
        self._goals: dict[str, dict[str, np.ndarray]] = {}

    @property
    def abreast(self) -> int:
        """How many networks can be refitted at a time within the memory."""
        return max(1, self._memory // (self._held * self._samples))

    def lighter(self, effort: Effort) -> Sequential:
        """Return another of these that spends less, on some of the samples."""
        other = copy(self)
        other._spend(effort)  # noqa: SLF001  its own copy
        return other

    def refine(
        self, kept: Mapping[str, Sequence[int]], values: Values, biases: Values, masks: Masks = NOTHING
    ) -> tuple[Values, Values]:
        """Return better weights and biases; arguments and results are those of `surgery.cut`.

        Args:
            kept: The channels that each group keeps.
            values: Contents of initializers so far.
            biases: Of contractions that have none.
            masks: By layer which single weights may differ from zero, bool (groups, outputs, inputs x taps).

        Raises:
            DataError: The network cannot be run in pieces, or not on this many samples at once.

        """
        keep = self.analysis.keeper(kept)
        values, biases = {k: v.copy() for k, v in values.items()}, dict(biases)
        todo = self._graph.changed(self._spots, keep, masks)
        ours = self._stages(name for spot in todo for name in (spot.layer.x, *spot.beside))
        theirs = self._answers()
        student = Cut(self.analysis, kept, values, biases, self._original)
        free_batch(student.model, self.analysis.model)
        for spot in todo:
            layer = spot.layer
            found = ours.until(student.model, layer.node, [layer.x, *spot.beside])
            self._refit(spot, keep, found, self._goal(spot, theirs), values, biases, masks.get(layer.node))
            written = [layer.weight.name, *([layer.bias.name] if layer.bias else [])]
            mine = {name: values[name] for name in written if name in values}
            student.write(mine, {n: biases[n] for n in [layer.node] if n in biases})
        return values, biases

    def _answers(self) -> Iterator[tuple[str, Answers]]:
        """The original's output of every layer, and what is added to it, batch by batch, in the order of the graph.

        It stops at all layers, whichever are asked for: onnxruntime rounds a piece by what it can fuse there.
        """
        names = {spot.layer.node: [spot.layer.output, *spot.beside] for spot in self._spots.values()}
        stages = self._stages(name for several in names.values() for name in several)
        for spot in self._spots.values():
            node = spot.layer.node
            yield node, stages.until(self._original, spot.layer.output, names[node], through=True)

    def _goal(self, spot: _Spot, theirs: Iterator[tuple[str, Answers]]) -> dict[str, np.ndarray]:
        """The original's output, and what is added to it, at the spot's positions."""
        key = spot.layer.node
        if key in self._goals:
            return self._goals[key]
        parts = next(found for node, found in theirs if node == key)
        goal = {name: self._look(spot, [p[name] for p in parts]) for name in parts[0]}
        if sum(v.nbytes for g in [*self._goals.values(), goal] for v in g.values()) <= self._remembered:
            self._goals[key] = goal
        return goal

    def _stages(self, wanted: Iterable[str]) -> Stages:
        return Stages(self._batches, wanted, self.analysis.model.source)

    def _refit(
        self, spot: _Spot, keep: Keep, found: Sequence[Mapping[str, np.ndarray]], goal: Mapping[str, np.ndarray],
        values: Values, biases: Values, mask: np.ndarray | None,
    ) -> None:  # fmt: skip
        layer = spot.layer
        w = read(self.analysis, layer.weight, values)
        groups, outputs, inputs, taps = w.shape
        alive = np.ones((groups, inputs), bool) if layer.inputs is None else keep(layer.inputs)
        lives = np.ones(groups * outputs, bool) if layer.outputs is None else keep(layer.outputs)
        x = self._look(spot, [f[layer.x] for f in found], patched=True)
        y, base = goal[layer.output][lives], None
        if spot.partner is not None:
            base = self._look(spot, [f[spot.partner] for f in found])
            with np.errstate(invalid="ignore"):
                y = y + goal[spot.partner][lives] - base
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return self._leave(layer, values, mask)
        shift = np.zeros((groups, outputs))
        flat = w.reshape(groups, outputs, -1)
        for mine, rows, columns, of_x, of_y in _problems(lives.reshape(groups, -1), np.repeat(alive, taps, axis=1)):
            at = np.ix_(mine, rows, columns)
            size = (len(mine),) if len(mine) > 1 else ()
            problem = Rows(
                x[of_x].reshape(*size, len(columns), -1),
                y[of_y].reshape(*size, len(rows), -1),
                flat[at].reshape(*size, len(rows), len(columns)),
                None if base is None else base[of_y].reshape(*size, len(rows), -1),
                layer.affine,
            )
            fitted, bias = fit(problem, spot.bounds, ridges=self.effort.ridges, rounds=self.effort.rounds)
            if mask is not None:
                fitted, bias = _thinned(problem, fitted, bias, mask[at].reshape(fitted.shape), min(self.effort.ridges))
            flat[at], shift[np.ix_(mine, rows)] = fitted.reshape(len(mine), len(rows), -1), bias.reshape(len(mine), -1)
        gained = shift.ravel()
        if not storable(layer.weight, w, gained):
            return self._leave(layer, values, mask)
        write(self.analysis, values, layer.weight, w)
        if layer.bias is not None:
            bias = read(self.analysis, layer.bias, values)
            bias[lives] = gained[lives]
            write(self.analysis, values, layer.bias, bias)
        elif layer.can_add_bias:
            biases[layer.node] = gained[lives]
        return None

    def _leave(self, layer: Layer, values: Values, mask: np.ndarray | None) -> None:
        """Keep the weights of before, those of their support: where half precision overflows there is nothing to fit to."""
        w = read(self.analysis, layer.weight, values)
        write(self.analysis, values, layer.weight, w if mask is None else w * mask.reshape(w.shape))

    def _look(self, spot: _Spot, parts: Sequence[np.ndarray], *, patched: bool = False) -> np.ndarray:
        """Values of a tensor at the spot's positions, as columns; of the layer's input what its kernel sees there."""
        layer = spot.layer
        most = FEW if layer.whole else WIDEST if layer.width > WIDEST else self.effort.rows
        rows = min(self.effort.rows, most)
        rng, columns = np.random.default_rng(spot.rng), []
        for part in parts:
            if layer.channels_last:
                places = part.size // part.shape[-1]
                share = -(-rows // len(self._batches))
                at = choose((places,), min(share, places), rng)[:, 0]
                columns.append(part.reshape(-1, part.shape[-1])[at].T)
                continue
            values = part if patched else np.moveaxis(part, layer.output_axis, 1)
            space = layer.window.outputs(part.shape[2:]) if patched else values.shape[2:]
            positions = choose(space, -(-rows // self._samples), rng)
            if patched:
                columns.append(patches(part, layer.window, positions))
            else:
                seen = picked(values, positions) if positions.shape[1] else values[:, :, None]
                columns.append(np.moveaxis(seen, 0, 1).reshape(values.shape[1], -1))
        return widened(np.concatenate(columns, axis=1))


def _thinned(
    rows: Rows, w: np.ndarray, bias: np.ndarray, mask: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """The weights within their support, and the bias, that come closest to those of a dense fit.

    What the dense fit has changed is what is brought into the support, where the weights of before lie already. The fewer rows
    there are for an input, the less is made of what inputs seem to have in common.
    """
    several = (rows.x, rows.prior, w, bias, mask)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for x, prior, dense, shift, mine in [several] if w.ndim == 2 else zip(*several, strict=True):
        if len(x) > WIDEST:
            found.append((dense * mine, shift))
            continue
        mean = x.mean(axis=1, keepdims=True, dtype=np.float64) * rows.affine
        z = x - mean.astype(x.dtype)
        before = prior * mine
        pull = max(ridge, len(x) / x.shape[1])
        v = before + refit_rows((z @ z.T).astype(np.float64) / x.shape[1], dense - before, mine, pull)
        found.append((v, shift + ((dense - v) @ mean)[:, 0]))
    if w.ndim == 2:
        return found[0]
    return np.stack([v for v, _ in found]), np.stack([b for _, b in found])


def _problems(
    lives: np.ndarray, alive: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, slice, slice]]:
    """A layer's least-squares problems, one per convolution group: all at once where each has one and the same small shape.

    Args:
        lives: bool (groups, outputs), what is left of the outputs.
        alive: bool (groups, columns), what is left of the inputs times taps.

    Yields:
        Groups, outputs and columns of the problem, and where they lie in what is left of all outputs and columns.

    """
    whole = np.flatnonzero(lives.any(axis=1) & alive.any(axis=1))
    left = lives.any(axis=1).sum() == alive.any(axis=1).sum() == len(whole)
    if len(whole) > 1 and left and alive.shape[1] <= SMALL and lives[whole].all() and alive[whole].all():
        yield whole, np.arange(lives.shape[1]), np.arange(alive.shape[1]), slice(None), slice(None)
        return
    of_x, of_y = (np.cumsum([0, *part.sum(axis=1)]) for part in (alive, lives))
    for g in whole.tolist():
        rows, columns = np.flatnonzero(lives[g]), np.flatnonzero(alive[g])
        yield np.array([g]), rows, columns, slice(of_x[g], of_x[g + 1]), slice(of_y[g], of_y[g + 1])


def reached(analysis: Analysis, layers: Sequence[Layer], own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of some changes, bool (changes,) by the layers that they begin at, those that each layer is refitted for, if any."""
    graph = _Graph(analysis)
    known = [layer for layer in layers if layer.output in analysis.model.shapes]
    return graph.reached({layer.node: graph.behind(layer)[0] for layer in known}, own)


class _Graph:
    """Looks up what lies around a layer."""

    def __init__(self, analysis: Analysis) -> None:
        self.model = analysis.model
        self.nodes = list(self.model.proto.graph.node)
        self.producer = {o: i for i, n in enumerate(self.nodes) for o in n.output if o}
        self.consumers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in names_read(node):
                self.consumers.setdefault(name, []).append(i)
        self.outputs = {o.name for o in self.model.proto.graph.output}

    def changed(self, spots: Mapping[str, _Spot], keep: Keep, thinned: Collection[str]) -> list[_Spot]:
        """The layers that lose weights, read cut channels or what lies behind, or whose output is added to such a thing."""
        cut = [n for n, s in spots.items() if s.layer.inputs is not None and not keep(s.layer.inputs).all()]
        partners, own = {n: s.partner for n, s in spots.items()}, dict.fromkeys({*thinned, *cut}, np.ones(1, bool))
        return [spots[node] for node in self.reached(partners, own)]

    def reached(self, partners: Mapping[str, str | None], own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of changes, bool (changes,) by the nodes that they begin at, those that each layer makes up for; in graph order.

        The layers are named with what is added to the output of each.
        """
        touched: dict[str, np.ndarray] = {}
        found: dict[str, np.ndarray] = {}
        for node in self.nodes:
            key = node.output[0]
            read = {*names_read(node), partners.get(key)}
            parts = [touched[name] for name in touched.keys() & read] + ([own[key]] if key in own else [])
            if parts and (mine := np.any(parts, axis=0)).any():
                touched |= dict.fromkeys(set(node.output) - {""}, mine)
                found |= {key: mine} if key in partners else {}
        return found

    def behind(self, layer: Layer) -> tuple[str | None, Bounds | None]:
        """What is added to a layer's output, if that is there before it, and the activation that follows, if one alone does."""
        partner, tensor = None, layer.output
        users = self.consumers.get(tensor, [])
        if len(users) == 1 and self.nodes[users[0]].op_type == "Add" and tensor not in self.outputs:
            other = next((n for n in self.nodes[users[0]].input if n != tensor), tensor)
            shapes = self.model.shapes
            early = self.producer.get(other, len(self.nodes)) < self.producer[layer.node]
            if not early or shapes.get(other) != shapes[tensor]:
                return None, None
            partner, tensor = other, self.nodes[users[0]].output[0]
        users = self.consumers.get(tensor, [])
        found = {self._bounds(self.nodes[i]) for i in users}
        return partner, found.pop() if len(found) == 1 and tensor not in self.outputs else None

    def _bounds(self, node: onnx.NodeProto) -> Bounds | None:
        if node.op_type == "Relu":
            return Bounds(0.0)
        found = self.model.bounds(node) if node.op_type == "Clip" else None
        return None if found is None else Bounds(*map(float, found))
