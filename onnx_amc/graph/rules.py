"""The operator table: how each operator ties the channels it reads to the channels it writes.

A rule looks at one node and returns the axes of its outputs. It may tie tokens, fix them with a reason, mark what its weights do,
and leave edits (constants that follow the cut), readers (contractions to refit) and terms (the node's price) in the ledger.
An operator without a rule fixes whatever reaches it. A new rule needs a new case in tests/nets.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnx_amc.graph.ledger import Axes, Edit, Keep, Ledger, Reader, Term, Tokens


@dataclass(frozen=True)
class Step:
    """One node as its rule sees it.

    Args:
        node: The node.
        axes: Axes of each input; an absent input or one of unknown shape has None.
        shapes: Shape of each input and output by name.
        values: Value of each constant input by name.
        params: Tensors that descend from weights alone.
        book: The ledger.
        attrs: The node's attributes.
        opset: Version of the default operator set.

    """

    node: onnx.NodeProto
    axes: list[Axes | None]
    shapes: dict[str, tuple[int, ...]]
    values: Callable[[str], np.ndarray | None]
    params: set[str]
    book: Ledger
    attrs: dict[str, Any]
    opset: int

    @property
    def name(self) -> str:
        """What the user knows the node by."""
        return str(self.node.name or self.node.output[0])

    @property
    def label(self) -> str:
        """Type and name, for reasons."""
        return f"{self.node.op_type} '{self.name}'"

    @property
    def key(self) -> str:
        """What the program knows the node by."""
        return str(self.node.output[0])

    def shape(self, i: int) -> tuple[int, ...]:
        """Shape of input i."""
        return self.shapes[self.node.input[i]]

    def out_shape(self, i: int = 0) -> tuple[int, ...]:
        """Shape of output i."""
        return self.shapes[self.node.output[i]]

    def has(self, i: int) -> bool:
        """Whether input i is given."""
        return i < len(self.node.input) and bool(self.node.input[i])

    def x(self, i: int = 0) -> Axes:
        """Axes of input i."""
        axes = self.axes[i]
        return axes if axes is not None else (None,) * len(self.shapes.get(self.node.input[i], ()))

    def const(self, i: int) -> np.ndarray | None:
        """Value of input i where it is a constant."""
        return self.values(self.node.input[i]) if self.has(i) else None

    def is_param(self, i: int) -> bool:
        """Whether input i descends from weights alone."""
        return self.has(i) and self.node.input[i] in self.params

    def setting(self, name: str, i: int) -> list[int] | None:
        """Read a list of integers that is an attribute in old opsets and input i in new ones; None if absent or dynamic."""
        if name in self.attrs:
            return [int(v) for v in np.atleast_1d(self.attrs[name])]
        value = self.const(i)
        return None if value is None else [int(v) for v in np.atleast_1d(value)]

    def fix(self, tokens: Tokens | None, why: str) -> None:
        """Fix tokens, naming this node."""
        self.book.fix(tokens, f"{self.label} {why}")

    def fix_all(self, why: str) -> None:
        """Fix everything that reaches this node."""
        for axes in self.axes:
            for tokens in axes or ():
                self.fix(tokens, why)

    def plain(self, i: int = 0) -> Axes:
        """Output i with no axis that can be cut."""
        return (None,) * len(self.shapes.get(self.node.output[i], ()))

    def edit(self, slot: int | str, tokens: Tokens, value: Callable[[Keep], np.ndarray]) -> None:
        """Have a constant input or an attribute follow the cut of these tokens."""
        self.book.edits.append(Edit(self.key, slot, value, tokens))

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
    step.fix_all("has no rule yet")
    return [step.plain(i) for i in range(len(step.node.output))]


def normal(axes: list[int], rank: int) -> list[int]:
    """Axes counted from the front."""
    return [a + rank if a < 0 else a for a in axes]


def broadcast(step: Step, inputs: list[int], output: tuple[int, ...]) -> Axes:
    """Numpy's broadcasting: axes aligned at the right, length 1 stretches and ties nothing."""
    result: list[Tokens | None] = []
    for axis in range(-len(output), 0):
        met = [
            step.x(i)[axis]
            for i in inputs
            if len(step.shape(i)) >= -axis and step.shape(i)[axis] == output[axis] and output[axis] > 1
        ]
        joined = met[0] if met else None
        for other in met[1:]:
            joined = step.join(joined, other)
        result.append(joined)
    return tuple(result)


def mark_params(step: Step, role: str = "carries") -> None:
    """Mark all tokens of weights that a node takes as they are."""
    for i in range(len(step.node.input)):
        if step.is_param(i):
            for tokens in step.x(i):
                step.book.mark(tokens, role, step.key)


