"""The price of a plan, from counts alone: nothing is built."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from onnx_amc.graph import light
from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.ledger import Tokens
from onnx_amc.graph.load import FLOATS, Model, densify


@dataclass(frozen=True)
class Price:
    """A sum of products of axis lengths, each linear in the groups' counts: price(n) = sum_i k_i prod_j (base_ij + share_ij n).

    Args:
        constant: int (terms,).
        base: int (terms, factors), what cannot be cut.
        share: int (terms, factors, groups), how often one channel of a group occurs on the axis.
        names: The node or initializer of each term.

    """

    constant: np.ndarray
    base: np.ndarray
    share: np.ndarray
    names: tuple[str, ...]

    def terms(self, counts: np.ndarray) -> np.ndarray:
        """Int (terms,): each node's share of the price when group g keeps counts[g] channels."""
        shares: np.ndarray = self.constant * np.prod(self.base + self.share @ counts, axis=1)
        return shares

    def many(self, plans: np.ndarray) -> np.ndarray:
        """Return whole prices, int (plans,), of int (plans, groups) counts."""
        return np.asarray(self.each(plans) @ self.constant)

    def each(self, plans: np.ndarray) -> np.ndarray:
        """Return int (plans, terms), the product of each term, its constant left out."""
        return np.asarray(np.prod(self.axes(plans), axis=2))

    def axes(self, plans: np.ndarray) -> np.ndarray:
        """Return int (plans, terms, factors), the length of each axis."""
        lengths = plans.astype(np.float64) @ self._flat  # exact: far below 2^53
        return np.asarray(lengths.reshape(len(plans), *self.base.shape).astype(np.int64) + self.base)

    @cached_property
    def _flat(self) -> np.ndarray:
        return self.share.reshape(self.base.size, self.share.shape[2]).T.astype(np.float64)

    def __call__(self, counts: np.ndarray) -> int:
        """Return the whole price."""
        return int(self.terms(counts).sum())

    def of_group(self, group: int) -> np.ndarray:
        """Tell which terms a group takes part in, bool (terms,)."""
        return np.asarray((self.share[:, :, group] > 0).any(axis=1))


def macs(analysis: Analysis) -> Price:
    """Multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul for one sample."""
    terms = analysis.ledger.terms
    return _price(analysis, [(t.node, t.constant, t.factors) for t in terms])


def params(analysis: Analysis) -> Price:
    """Elements of the parameters."""
    axes = _axes(analysis)
    tensors = parameters(analysis.model).items()
    return _price(analysis, [_entry(name, t.dims, axes.get(name, {})) for name, t in tensors])


def lengths(analysis: Analysis, vectors: Mapping[str, Tokens | int]) -> Price:
    """Elements of vectors, one term each, by their tokens, or by how many they are where none can be cut."""
    pairs = [(n, 1, [v]) if isinstance(v, np.ndarray) else (n, v, []) for n, v in vectors.items()]
    return _price(analysis, pairs)


def parameters(model: Model) -> dict[str, onnx.TensorProto]:
    """What counts as parameters: the float initializers, as they are before any is stored sparse or shared."""
    return {n: t for n, t in model.weights.items() if t.data_type in FLOATS and n not in model.lifted}


def size(analysis: Analysis, whole: int | None = None) -> Price:
    """Bytes of the file: of all initializers, and what the rest takes.

    Args:
        analysis: Of the network.
        whole: What a file takes from which nothing is cut, but which is written as cut ones are: without what nothing reads, and
            with what was calculated from constants in place of the nodes that did. None for what the original takes.

    """
    axes = _axes(analysis)
    tensors = {n: t for n, t in analysis.model.weights.items() if t.data_type not in light.PACKED}
    counted = sum(light.data_length(t) for t in tensors.values())
    whole = _dense_bytes(analysis.model) if whole is None else whole
    entries = [_entry(n, t.dims, axes.get(n, {}), light.width_of(t.data_type)) for n, t in tensors.items()]
    return _price(analysis, [*entries, ("the rest", whole - counted, [])])


