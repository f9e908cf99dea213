"""From a few measured plans to a table that predicts all others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx

from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.proto import attributes, key_of
from onnx_amc.run.kernels import Kernel
from onnx_amc.run.table import LatencyTable, Work

BLOCKS = ((1,), (8,), (16,), (1, 8, 32), (1, 16, 64))
"""To which multiples axis lengths are rounded up, each a candidate: a vector of AVX2 holds 8 floats, one of AVX-512 holds 16, and
the kernels take up to 4 of them at a time."""

RIDGE, APART = 0.1, 3.0
"""How firmly what is learnt from whole networks is held down, relative to one measurement, there being more weights than plans: the
weights of all parts of a kind, and what the parts of one size take more."""

DOUBTS, USUAL = 4, 1.5
"""How often whole networks are fitted, each time with less belief in what was far off, and how far is usual, in median errors."""

ANCHORED = 10.0
"""How much more the whole network's time counts than another plan's: all others are in relation to it."""

FOLDS = 5


class Probe(NamedTuple):
    """One measurement of one plan.

    Args:
        counts: What each group keeps.
        ratio: Its time in relation to the whole network's.
        milliseconds: The whole network's time in the same minute.
        reference: Microseconds of all kernels of the whole network in the same minute; 0 where they cannot be timed.
        kernels: What ran, in this order; empty where kernels cannot be timed.

    """

    counts: tuple[int, ...]
    ratio: float
    milliseconds: float
    reference: float = 0.0
    kernels: tuple[Kernel, ...] = ()


def learn(analysis: Analysis, probes: Sequence[Probe]) -> LatencyTable:
    """Fit a table to measured plans.

    From the times of kernels where they were profiled, or from those of whole networks, with every rounding of `BLOCKS`: the
    way that predicts held-out plans best, in five-fold cross-validation over plans.

    Args:
        analysis: Of the whole network.
        probes: Measurements; a plan may come several times, and the whole network is among them.

    """
    ways: list[_Way] = [_Networks(analysis, probes)]
    anchors = common_anchors(analysis, probes)
    if anchors:
        ways.insert(0, _Kernels(analysis, probes, anchors))
    found = [(way, blocks, way.held_out(blocks)) for way in ways for blocks in BLOCKS]
    way, blocks, errors = min(found, key=lambda f: float(f[2].sum()))
    table = way.fit(blocks, np.ones(len(probes), dtype=bool))
    if not len(errors):
        return table
    return replace(table, error=float(np.median(errors)), worst=float(errors.max()))


# ---- which kernel computes what --------------------------------------------------------------------------------------


class Anchors:
    """Finds the tensors that kernels compute: onnxruntime names its kernels after nodes and tensors of the original."""

    def __init__(self, analysis: Analysis) -> None:
        nodes = analysis.model.proto.graph.node
        self._known = {n.name: key_of(n) for n in nodes if n.name} | {o: o for n in nodes for o in n.output if o}

    def find(self, kernel: str) -> str | None:
        """Return the tensor: `x`, `x_nchwc`, `fused x` and `x/MatMulAddFusion` compute x; None for what was inserted."""
        name = kernel.removeprefix("fused ").removesuffix("_nchwc")
        ends = [len(name), *(i for i in range(len(name) - 1, 0, -1) if name[i] in "/_ ")]
        return next((self._known[name[:end]] for end in ends if name[:end] in self._known), None)

    def grouped(self, kernels: Iterable[Kernel], allowed: frozenset[str] | None = None) -> dict[str, list[Kernel]]:
        """Kernels by the tensor that they compute; what computes none goes with the next, an output reordered with the last.

        Args:
            kernels: In the order in which they ran.
            allowed: The tensors to sort by; None takes all.

        """
        found: dict[str, list[Kernel]] = {}
        waiting: list[Kernel] = []
        last: list[Kernel] = []
        for kernel in kernels:
            anchor = self.find(kernel.name)
            if anchor is not None and (allowed is None or anchor in allowed):
                last = found.setdefault(anchor, [])
                last += [*waiting, kernel]
                waiting = []
            elif kernel.op == "ReorderOutput" and found:
                last.append(kernel)
            else:
                waiting.append(kernel)
        last += waiting
        return found


def common_anchors(analysis: Analysis, probes: Sequence[Probe]) -> dict[str, tuple[str, ...]]:
    """The tensors that have kernels of their own in every probe, with the operators of these in the largest.

    Empty where a probe was not profiled.
    """
    anchors = Anchors(analysis)
    shared = frozenset.intersection(*(frozenset(anchors.grouped(p.kernels)) for p in probes))
    largest = max(probes, key=lambda p: sum(p.counts))
    return {a: tuple(k.op for k in kernels) for a, kernels in anchors.grouped(largest.kernels, shared).items()}


# ---- least squares ---------------------------------------------------------------------------------------------------


class _Way:
    """A way to learn a table from probes.

    Args:
        analysis: Of the whole network.
        probes: All measurements.
        anchors: The tensors that stand for the parts of the network, and the kind of each; parts of one kind and size follow
            one law.

    """

    def __init__(self, analysis: Analysis, probes: Sequence[Probe], anchors: Mapping[str, tuple[str, ...]]) -> None:
        self.plans = np.array([p.counts for p in probes], dtype=np.int64).reshape(len(probes), len(analysis.groups))
        self.full = analysis.full[None]
        self.whole = (self.plans == self.full).all(axis=1)
        self.ratio = np.array([p.ratio for p in probes])
        self.milliseconds = float(np.median([p.milliseconds for p in probes]))
        self.work = Work(analysis, anchors)
        _, number = np.unique(self.plans, axis=0, return_inverse=True)
        self.number = number.ravel()
        self._features: dict[Sequence[int], tuple[list[np.ndarray], list[np.ndarray], list[list[int]]]] = {}

    def features(self, blocks: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray], list[list[int]]]:
        """Each part's features in relation to the whole network's, the latter, and the parts that follow the same law."""
        if blocks not in self._features:
            whole = [f[0] for f in self.work.features(self.full, blocks)]
            scales = [np.where(f > 0, f, 1.0) for f in whole]
            shares = [f / s for f, s in zip(self.work.features(self.plans, blocks), scales, strict=True)]
            laws: dict[tuple[tuple[str, ...], bytes], list[int]] = {}
            for i, (unit, size) in enumerate(zip(self.work.units, whole, strict=True)):
                if np.ptp(shares[i], axis=0).any():
                    laws.setdefault((unit.kind, size.tobytes()), []).append(i)
            self._features[blocks] = shares, scales, list(laws.values())
        return self._features[blocks]

    def fit(self, blocks: Sequence[int], known: np.ndarray) -> LatencyTable:
        """Learn from the probes that are known, bool (probes,)."""
        raise NotImplementedError

    def held_out(self, blocks: Sequence[int]) -> np.ndarray:
        """|predicted / measured - 1| of every plan when it was not learnt from; measured is the mean of its probes."""
        fold = np.random.default_rng(0).permutation(int(self.number.max()) + 1)[self.number] % FOLDS
        errors = [np.zeros(0)]
        for i in range(FOLDS):
            out = (fold == i) & ~self.whole
            if out.any():
                table, times = self.fit(blocks, ~out), np.bincount(self.number[out])
                measured = np.bincount(self.number[out], self.ratio[out])[self.number[out]] / times[self.number[out]]
                predicted = table.many(self.plans[out]) / table.many(self.full)
                _, first = np.unique(self.number[out], return_index=True)
                errors.append(np.abs(predicted / measured - 1)[first])
        return np.concatenate(errors)

    def trust(self, known: np.ndarray) -> np.ndarray:
        """Weights of the probes: relative errors count, and the whole network's most."""
        return np.asarray(np.where(self.whole, ANCHORED, 1.0)[known] / self.ratio[known])