def contract(step: Step, a: int, a_axis: int, b: int, b_axis: int) -> Tokens | None:
    """Sum over a shared axis of inputs a and b: the channels are *read* here, by whichever of the two is a weight."""
    left, right = step.x(a)[a_axis], step.x(b)[b_axis]
    if step.is_param(a) and step.is_param(b):
        step.fix(left, "multiplies two weights")
        step.fix(right, "multiplies two weights")
        return None
    if not step.is_param(a) and not step.is_param(b):
        joined = step.join(left, right, "contracts it with an axis that cannot be cut")
        step.book.fix_bare(joined, f"{step.label} contracts two activations")
        return None
    return contract_axes(step, left, right, weight_is_right=step.is_param(b))


def contract_axes(step: Step, left: Tokens | None, right: Tokens | None, *, weight_is_right: bool) -> Tokens | None:
    """Tie an activation's channels to the axis of the weight that reads them."""
    weight, activation = (right, left) if weight_is_right else (left, right)
    if activation is None:
        step.book.mark(weight, "reads", step.key)
        step.fix(weight, "reads an axis that cannot be cut")
        return None
    if weight is None:
        step.fix(activation, "reads it with a weight that cannot be cut")
        return None
    step.book.tie(activation, weight)
    step.book.mark(weight, "reads", step.key)
    return activation


def price(step: Step, constant: int, factors: list[tuple[int, Tokens | None]]) -> None:
    """Enter the node's multiply-accumulates: the product of all sizes, those with tokens following the cut."""
    for size, tokens in factors:
        if tokens is None:
            constant *= size
    step.book.terms.append(
        Term(step.key, step.node.op_type, constant, tuple(tokens for _, tokens in factors if tokens is not None))
    )


def read(step: Step, x: int, w: int, inputs: Tokens | None, outputs: Tokens | None) -> None:
    """Enter a contraction of an activation with a weight."""
    if step.is_param(w) and not step.is_param(x):
        step.book.readers.append(
            Reader(step.key, step.node.op_type, step.node.input[x], step.node.input[w], inputs, outputs)
        )


# ---- contractions -------------------------------------------------------------------------------------------------


@rule("Conv")
def conv(step: Step) -> list[Axes]:
    """Y[:, o] = sum over c of W[o, c] * X[:, c] + B[o], within each of `group` groups."""
    x, w = step.x(0), step.x(1)
    shape, weight, out = step.shape(0), step.shape(1), step.out_shape()
    groups = int(step.attrs.get("group", 1))
    if not _slides(step, out):
        return [step.plain()]
    outputs = w[0]
    inputs: Tokens | None = None
    if groups == shape[1] and weight[1] == 1 and groups > 1:
        outputs = _depthwise(step, x[1], w[0], groups)
    elif groups == 1:
        inputs = contract(step, 0, 1, 1, 1)
        inputs = None if inputs is None else inputs[None]
        step.book.mark(outputs, "produces", step.key)
    else:
        inputs = _grouped(step, x[1], w, groups)
        step.book.mark(outputs, "produces", step.key)
    if step.has(2) and outputs is not None:
        step.book.mark(step.x(2)[0], "produces", step.key)
        outputs = step.join(outputs, step.x(2)[0])
    inner = inputs[0] if inputs is not None else None
    price(
        step, int(np.prod(weight[2:])) * out[0], [(out[1], outputs), (weight[1], inner), *((d, None) for d in out[2:])]
    )
    depthwise = groups > 1 and weight[1] == 1
    if not depthwise:
        read(step, 0, 1, inputs, outputs)
    return [(x[0], outputs, *((None,) * (len(out) - 2)))]


def _slides(step: Step, places: tuple[int, ...]) -> bool:
    """Fix what a kernel slides along, and everything where it is no weight; tell whether it is one."""
    for tokens in step.x(0)[2:]:
        step.fix(tokens, "slides along it")
    if not step.is_param(1):
        step.fix_all("has a weight computed at run time")
        price(step, int(np.prod(places)) * int(np.prod(step.shape(1)[1:])), [])
    return step.is_param(1)


def _depthwise(step: Step, x: Tokens | None, w: Tokens | None, groups: int) -> Tokens | None:
    """Each input channel makes its own `m` outputs: they live and die with it, and `group` shrinks."""
    if x is None or w is None:
        step.fix(x, "filters each channel with a weight that cannot be cut")
        step.fix(w, "filters channels that cannot be cut")
        return None
    step.book.tie(x[:, None], w.reshape(groups, -1))
    step.book.mark(w, "carries", step.key)
    step.edit("group", x, lambda keep: np.array(int(keep(x).sum())))
    return w