ENVELOPE = 8
"""Bytes of the file that announce a tensor, at most."""


BIASED = frozenset({"Conv", "ConvTranspose", "Gemm", "Add"})
"""Operators with an input that a refit may write, of which a file holds no other copy then."""


def apart(analysis: Analysis, *, cut: bool, refit: bool) -> tuple[int, int]:
    """Elements and bytes of what the original stores once for several nodes, and each of them may have of its own.

    What stays equal is stored once still: a file takes no more than that, and often less.

    Args:
        analysis: Of the network.
        cut: Whether they may be cut by different channels.
        refit: Whether biases may be written.

    """
    model, biases = analysis.model, set[str]()
    for node in model.proto.graph.node if refit else ():
        biases.update(node.input if node.op_type in BIASED else ())
    held: dict[str, list[str]] = {}
    for name, (origin, _) in model.origin.items():
        if name in model.weights:
            held.setdefault(origin, []).append(name)
    found = [0, 0]
    for origin, names in held.items():
        free = [n for n in names if cut or n in biases]
        for name in free[len(free) == len(names) :]:
            tensor = model.weights[name]
            found[0] += math.prod(tensor.dims) if tensor.data_type in FLOATS else 0
            found[1] += tensor.ByteSize() + ENVELOPE + len(name.encode()) - len(origin.encode())
    return found[0], found[1]


def _dense_bytes(model: Model) -> int:
    """Bytes of the file, its sparse initializers written out: a cut leaves them so."""
    if not len(model.original.graph.sparse_initializer):
        return model.bytes
    dense = deepcopy(model.original)
    densify(dense)
    return light.size(dense)


def _axes(analysis: Analysis) -> dict[str, dict[int, Tokens]]:
    """The tokens of each axis of each initializer that has any."""
    axes: dict[str, dict[int, Tokens]] = {}
    for owner, start, end in analysis.ledger.spans():
        axes.setdefault(owner.tensor, {})[owner.axis] = np.arange(start, end)
    return axes


def elements(analysis: Analysis, tensors: Sequence[str]) -> Price:
    """Elements of each of these tensors for one sample, one term a tensor; 0 for one of unknown shape."""
    entries: list[Entry] = []
    for name in tensors:
        shape, axes = analysis.model.shapes.get(name), analysis.axes.get(name) or ()
        if shape is None:
            entries.append((name, 0, []))
            continue
        live = {i: tokens for i, tokens in enumerate(axes) if tokens is not None} if len(axes) == len(shape) else {}
        entries.append(_entry(name, shape, live))
    return _price(analysis, entries)


Entry = tuple[str, int, Sequence[Tokens]]
"""A term of a price: its name, its constant, and the tokens of its factors."""


def _entry(name: str, dims: Sequence[int], live: Mapping[int, Tokens], width: int = 1) -> Entry:
    """Elements of a tensor, each of this width, some of whose axes may be cut."""
    return name, width * math.prod(d for i, d in enumerate(dims) if i not in live), list(live.values())


def _price(analysis: Analysis, entries: Sequence[Entry]) -> Price:
    width = max((len(factors) for _, _, factors in entries), default=1) or 1
    base = np.ones((len(entries), width), dtype=np.int64)
    sizes = analysis.full
    share = np.zeros((len(entries), width, len(sizes)), dtype=np.int64)
    for i, (_, _, factors) in enumerate(entries):
        for j, tokens in enumerate(factors):
            home = analysis.home[analysis.labels[tokens]]
            base[i, j] = int((home < 0).sum())
            if len(sizes):
                share[i, j] = np.bincount(home[home >= 0], minlength=len(sizes)) // sizes
    constant = np.array([k for _, k, _ in entries], dtype=np.int64)
    return Price(constant, base, share, tuple(name for name, _, _ in entries))
