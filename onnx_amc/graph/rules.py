"""The operator table: how each operator ties the channels it reads to the channels it writes.

A rule looks at one node and returns the axes of its outputs. It may tie tokens, fix them with a reason, mark what its weights do,
and leave edits (constants that follow the cut), readers (contractions to refit) and terms (the node's price) in the ledger.
An operator without a rule fixes whatever reaches it. A new rule needs a new case in tests/nets.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import onnx

from onnx_amc.graph.ledger import Axes, Edit, Keep, Ledger, Reader, Term, Tokens, numbers
from onnx_amc.graph.load import Model
from onnx_amc.graph.proto import key_of


@dataclass(frozen=True)
class Step:
    """One node as its rule sees it.

    Args:
        node: The node.
        axes: Axes of each input; an absent input or one of unknown shape has None.
        model: The model that it is of.
        params: Tensors that descend from weights alone.
        book: The ledger.
        attrs: The node's attributes.

    """

    node: onnx.NodeProto
    axes: list[Axes | None]
    model: Model
    params: set[str]
    book: Ledger
    attrs: dict[str, Any]

    @property
    def name(self) -> str:
        """What the user knows the node by."""
        return str(self.node.name or self.key)

    @property
    def label(self) -> str:
        """Type and name, for reasons."""
        return f"{self.node.op_type} '{self.name}'"

    @property
    def key(self) -> str:
        """What the program knows the node by."""
        return key_of(self.node)

    def shape(self, i: int) -> tuple[int, ...]:
        """Shape of input i."""
        return self.model.shapes[self.node.input[i]]

    def out_shape(self, i: int = 0) -> tuple[int, ...]:
        """Shape of output i."""
        return self.model.shapes[self.node.output[i]]

    def has(self, i: int) -> bool:
        """Whether input i is given."""
        return i < len(self.node.input) and bool(self.node.input[i])

    def x(self, i: int = 0) -> Axes:
        """Axes of input i."""
        axes = self.axes[i]
        return axes if axes is not None else (None,) * len(self.model.shapes.get(self.node.input[i], ()))

    def again(self, i: int, axis: int) -> int | None:
        """Length of an axis of input i at another batch and length; None where that is not known."""
        if self.is_param(i) or not self.model.others:
            return self.shape(i)[axis]
        other = self.model.others.get(self.node.input[i])
        return None if other is None else other[axis]

    def settled(self, i: int, axis: int) -> bool:
        """Whether an axis of input i is as long in every run."""
        return self.again(i, axis) == self.shape(i)[axis]

    def spans(self, i: int, axis: int, length: int) -> bool:
        """Whether input i is as long there as the output, counted from the end; a 1 that only the assumed lengths make will be."""
        shape = self.shape(i)
        return len(shape) >= -axis and (shape[axis] == length or self.again(i, axis) not in {1, None})

    def const(self, i: int) -> np.ndarray | None:
        """Value of input i where it is a constant."""
        return self.model.constant(self.node.input[i]) if self.has(i) else None

    def is_param(self, i: int) -> bool:
        """Whether input i descends from weights alone."""
        return self.has(i) and self.node.input[i] in self.params

    def setting(self, name: str, i: int) -> list[int] | None:
        """Read a list of integers that is an attribute in old opsets and input i in new ones; None if absent or dynamic."""
        if name in self.attrs:
            return [int(v) for v in np.atleast_1d(self.attrs[name])]
        value = self.const(i)
        return None if value is None else [int(v) for v in np.atleast_1d(value)]

    def axis(self, default: int, rank: int) -> int:
        """The attribute `axis`, counted from the front."""
        return normal([int(self.attrs.get("axis", default))], rank)[0]

    def fix(self, tokens: Tokens | None, why: str) -> None:
        """Fix tokens, naming this node."""
        self.book.fix(tokens, f"{self.label} {why}")

    def fix_each(self, axes: Iterable[Tokens | None], why: str) -> None:
        """Fix several axes."""
        for tokens in axes:
            self.fix(tokens, why)

    def without(self, axes: Collection[int], why: str) -> Axes:
        """Axes of the first input without these, which are fixed: the others pass."""
        self.fix_each([self.x()[i] for i in axes], why)
        return tuple(None if i in axes else tokens for i, tokens in enumerate(self.x()))

    def loosen(self, tokens: Tokens | None, why: str) -> None:
        """Fix tokens whose cut would not be exact, or note it where the user accepts that."""
        if tokens is not None and self.book.approximate:
            self.book.loose.append((tokens.ravel(), f"{self.label} {why}"))
        else:
            self.fix(tokens, f"{why} (only --approximate cuts it)")

    def add_up(self, i: int, axis: int, why: str) -> None:
        """Sum over an axis of input i, or over its squares: where it is zero it adds nothing, and a cut is exact."""
        if self.book.approximate:
            self.loosen(self.x(i)[axis], why)
        else:
            told = f"{self.label} {why}, and it is not zero where its weights are (only --approximate cuts it)"
            self.book.demand(self.x(i)[axis], (self.node.input[i],), told)

    def fix_all(self, why: str) -> list[Axes]:
        """Fix everything that reaches this node; return its outputs, of which no axis can be cut."""
        for axes in self.axes:
            self.fix_each(axes or (), why)
        return [self.plain(i) for i in range(len(self.node.output))]

    def plain(self, i: int = 0) -> Axes:
        """Output i with no axis that can be cut."""
        return (None,) * len(self.model.shapes.get(self.node.output[i], ()))

    def edit(self, slot: int | str, tokens: Tokens, value: Callable[[Keep], np.ndarray]) -> None:
        """Have a constant input or an attribute follow the cut of these tokens."""
        self.book.edits.append(Edit(self.key, slot, value, tokens))

    def follow(self, slot: int, named: Sequence[tuple[int, Tokens]], base: np.ndarray | None, length: int) -> None:
        """Have the sizes that input `slot` names follow the cut; `base` is None where it is computed at run time.

        What the graph measures on a cut tensor follows by itself. What else is computed from the batch and constants (batch times
        heads) is scaled.

        Args:
            slot: Index of the input.
            named: Position in the input and tokens of each axis that it names.
            base: The constant.
            length: How many sizes it names.

        """
        whole: np.ndarray | None = None
        if base is None:
            source = self.node.input[slot]
            measured = self.book.sizes.get(source, [None] * length)
            written = self.book.written.get(source, [None] * length)
            axes = dict(named)
            for i, taken in enumerate(measured):
                self._take_size(axes.get(i), taken)
            named = [(i, t) for i, t in named if measured[i] is None and ((size := written[i]) is None or size > 0)]
            for i, t in named:
                if self.model.opset < 9 and (written[i] or 1) == 1:  # no Where tells a -1 or a 1 from a size to scale
                    self.fix(t, "takes its length from what is computed at run time")
            whole = np.ones(length, dtype=np.int64)
            whole[[i for i, _ in named]] = [len(t) for _, t in named]
        if named:
            value = numbers(np.ones(length, dtype=np.int64) if base is None else base, named)
            self.book.edits.append(Edit(self.key, slot, value, np.concatenate([t for _, t in named]), whole))

    def _take_size(self, tokens: Tokens | None, taken: Tokens | None) -> None:
        """Have an axis keep as many as the one whose length it is given."""
        if tokens is not None and taken is not None and len(tokens) == len(taken):
            self.book.tie(tokens, taken)
        elif taken is not None:
            self.fix(tokens, "takes its length from another axis")
            self.fix(taken, "gives its length to another axis")

    def join(
        self, a: Tokens | None, b: Tokens | None, why: str = "ties it to an axis that cannot be cut"
    ) -> Tokens | None:
        """Tie two axes, naming this node where one of them cannot be cut."""
        return self.book.join(a, b, f"{self.label} {why}")


Rule = Callable[[Step], list[Axes]]
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Enter a rule into the table."""

    def enter(function: Rule) -> Rule:
        for operator in operators:
            RULES[operator] = function
        return function

    return enter