def _grouped(step: Step, x: Tokens | None, w: Axes, groups: int) -> Tokens | None:
    """Every group loses the same positions, so that the groups stay alike."""
    if w[0] is not None:
        rows = w[0].reshape(groups, -1)
        step.book.tie(rows, rows[:1])
    if x is None or w[1] is None:
        step.fix(x, "reads it in groups of one channel" if w[1] is None else "")
        step.book.mark(w[1], "reads", step.key)
        step.fix(w[1], "reads an axis that cannot be cut")
        return None
    blocks = x.reshape(groups, -1)
    step.book.tie(blocks, w[1][None])
    step.book.mark(w[1], "reads", step.key)
    return blocks


@rule("ConvTranspose")
def conv_transpose(step: Step) -> list[Axes]:
    """Like Conv with W[c, o]: axis 0 reads, axis 1 times `group` produces."""
    x, w = step.x(0), step.x(1)
    shape, weight, out = step.shape(0), step.shape(1), step.out_shape()
    groups = int(step.attrs.get("group", 1))
    if not _slides(step, shape):
        return [step.plain()]
    inputs: Tokens | None = None
    outputs = w[1]
    if groups == 1:
        inputs = contract(step, 0, 1, 1, 0)
        inputs = None if inputs is None else inputs[None]
        step.book.mark(outputs, "produces", step.key)
    elif groups == shape[1] and weight[1] == 1:
        outputs = _depthwise(step, x[1], w[0], groups)
    else:
        step.fix(x[1], "is a grouped transposed convolution")
        step.fix(w[0], "is a grouped transposed convolution")
        step.fix(w[1], "is a grouped transposed convolution")
        outputs = None
    if step.has(2):
        step.book.mark(step.x(2)[0], "produces", step.key)
        outputs = step.join(outputs, step.x(2)[0])
    contracted = inputs[0] if inputs is not None else None
    left = outputs if groups > 1 else contracted
    right = None if groups > 1 else outputs
    space = int(np.prod(weight[2:])) * int(np.prod(shape[2:])) * shape[0]
    price(step, space, [(shape[1], left), (weight[1], right)])
    if groups == 1:
        read(step, 0, 1, inputs, outputs)
    return [(x[0], outputs, *((None,) * (len(out) - 2)))]


@rule("Gemm")
def gemm(step: Step) -> list[Axes]:
    """Y = alpha A' B' + beta C."""
    flip_a, flip_b = bool(step.attrs.get("transA", 0)), bool(step.attrs.get("transB", 0))
    inputs = contract(step, 0, 0 if flip_a else 1, 1, 1 if flip_b else 0)
    rows, columns = step.x(0)[1 if flip_a else 0], step.x(1)[0 if flip_b else 1]
    if step.is_param(1):
        step.book.mark(columns, "produces", step.key)
    if step.is_param(0):
        step.book.mark(rows, "produces", step.key)
    out = step.out_shape()
    if step.has(2):
        offset = (None,) * (2 - len(step.x(2))) + step.x(2)
        if step.is_param(2):
            for tokens in offset:
                step.book.mark(tokens, "produces", step.key)
        sizes = (1,) * (2 - len(step.shape(2))) + step.shape(2)
        rows = step.join(rows, offset[0]) if sizes[0] == out[0] and out[0] > 1 else rows
        columns = step.join(columns, offset[1]) if sizes[1] == out[1] and out[1] > 1 else columns
    depth = step.shape(0)[0 if flip_a else 1]
    price(step, 1, [(out[0], rows), (out[1], columns), (depth, inputs)])
    if not flip_a:
        read(step, 0, 1, None if inputs is None else inputs[None], columns)
    return [(rows, columns)]


@rule("MatMul")
def matmul(step: Step) -> list[Axes]:
    """Contract the last axis of A with the last but one of B; leading axes broadcast."""
    a, b = step.shape(0), step.shape(1)
    inputs = contract(step, 0, len(a) - 1, 1, max(len(b) - 2, 0))
    out = step.out_shape()
    rows = step.x(0)[-2] if len(a) > 1 else None
    columns = step.x(1)[-1] if len(b) > 1 else None
    for i, tokens in ((0, rows), (1, columns)):
        if step.is_param(i):
            step.book.mark(tokens, "produces", step.key)
    lead: list[Tokens | None] = []
    for axis in range(-max(len(a), len(b)), -2):
        met = [(s[axis], step.x(i)[axis]) for i, s in ((0, a), (1, b)) if len(s) >= -axis]
        live = [tokens for size, tokens in met if size == max(size for size, _ in met)]
        lead.append(live[0] if len(live) == 1 else step.join(live[0], live[1]))
    tail = ([rows] if len(a) > 1 else []) + ([columns] if len(b) > 1 else [])
    axes = (*lead, *tail)
    price(step, 1, [*zip(out, axes, strict=True), (a[-1], inputs)])
    if len(b) == 2:
        read(step, 0, 1, None if inputs is None else inputs[None], columns)
    return [axes]
