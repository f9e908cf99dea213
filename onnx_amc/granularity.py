"""What one step of the walk decides: the channels of a group, or the single weights of a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from onnx_amc.config import Budget, Settings
from onnx_amc.errors import BudgetError, OptionError
from onnx_amc.graph import cost, light
from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.load import FLOATS, MOVES, WEIGHTED
from onnx_amc.graph.proto import all_read, defaults
from onnx_amc.inspection import facts_of, matching, protected, shape_facts
from onnx_amc.prune.layers import Layer, find_layers
from onnx_amc.prune.sparse import SPARSE_IR, bytes_left, bytes_now, can_be_sparse, elements, in_nodes, nonzeros
from onnx_amc.prune.surgery import cut, finish
from onnx_amc.run.blocks import USUAL, block_of
from onnx_amc.run.gains import Gains, by_channels, by_weights
from onnx_amc.run.table import LatencyTable
from onnx_amc.search.space import Prices, Space, levels_of, upward
from onnx_amc.search.state import LayerFacts

GRAIN = 1.15
"""Ratio of two neighbouring densities of a layer. They are counted from what uniform pruning to the budget takes."""

NARROW = 12
"""Inputs of an output below which single weights stay: a 3 x 3 depthwise kernel."""

TOLD = 0.01
"""Share of all weights below which one is not named as being in the way."""

UNITS = {"flops": "MACs", "params": "parameters", "size": "bytes", "latency": "latency"}

Clock = Callable[[Sequence[np.ndarray]], LatencyTable]
"""Levels of the groups -> what plans take in time."""


@dataclass(frozen=True)
class Units:
    """The steps of a walk over a network.

    Args:
        names: Of groups, or of weights.
        levels: For each how many channels or weights it may keep, ascending.
        facts: What the agent is told of each.
        prices: By kind of budget, what plans cost.
        wholes: By kind of budget, what the original costs.
        blocked: What else cannot be cut, and why.
        macs: What a plan costs in multiply-accumulates.
        doubts: Why the cut of a unit is not exact; None where it is.
        parts: What a unit consists of.
        remedy: What lets a plan be smaller.

    """

    names: tuple[str, ...]
    levels: tuple[np.ndarray, ...]
    facts: tuple[LayerFacts, ...]
    prices: Mapping[str, Prices]
    wholes: Mapping[str, int]
    blocked: tuple[str, ...]
    macs: Callable[[np.ndarray], int]
    doubts: tuple[str | None, ...] = ()
    parts: str = "channels"
    remedy: str = "lower --min-keep, take a finer --round-to, or --keep less"

    @property
    def sizes(self) -> np.ndarray:
        """What each has when nothing is cut, int."""
        return np.array([lv[-1] for lv in self.levels], dtype=np.int64)

    def shares(self, counts: np.ndarray) -> dict[str, float]:
        """What a plan costs of each kind, as shares of the original."""
        return {
            kind: float(prices(counts[None])[0] / max(self.wholes[kind], 1)) for kind, prices in self.prices.items()
        }

    def space(self, settings: Settings) -> Space:
        """Levels and budget.

        Raises:
            BudgetError: No plan can meet it.

        """
        budget = settings.budget
        kind = "flops" if budget.kind == "channels" else budget.kind
        ratio = 1.0 if budget.kind == "channels" else budget.ratio
        limit = int(np.floor(ratio * self.wholes[kind] + 1e-9))
        if (
            kind == "params" and ratio == 1
        ):  # priced dearer: what layers share for each of them, what is zero as if it were not
            limit = max(limit, int(self.prices[kind](self.sizes[None])[0]))
        space = Space(self.names, self.levels, self.prices[kind], limit, UNITS[kind], self.wholes[kind])
        if kind == "size":
            self._check_sparse(space, budget)
        space.check(ratio, where=budget.option, blocked=self.blocked, remedy=self.remedy)
        if not self.names and ratio < 1:
            raise BudgetError(
                f"nothing can be cut, so the smallest is 1.0000 of the {UNITS[kind]}. In the way: "
                + ("; ".join(self.blocked[:3]) or "no Conv, Gemm or MatMul feeds another"),
                where=budget.option,
                fix="see `onnx-amc inspect` for what fixes each layer",
            )
        if not self.wholes[kind] and ratio < 1:
            raise BudgetError(
                f"the model has no {UNITS[kind]}, so there is no share of them to keep",
                where=budget.option,
                fix=f"ask for a share of something else: {', '.join(f'--{k}' for k in UNITS if k != kind)}",
            )
        return space

    def _check_sparse(self, space: Space, budget: Budget) -> None:
        """Refuse what a file of sparse weights cannot be brought to by cutting channels: these are written out then."""
        whole = self.wholes["size"]
        if self.parts == "channels" and space.price(space.full) > whole and not space.feasible(space.smallest):
            reachable = upward(space.ratio(space.smallest))
            raise BudgetError(
                f"{budget.ratio:.4g} of the bytes cannot be reached by cutting channels, the smallest is {reachable:.4f}: the file "
                "holds sparse weights, and what is cut of them is stored dense",
                where=budget.option,
                fix="take --granularity weight, which keeps them sparse",
            )

    def described(self, counts: np.ndarray) -> list[dict[str, Any]]:
        """What a plan does, for the record."""
        doubts = self.doubts or (None,) * len(self.names)
        return [
            {"name": name, self.parts: int(whole), "kept": int(n)} | ({} if doubt is None else {"approximate": doubt})
            for name, whole, n, doubt in zip(self.names, self.sizes, counts, doubts, strict=True)
        ]


def channels_of(analysis: Analysis, settings: Settings, clock: Clock | None = None) -> Units:
    """The groups of channels; plans have a price in time where there is a clock."""
    groups, full = analysis.groups, analysis.full
    whole = protected(analysis, settings.keep)
    # Of a device elsewhere nothing is known.
    block = USUAL if settings.latency_command else block_of(settings.provider)
    levels = tuple(
        np.array([g.channels]) if keep else levels_of(g.channels, settings.round_to, settings.least, g.lanes, block)
        for g, keep in zip(groups, whole, strict=True)
    )
    macs, original = cost.macs(analysis), analysis.model.original

    @cache
    def size() -> cost.Price:  # where it is asked for: it takes a copy of the network
        return cost.size(analysis, light.size(finish(analysis, cut(analysis, {}))))

    params = cost.params(analysis).many

    @cache
    def gains() -> Gains:  # likewise
        return by_channels(analysis, refit=settings.refit, sequential=settings.sequential)

    @cache
    def apart() -> int:  # likewise
        return cost.apart(analysis, cut=True, refit=settings.refit)[1]

    prices: dict[str, Prices] = {
        "flops": macs.many,
        "params": lambda plans: params(plans) + gains().elements(plans),
        "size": lambda plans: size().many(plans) + gains().bytes(plans) + apart() * (plans < full).any(axis=1),
    }
    wholes = {"flops": macs(full), "params": elements(original, in_nodes(original, analysis))}
    wholes["size"] = analysis.model.bytes
    if clock is not None:
        prices["latency"] = clock(levels).nanoseconds
        wholes["latency"] = int(prices["latency"](full[None])[0])
    return Units(
        tuple(g.name for g in groups),
        levels,
        tuple(facts_of(analysis)),
        prices,
        wholes,
        tuple(
            [f"{g.name} (--keep)" for g, keep in zip(groups, whole, strict=True) if keep]
            + [f"{g.name} ({g.reason})" for g in analysis.fixed]
        ),
        macs,
        tuple(g.doubt for g in groups),
    )


def weights_of(analysis: Analysis, settings: Settings) -> Units:
    """The layers whose weights may be zero one by one.

    Raises:
        OptionError: A budget that zeros do not serve.

    """
    kind = settings.budget.kind
    if kind not in {"params", "size"}:
        option = "--" if settings.max_drop is None else "--reduce "
        why = "onnxruntime multiplies by zeros too, so they save parameters and bytes only"
        raise OptionError(
            f"{option}{kind} with --granularity weight: {why}",
            where="--granularity",
            fix=f"take {option}params or {option}size, or --granularity channel",
        )
    layers, refused = thinnable(analysis)
    names = tuple(layer.weight.name for layer in layers)
    tops = np.array([most_of(analysis, layer, settings) for layer in layers], dtype=np.int64)
    gains = by_weights(analysis, layers, tops, refit=settings.refit, sequential=settings.sequential)
    prices, wholes = _thinned_prices(
        analysis, names, tops, gains, cost.apart(analysis, cut=False, refit=settings.refit)
    )
    kept = np.array(untouched(analysis, settings, layers), dtype=bool)

    def even(density: float) -> int:
        return int(prices[kind](np.where(kept, tops, density * tops).astype(np.int64)[None])[0])

    uniform = _share(even, settings.budget.ratio * wholes[kind])
    levels = tuple(
        np.array([top]) if keep else _densities(int(top), uniform, layer, settings)
        for top, keep, layer in zip(tops, kept, layers, strict=True)
    )
    blocked = [f"{analysis.names.get(node, node)} ({why})" for node, why in refused.items()]
    blocked = [*_whole(layers, kept.tolist(), settings), *blocked, *_elsewhere(analysis, names)]
    blocked = [*(_dense(analysis, names) if kind == "size" else []), *blocked]
    if not (names or blocked):
        blocked = ["no Conv, Gemm or MatMul of the main graph has an initializer for a weight"]
    facts = tuple(shape_facts(analysis, layer.node, layer.x, layer.weight.name) for layer in layers)
    macs = cost.macs(analysis)(analysis.full)
    remedy = f"{'lower --min-keep' if settings.pattern is None else 'take another --pattern'}, or --keep less"
    return Units(names, levels, facts, prices, wholes, tuple(blocked), lambda _: macs, parts="weights", remedy=remedy)


def most_of(analysis: Analysis, layer: Layer, settings: Settings) -> int:
    """How many weights a layer has to lose: those that are not zero; with a pattern all, for it counts by place."""
    return layer.weight.index.size if settings.pattern is not None else _live(analysis, layer.weight.name)


def _dense(analysis: Analysis, names: Sequence[str]) -> list[str]:
    """Why weights cannot be stored sparse."""
    original = analysis.model.original
    if original.ir_version < SPARSE_IR:
        return [f"the file's format (version {original.ir_version}; sparse weights come with {SPARSE_IR})"]
    return [f"{n} (it is an input too, and stays dense)" for n in names if not can_be_sparse(original, n)]


def _whole(layers: Sequence[Layer], kept: Sequence[bool], settings: Settings) -> list[str]:
    """Why weights that could be thinned stay whole."""
    found = [f"{x.weight.name} (--keep)" for x, keep in zip(layers, kept, strict=True) if keep]
    if settings.pattern is None:
        return found
    keep, of = settings.pattern
    odd = [x for x in layers if x.weight.index.shape[2] % of]
    return [
        f"--pattern, which leaves {keep} of {of}",
        *found,
        *(f"{x.weight.name} (its {x.weight.index.shape[2]} inputs are not a whole number of times {of})" for x in odd),
    ]


def _elsewhere(analysis: Analysis, names: Sequence[str]) -> list[str]:
    """Weights of other operators than those that can be thinned, the largest first, as far as they are a part worth telling."""
    model, told = analysis.model, WEIGHTED | MOVES
    sizes = {n: int(np.prod(t.dims)) for n, t in model.weights.items() if t.data_type in FLOATS}
    readers = {n: sorted({node.op_type for node in model.consumers.get(n, [])}) for n in sizes if n not in names}
    others = [n for n, ops in readers.items() if ops and told.isdisjoint(ops) and sizes[n] > TOLD * sum(sizes.values())]
    return [f"{n} (weights of {', '.join(readers[n])} stay)" for n in sorted(others, key=lambda n: -sizes[n])]


def _live(analysis: Analysis, name: str) -> int:
    return int(np.count_nonzero(analysis.model.value(name)))


def _thinned_prices(
    analysis: Analysis, names: Sequence[str], tops: np.ndarray, gains: Gains, apart: tuple[int, int]
) -> tuple[dict[str, Prices], dict[str, int]]:
    """What plans cost in weights that are not zero and in bytes, and what the original does.

    Args:
        analysis: Of the network.
        names: Weights that may be thinned.
        tops: int (weights,), what each keeps where it is left as it is.
        gains: Biases that come with that.
        apart: Elements and bytes of those that are stored once until they are refitted.

    """
    original, weights = analysis.model.original, analysis.model.weights
    live = np.array([_live(analysis, n) for n in names], dtype=np.int64)
    beside = in_nodes(original, analysis)
    wholes = {"params": nonzeros(original, beside), "size": analysis.model.bytes}
    tensors = {n: weights[n] for n in names}
    widths = np.array([light.width_of(t.data_type) for t in tensors.values()], dtype=np.int64)
    sizes = np.array([np.prod(t.dims) for t in tensors.values()], dtype=np.int64)
    now, sparse = bytes_now(original, tensors), np.array([can_be_sparse(original, n) for n in names], dtype=bool)

    def stored(plans: np.ndarray) -> np.ndarray:
        smaller = np.minimum(bytes_left(np.minimum(plans, live), sizes, widths), now)
        return np.asarray(np.where(sparse & (plans < tops), smaller, now).sum(axis=1))

    stay = all_read(original.graph) | defaults(original)
    unread = [t for t in original.graph.initializer if t.name not in stay and t.data_type in FLOATS]  # a cut drops them
    # What is zero there may be so no longer when it is trained: biases begin so.
    rest = {"params": elements(original, beside) - int(sizes.sum()), "size": wholes["size"] - int(now.sum())}
    for tensor in unread:
        rest["params"] -= int(np.prod(tensor.dims))
        rest["size"] -= light.data_length(tensor)
    more = dict(zip(("params", "size"), apart, strict=True))

    def beside_them(kind: str, plans: np.ndarray) -> np.ndarray:
        """What does not go, and what is stored for each of several once something is refitted."""
        return np.asarray(rest[kind] + more[kind] * (plans < tops).any(axis=1))

    prices: dict[str, Prices] = {
        "params": lambda plans: (
            beside_them("params", plans) + np.minimum(plans, live).sum(axis=1) + gains.elements(plans)
        ),
        "size": lambda plans: beside_them("size", plans) + stored(plans) + gains.bytes(plans),
    }
    return prices, wholes


def thinnable(analysis: Analysis) -> tuple[list[Layer], dict[str, str]]:
    """The layers whose single weights may go, and why those of the others may not."""
    layers, refused = find_layers(analysis)
    why = {layer.node: _unthinned(analysis, layer) for layer in layers}
    refused = refused | {node: reason for node, reason in why.items() if reason}
    return [layer for layer in layers if layer.node not in refused], refused


def _unthinned(analysis: Analysis, layer: Layer) -> str:
    """Why a layer's single weights stay; nothing where they may go."""
    if layer.width < NARROW:
        return f"its outputs have {layer.width} weights each"
    if layer.weight.name in analysis.model.lifted:
        return "its weights are a constant in the graph, where others are initializers"
    return "" if analysis.model.value(layer.weight.name).any() else "its weights are zero"


