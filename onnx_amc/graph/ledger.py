"""The ledger of channel tokens: who is tied to whom, who may not be cut, and what a cut rewrites.

Each index of each axis of each weight is a *token*, an integer. The operator rules write down which tokens must live and die
together; `Ledger.classes` then takes the connected components. A component is one removable *channel*.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Tokens = np.ndarray
"""int64 (d,): the token at each index of one axis."""

Axes = tuple[Tokens | None, ...]
"""One entry per axis of a tensor; None where the axis cannot be shortened (batch, space, a model input)."""

ROLES = ("reads", "produces", "carries")
"""What an axis of a weight does with a channel, the one that it is named by first."""

Keep = Callable[[Tokens], np.ndarray]
"""Which of the given tokens survive, bool of the same shape."""


@dataclass(frozen=True)
class Owner:
    """Where tokens live: an axis of an initializer, or (axis -1) something a node makes up, such as padding."""

    tensor: str
    axis: int


@dataclass(frozen=True)
class Edit:
    """A constant input or an attribute of a node that names a size and must follow the cut.

    Args:
        node: The node's first output.
        slot: Index of the constant input, or name of the attribute.
        value: The new value, from the surviving tokens.
        tokens: What the value depends on; untouched where all of them survive.
        whole: For an input computed at run time, what `value` is when nothing is cut: the input is scaled by value / whole.

    """

    node: str
    slot: int | str
    value: Callable[[Keep], np.ndarray]
    tokens: Tokens
    whole: np.ndarray | None = None


@dataclass(frozen=True)
class Demand:
    """Channels that are read where no initializer is at hand to mask: one of the tensors must become nothing there.

    Args:
        tokens: The channels.
        tensors: What is multiplied; it is enough that one of them is zero.
        reason: Why the channels stay where none can be made zero by zeroing weights.

    """

    tokens: Tokens
    tensors: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Reader:
    """A node that contracts an activation with a weight: y = W x + b.

    Args:
        node: The node's first output.
        op: Conv, ConvTranspose, Gemm or MatMul.
        x: The activation it reads.
        w: The tensor it takes as weight.
        inputs: Tokens of the contracted channels, (groups, channels per group); None where they cannot be cut.
        outputs: Tokens of the output channels; None where they cannot be cut.
        whole: Whether the inputs and outputs of each group go together, as in a depthwise convolution.

    """

    node: str
    op: str
    x: str
    w: str
    inputs: Tokens | None
    outputs: Tokens | None
    whole: bool = False


@dataclass(frozen=True)
class Term:
    """Multiply-accumulates of one node: `constant` times the number of surviving tokens of each factor."""

    node: str
    op: str
    constant: int
    factors: tuple[Tokens, ...]


@dataclass
class Ledger:
    """Everything the rules write down while they walk the graph.

    Args:
        owners: Where tokens live, in the order of their tokens.
        starts: The first token of each owner.
        size: Number of tokens.
        roles: What each owner does with its channels.
        users: The nodes that take each owner's tensor.
        edits: Constants and attributes that follow the cut.
        readers: Contractions of an activation with a weight.
        terms: The price of each node.
        splits: Node, carrier and lengths of each axis that was split into several.
        choices: Which axis carries the channels of a split, where not the longest.
        demands: Channels that must be masked at their source.
        pieces: Runs of channels that must not become empty.
        sizes: For tensors of measured sizes, the tokens that each element counts.
        written: For concatenated sizes, the elements that constants write.
        blocked: Channels that onnxruntime's blocked kernels take in eights.
        vanishing: Channels whose axis would go if one alone were left of them.
        approximate: Whether channels may go whose cut is not exact.
        loose: Channels whose cut is not exact, and why.

    """

    owners: list[Owner] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    size: int = 0
    roles: dict[Owner, set[str]] = field(default_factory=dict)
    users: dict[Owner, list[str]] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)
    splits: list[tuple[str, Tokens, tuple[int, ...]]] = field(default_factory=list)
    choices: dict[str, int] = field(default_factory=dict)
    demands: list[Demand] = field(default_factory=list)
    pieces: list[Tokens] = field(default_factory=list)
    sizes: dict[str, list[Tokens | None]] = field(default_factory=dict)
    written: dict[str, list[int | None]] = field(default_factory=dict)
    blocked: list[Tokens] = field(default_factory=list)
    vanishing: list[Tokens] = field(default_factory=list)
    approximate: bool = False
    loose: list[tuple[Tokens, str]] = field(default_factory=list)
    _bounds: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _bare: list[Tokens] = field(default_factory=list)
    _ties: list[tuple[Tokens, Tokens]] = field(default_factory=list)
    _fixed: list[tuple[Tokens, str]] = field(default_factory=list)

    def fresh(self, owner: Owner, length: int) -> Tokens:
        """`length` new tokens that live at `owner`."""
        self.owners.append(owner)
        self.starts.append(self.size)
        self.size += length
        return np.arange(self.size - length, self.size)

    def tie(self, a: Tokens, b: Tokens) -> None:
        """Tokens at the same position of `a` and `b` (broadcast against each other) are one channel."""
        left, right = np.broadcast_arrays(a, b)
        self._ties.append((left.ravel(), right.ravel()))

    def fix(self, tokens: Tokens | None, reason: str) -> None:
        """Forbid the removal of these tokens, for a reason the user will read."""
        if tokens is not None and tokens.size:
            self._fixed.append((tokens.ravel(), reason))

    def demand(self, tokens: Tokens | None, tensors: tuple[str, ...], reason: str) -> None:
        """Let tokens be cut only where zeroing weights makes one of these tensors zero there."""
        if tokens is not None:
            self.demands.append(Demand(tokens.ravel(), tensors, reason))

    def bare_product(self, tokens: Tokens | None, tensors: tuple[str, ...], reason: str) -> None:
        """Say that two activations are multiplied and summed over these tokens; another carrier of a split may avoid it."""
        if tokens is not None:
            self._bare.append(tokens.ravel())
            self.demand(tokens, tensors, reason)

    def bare(self) -> Tokens:
        """All tokens over which two activations are contracted."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *self._bare])

    def join(self, a: Tokens | None, b: Tokens | None, reason: str) -> Tokens | None:
        """Tie two axes index by index; where one of them cannot be cut, neither can the other."""
        if a is None or b is None:
            self.fix(a, reason)
            self.fix(b, reason)
            return None
        self.tie(a, b)
        return a

    def mark(self, tokens: Tokens | None, role: str, node: str) -> None:
        """Say what the owners of these tokens do at `node`: `produces`, `reads` or `carries` the channel."""
        if tokens is None or not tokens.size:
            return
        for owner in self._owners(tokens):
            self.users.setdefault(owner, []).append(node)
            self.roles.setdefault(owner, set()).add(role)

    def _owners(self, tokens: Tokens) -> Iterator[Owner]:
        """The owners of some tokens, each once. Cost: their number, not that of all owners."""
        flat, at = np.unique(tokens), 0
        while at < len(flat):
            i = bisect_right(self.starts, int(flat[at])) - 1
            yield self.owners[i]
            end = self.starts[i + 1] if i + 1 < len(self.starts) else self.size
            at = int(np.searchsorted(flat, end))

    def owner_of(self, tokens: Tokens) -> np.ndarray:
        """Index into `owners` for each token."""
        if len(self._bounds) != len(self.starts):
            self._bounds = np.asarray(self.starts)
        return np.searchsorted(self._bounds, tokens.ravel(), side="right") - 1

    def weighted(self, tokens: Tokens) -> bool:
        """Whether all of these tokens live on axes of weights, and none was made up by a node."""
        return all(self.owners[i].axis >= 0 for i in np.unique(self.owner_of(tokens)).tolist())

    def spans(self) -> list[tuple[Owner, int, int]]:
        """Each owner with its first token and the one after its last."""
        ends = [*self.starts[1:], self.size]
        return [(o, a, b) for o, a, b in zip(self.owners, self.starts, ends, strict=False)]

    def classes(self) -> np.ndarray:
        """Int (tokens,): the channel that each token belongs to."""
        if not self._ties:
            return np.arange(self.size)
        left, right = (np.concatenate(side) for side in zip(*self._ties, strict=True))
        graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(self.size, self.size))
        labels: np.ndarray = connected_components(graph, directed=False)[1]
        return labels

    def reasons(self, classes: np.ndarray) -> dict[int, str]:
        """For each channel that may not be cut, the first reason why."""
        return self._first(self._fixed, classes)

    def doubts(self, classes: np.ndarray) -> dict[int, str]:
        """For each channel whose cut is not exact, the first reason why."""
        return self._first(self.loose, classes)

    @staticmethod
    def _first(said: list[tuple[Tokens, str]], classes: np.ndarray) -> dict[int, str]:
        found: dict[int, str] = {}
        for tokens, reason in said:
            for label in np.unique(classes[tokens]).tolist():
                found.setdefault(label, reason)
        return found


def number(tokens: Tokens) -> Callable[[Keep], np.ndarray]:
    """An edit's value: how many tokens survive."""
    return lambda keep: np.array(int(keep(tokens).sum()))


def numbers(base: np.ndarray, named: Sequence[tuple[int, Tokens]]) -> Callable[[Keep], np.ndarray]:
    """An edit's value: these numbers, at some positions how many tokens survive."""

    def value(keep: Keep) -> np.ndarray:
        new = base.copy()
        for i, tokens in named:
            new[i] = keep(tokens).sum()
        return new

    return value