class _Kernels(_Way):
    """Each kernel's own time; then their sum is held against the times of the networks."""

    def __init__(self, analysis: Analysis, probes: Sequence[Probe], anchors: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__(analysis, probes, anchors)
        finder, usual = Anchors(analysis), float(np.median([p.reference for p in probes]))
        found = [finder.grouped(p.kernels, frozenset(anchors)) for p in probes]
        times = [[sum(k.microseconds for k in kernels[a]) for a in anchors] for kernels in found]
        self.times = np.array(times) * usual / np.array([[p.reference] for p in probes])

    def fit(self, blocks: Sequence[int], known: np.ndarray) -> LatencyTable:
        """Fit kernel by kernel, then two numbers: what does not vary, and how the sum of what varies becomes a time.

        What does not vary is taken from the networks' times, as the profiler's own time is in that of every kernel.
        """
        shares, scales, laws = self.features(blocks)
        weight = 1 / self.times[known].sum(axis=1)
        slopes = [np.zeros_like(s) for s in scales]
        varying = np.zeros(len(self.plans))
        for members in laws:
            rows = np.concatenate([np.insert(shares[u][known], 0, 1, axis=1) * weight[:, None] for u in members])
            found = _positive(rows, np.concatenate([self.times[known, u] * weight for u in members]))[1:]
            for u in members:
                slopes[u] = found / scales[u]
                varying += shares[u] @ found
        total = max(float(varying.max()), 1e-300)
        trust = self.trust(known)
        sides = np.stack([np.ones(len(trust)), varying[known] / total], axis=1) * trust[:, None]
        rest, stretch = _positive(sides, self.ratio[known] * trust) * self.milliseconds
        return replace(self.work.table(blocks, float(rest), [s * stretch / total for s in slopes]), basis="kernels")


_Cause = tuple[list[int], int, float]
"""Parts, one of their features, and how much of it they have together in the whole network."""


class _Networks(_Way):
    """Times of whole networks alone; the parts are the nodes, and those of a kind are alike but for a little."""

    def __init__(self, analysis: Analysis, probes: Sequence[Probe]) -> None:
        nodes = analysis.model.proto.graph.node
        super().__init__(analysis, probes, {key_of(n): _kind(n) for n in nodes if key_of(n)})
        self._causes: dict[Sequence[int], tuple[list[_Cause], np.ndarray, np.ndarray]] = {}

    def fit(self, blocks: Sequence[int], known: np.ndarray) -> LatencyTable:
        """Fit all laws at once, with a pull towards nothing."""
        _, scales, _ = self.features(blocks)
        causes, columns, pulls = self.causes(blocks)
        trust = self.trust(known)
        rows = np.insert(columns[known], 0, 1, axis=1) * trust[:, None]
        found = (
            _believed(rows, self.ratio[known] * trust, np.append(RIDGE, pulls), self.whole[known]) * self.milliseconds
        )
        slopes = [np.zeros_like(s) for s in scales]
        for (members, feature, size), slope in zip(causes, found[1:], strict=True):
            for u in members:
                slopes[u][feature] += slope / size
        return self.work.table(blocks, float(found[0]), slopes)

    def causes(self, blocks: Sequence[int]) -> tuple[list[_Cause], np.ndarray, np.ndarray]:
        """What time may be due to, (plans, causes) how much of it there is, and (causes,) how firmly its weight is held down.

        Each feature of all parts of a kind; and what all parts of one size multiply, or else write. Of those that cannot be
        told apart, the first.
        """
        if blocks not in self._causes:
            shares, scales, laws = self.features(blocks)
            kinds: dict[tuple[str, ...], list[int]] = {}
            for members in laws:
                kinds.setdefault(self.work.units[members[0]].kind, []).extend(members)
            wanted = [(members, f, RIDGE) for members in kinds.values() for f in range(len(scales[0]))]
            for members in laws:
                multiplied = bool(self.work.units[members[0]].macs)
                wanted.append((members, len(blocks) // 2 if multiplied else len(blocks) + 1, APART))
            causes: list[_Cause] = []
            columns, pulls, known = list[np.ndarray](), list[float](), set[bytes]()
            for members, f, pull in wanted:
                size = sum(float(scales[u][f]) for u in members)
                column = np.sum([shares[u][:, f] * scales[u][f] for u in members], axis=0) / size
                key = np.round(column, 9).tobytes()
                if np.ptp(column) > 0 and key not in known:
                    known.add(key)
                    causes.append((members, f, size))
                    columns.append(column)
                    pulls.append(pull)
            matrix = np.array(columns).reshape(len(causes), len(self.plans)).T
            self._causes[blocks] = causes, matrix, np.array(pulls)
        return self._causes[blocks]


def _believed(rows: np.ndarray, goal: np.ndarray, pulls: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Solve for x >= 0 by least squares with a pull towards 0; rows far off are believed less (Huber's weights).

    Args:
        rows: (measurements, unknowns).
        goal: (measurements,).
        pulls: (unknowns,).
        sure: bool (measurements,), which are believed in any case.

    """
    weight = np.ones(len(rows))
    for _ in range(DOUBTS):
        found = _positive(
            np.vstack([rows * weight[:, None], np.diag(pulls)]), np.append(goal * weight, np.zeros(len(pulls)))
        )
        wrong = np.abs(rows @ found - goal)
        usual = USUAL * float(np.median(wrong))
        weight = np.where(sure, 1, np.sqrt(np.minimum(1, usual / np.maximum(wrong, 1e-12))))
    return found


def _kind(node: onnx.NodeProto) -> tuple[str, ...]:
    """What nodes have in common that take equally long for equal work: operator, kernel, and whether it has groups."""
    attrs = attributes(node)
    return node.op_type, str(attrs.get("kernel_shape")), str(attrs.get("group", 1) != 1)


def _positive(rows: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The argmin over x >= 0 of |rows x - goal|."""
    from scipy.optimize import nnls  # noqa: PLC0415  half a second to import

    found, _ = nnls(rows, goal, maxiter=max(1000, 30 * rows.shape[1]))
    return np.asarray(found)
