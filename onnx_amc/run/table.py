"""What a plan takes in time: sums of products of rounded axis lengths.

A kernel's time depends on what it multiplies, reads and writes. These are products of axis lengths, which are linear in the
groups' counts; blocked kernels work on whole blocks of 8 or 16 channels, so lengths are rounded up. No weight is negative: a plan
that keeps less is never predicted to take longer, which Algorithm 1's bound relies on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx

from onnx_amc.graph import cost
from onnx_amc.graph.cost import Price
from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.proto import key_of, names_read


@dataclass(frozen=True)
class LatencyTable:
    """Predicts a plan's latency: constant + sum_t weight_t prod_j roundup(base_a + share_a n, block_a) with a = index_tj.

    Args:
        constant: Milliseconds that no cut takes away.
        base: int (axes,), what cannot be cut of each axis.
        share: int (axes, groups), how often one channel of a group occurs on it.
        block: int (axes,), what its length is rounded up to a multiple of.
        index: int (terms, factors), the axes of each term; -1 stands for a length of 1.
        weight: (terms,), milliseconds per element of the product, never negative.
        error: Median over held-out plans of |predicted / measured - 1|, each in relation to the whole network.
        worst: The largest of these.
        basis: What it was learnt from: `kernels` or `networks`.

    """

    constant: float
    base: np.ndarray
    share: np.ndarray
    block: np.ndarray
    index: np.ndarray
    weight: np.ndarray
    error: float = float("nan")
    worst: float = float("nan")
    basis: str = "networks"

    def many(self, plans: np.ndarray) -> np.ndarray:
        """Milliseconds, (plans,), of int (plans, groups) counts; where a count falls they never rise."""
        lengths = np.ones((len(plans), len(self.base) + 1))  # the last is 1, what -1 points at
        lengths[:, :-1] = np.ceil((plans @ self.share.T.astype(np.float64) + self.base) / self.block) * self.block
        products = np.ones((len(plans), len(self.weight)))
        for axis in self.index.T:
            products *= lengths[:, axis]
        return np.asarray(self.constant + products @ self.weight)

    def nanoseconds(self, plans: np.ndarray) -> np.ndarray:
        """The same, int (plans,), as `Space` wants its prices."""
        return np.rint(self.many(plans) * 1e6).astype(np.int64)


class Unit(NamedTuple):
    """A part of the network: its kind, and the terms of what it multiplies, reads and writes."""

    kind: tuple[str, ...]
    macs: list[int]
    reads: list[int]
    writes: list[int]


class Work:
    """The exact work of the parts of a network.

    A part is what leads to a tensor, its anchor, from other anchors and from the network's inputs.

    Args:
        analysis: Of the whole network.
        anchors: Tensors that nodes compute, and what kind of part each stands for.

    """

    def __init__(self, analysis: Analysis, anchors: Mapping[str, tuple[str, ...]]) -> None:
        weights, self._made_by = analysis.model.weights, analysis.model.producer
        regions = {anchor: self._region(anchor, anchors) for anchor in anchors}
        tensors = dict.fromkeys(t for a, (_, read) in regions.items() for t in (a, *read) if t not in weights)
        place = {name: i for i, name in enumerate(tensors)}
        self._macs, self._elements = cost.macs(analysis), cost.elements(analysis, list(tensors))
        terms: dict[str, list[int]] = {}
        for i, name in enumerate(self._macs.names):
            terms.setdefault(name, []).append(i)
        self.units = [
            Unit(
                anchors[anchor],
                [i for node in nodes for i in terms.get(key_of(node), ())],
                [place[t] for t in read if t in place],
                [place[anchor]],
            )
            for anchor, (nodes, read) in regions.items()
        ]

    def _region(self, anchor: str, anchors: Mapping[str, object]) -> tuple[list[onnx.NodeProto], list[str]]:
        """The nodes of a part, and the tensors that it reads."""
        nodes: dict[str, onnx.NodeProto] = {}
        read: set[str] = set()
        todo = [anchor]
        while todo:
            node = self._made_by[todo.pop()]
            if key_of(node) in nodes:
                continue
            nodes[key_of(node)] = node
            names = {name for name in names_read(node) if name}
            inner = {name for name in names if name in self._made_by and name not in anchors}
            todo += sorted(inner)
            read |= names - inner
        return list(nodes.values()), sorted(read)

    def features(self, plans: np.ndarray, blocks: Sequence[int]) -> list[np.ndarray]:
        """For each part, (plans, features): MACs with every rounding, then what is read and written with the first two."""
        columns: list[list[np.ndarray]] = [[] for _ in self.units]
        for price, block, lists in self._layout(blocks):
            values = _rounded(price, plans, block)
            for found, unit in zip(columns, self.units, strict=True):
                found += [values[:, getattr(unit, name)].sum(axis=1) for name in lists]
        return [np.stack(found, axis=1) for found in columns]

    def _layout(self, blocks: Sequence[int]) -> Iterator[tuple[Price, int, tuple[str, ...]]]:
        """Terms, their rounding and the lists of a unit that pick from them, in the order of the features."""
        yield from ((self._macs, block, ("macs",)) for block in blocks)
        yield from ((self._elements, block, ("reads", "writes")) for block in blocks[:2])

    def table(self, blocks: Sequence[int], constant: float, slopes: Sequence[np.ndarray]) -> LatencyTable:
        """Return the table of a linear law.

        Args:
            blocks: The roundings of the features.
            constant: Milliseconds.
            slopes: For each part, (features,), milliseconds per unit of the feature.

        """
        parts: list[tuple[Price, int, np.ndarray]] = []
        column = 0
        for price, block, lists in self._layout(blocks):
            weight = np.zeros(len(price.names))
            for name in lists:
                for unit, slope in zip(self.units, slopes, strict=True):
                    np.add.at(weight, getattr(unit, name), slope[column])
                column += 1
            parts.append((price, block, weight))
        return assembled(parts, constant)


def _rounded(price: Price, plans: np.ndarray, block: int) -> np.ndarray:
    """Float (plans, terms): each term with the axes that can be cut rounded up to a multiple."""
    lengths = price.axes(plans)
    lengths = np.where(price.share.any(axis=2), np.ceil(lengths / block) * block, lengths)
    return np.asarray(np.prod(lengths, axis=2) * price.constant)


def assembled(parts: Iterable[tuple[Price, int, np.ndarray]], constant: float) -> LatencyTable:
    """Sum up weighted terms; those with the same axes become one, and what cannot be cut goes into the constant.

    Args:
        parts: Terms, what the lengths of their axes are rounded up to, and (terms,) the weight of each.
        constant: What there is besides.

    """
    axes: dict[tuple[int, int, bytes], int] = {}
    terms: dict[tuple[int, ...], float] = {}
    shares: list[np.ndarray] = []
    groups = 0
    for price, block, weight in parts:
        groups = price.share.shape[2]
        for t in np.flatnonzero(weight):
            scale, index = float(weight[t]) * float(price.constant[t]), []
            for base, share in zip(price.base[t].tolist(), price.share[t], strict=True):
                if not share.any():
                    scale *= base
                    continue
                key = (base, block, share.tobytes())
                if key not in axes:
                    shares.append(share)
                index.append(axes.setdefault(key, len(axes)))
            where = tuple(sorted(index))
            terms[where] = terms.get(where, 0.0) + scale
    constant += terms.pop((), 0.0)
    width = max(map(len, terms), default=0)
    return LatencyTable(
        constant,
        np.array([base for base, _, _ in axes], dtype=np.int64),
        np.array(shares, dtype=np.int64).reshape(len(axes), groups),
        np.array([block for _, block, _ in axes], dtype=np.int64),
        np.array([[*t, *[-1] * (width - len(t))] for t in terms], dtype=np.int64).reshape(len(terms), width),
        np.array(list(terms.values()), dtype=np.float64),
    )