def _densities(top: int, uniform: float, layer: Layer, settings: Settings) -> np.ndarray:
    """Ascending numbers of weights that a layer may keep; with a pattern N:M that one, and all.

    The least stands beside the grid, which is counted from the budget: what can be reached does not depend on what is asked for.
    """
    if settings.pattern is not None:
        keep, of = settings.pattern
        return np.array([top * keep // of, top] if layer.weight.index.shape[2] % of == 0 else [top])
    least = max(1, int(np.ceil(settings.least * top - 1e-9)))
    lowest, highest = np.log(least / top / uniform) / np.log(GRAIN), np.log(1 / uniform) / np.log(GRAIN)
    steps = np.arange(np.ceil(lowest - 1e-9), np.floor(highest - 1e-9) + 1)
    found = np.floor(top * uniform * GRAIN**steps).astype(np.int64)
    return np.unique([least, *found[found > least].tolist(), top])


def _share(price: Callable[[float], int], limit: float) -> float:
    """The largest density that meets a limit when all layers that may be thinned have it."""
    low, high = 1e-3, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if price(middle) <= limit else (low, middle)
    return low


def untouched(analysis: Analysis, settings: Settings, layers: Sequence[Layer]) -> list[bool]:
    """Whether each layer is protected by --keep."""
    nodes = [analysis.nodes[layer.node] for layer in layers]
    labels = [{x.weight.name, n.name, n.op_type, x.node} - {""} for x, n in zip(layers, nodes, strict=True)]
    return matching(analysis, settings.keep, labels)


def units_of(analysis: Analysis, settings: Settings, clock: Clock | None = None) -> Units:
    """What the walk of a run decides, step by step.

    Args:
        analysis: Of the network.
        settings: Of the run.
        clock: Makes a table of latencies for these levels; None where time does not count.

    """
    if settings.granularity == "weight":
        return weights_of(analysis, settings)
    return channels_of(analysis, settings, clock)