def without_rule(step: Step) -> list[Axes]:
    """What happens to an operator that nobody wrote a rule for."""
    domain = step.node.domain
    return step.fix_all("has no rule yet" if domain in {"", "ai.onnx"} else f"of {domain} has no rule yet")


def normal(axes: list[int], rank: int) -> list[int]:
    """Axes counted from the front."""
    return [a + rank if a < 0 else a for a in axes]


def broadcast(step: Step, inputs: list[int], output: tuple[int, ...]) -> Axes:
    """Numpy's broadcasting: axes aligned at the right, length 1 stretches and ties nothing, unless it is 1 by chance."""
    result: list[Tokens | None] = []
    for axis in range(-len(output), 0):
        met = [step.x(i)[axis] for i in inputs if output[axis] > 1 and step.spans(i, axis, output[axis])]
        result.append(reduce(step.join, met) if met else None)
    return tuple(result)


def mark_params(step: Step, role: str = "carries") -> None:
    """Mark all tokens of weights that a node takes as they are."""
    for i in range(len(step.node.input)):
        if step.is_param(i):
            for tokens in step.x(i):
                step.book.mark(tokens, role, step.key)


def contract(step: Step, slots: Sequence[int], tokens: Sequence[Tokens | None]) -> Tokens | None:
    """Sum over an axis that inputs share: the channels are *read* here, by the one of them that is a weight.

    Of activations alone it may go where one of them can be made zero.
    """
    held = list(zip(slots, tokens, strict=True))
    weights = [(i, t) for i, t in held if step.is_param(i)]
    others = [(i, t) for i, t in held if not step.is_param(i)]
    if len(weights) > 1 or not others:
        step.fix_each(tokens, "multiplies two weights")
        return None
    joined = others[0][1]
    for _, more in others[1:]:
        joined = step.join(joined, more, "contracts it with an axis that cannot be cut")
    if weights:
        return contract_axes(step, joined, weights[0][1], weights[0][0], others[0][0])
    names = tuple(step.node.input[i] for i in slots)
    which = "two activations, neither" if len(slots) == 2 else "activations, none"
    step.book.bare_product(joined, names, f"{step.label} contracts {which} of which is zero where its weights are")
    return joined


def contract_axes(step: Step, activation: Tokens | None, weight: Tokens | None, slot: int, other: int) -> Tokens | None:
    """Tie the channels of an activation, input `other`, to the axis of the weight, input `slot`, that reads them."""
    if activation is None:
        step.book.mark(weight, "reads", step.key)
        step.fix(weight, "reads an axis that cannot be cut")
        return None
    if weight is None:
        step.fix(activation, "reads it with a weight that cannot be cut")
        return None
    step.book.tie(activation, weight)
    read_by(step, weight, slot, other)
    return activation


def read_by(step: Step, weight: Tokens, slot: int, other: int | None = None) -> None:
    """Say that an axis of the weight at input `slot` reads channels.

    Where a plan cannot name the weight, either it or the activation it reads, input `other`, must be zero at its sources.
    """
    step.book.mark(weight, "reads", step.key)
    name = step.node.input[slot]
    if name not in step.model.weights or name in step.model.made:
        read = (step.node.input[other],) if other is not None and name in step.model.made else ()
        step.book.demand(
            weight, (name, *read), f"{step.label} reads it with a weight that is not zero where its sources are"
        )


def price(step: Step, constant: int, factors: list[tuple[int, Tokens | None]]) -> None:
    """Enter the node's multiply-accumulates: the product of all sizes, those with tokens following the cut."""
    for size, tokens in factors:
        if tokens is None:
            constant *= size
    step.book.terms.append(
        Term(step.key, step.node.op_type, constant, tuple(tokens for _, tokens in factors if tokens is not None))
    )


def read(step: Step, x: int, w: int, inputs: Tokens | None, outputs: Tokens | None, *, whole: bool = False) -> None:
    """Enter a contraction of an activation with a weight."""
    if step.is_param(w) and not step.is_param(x):
        step.book.readers.append(
            Reader(step.key, step.node.op_type, step.node.input[x], step.node.input[w], inputs, outputs, whole)
        )
