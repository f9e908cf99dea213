"""Channel counts that the graph measures at run time: fine as the size of something, wrong as a number to calculate with.

A masked network still measures all of its channels, a cut one measures what is left. `sizes` follows each element of a measured
shape through what exporters do to sizes, and fixes the channels where it ends in anything but a size. What is calculated from a
count fixes them too: 16 less a count of 8 is 8 as well, but not when fewer are counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import onnx

from onnx_amc.graph.ledger import Tokens
from onnx_amc.graph.proto import names_read
from onnx_amc.graph.rules import Step

T = TypeVar("T")

Elements = list[Tokens | None]
"""For each element of a flat tensor of sizes, the tokens whose number it is."""

Cell = tuple[Tokens | None, int | None]
"""An element: the tokens whose number it is, or the number that it always is."""

NAMES_SIZES = {"Reshape": 1, "Expand": 1, "Resize": 3, "ConstantOfShape": 0}
"""Operators whose rules tie their axes to the sizes that they take, and the input that these are."""

PICKS = frozenset({"Split", "Gather", "Slice"})
"""Operators that take some of a row."""

NEUTRAL = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0}
"""By what a count may be changed, which leaves it as it is."""

CALCULATES = "calculates with the number of its channels"
"""Why channels stay whose number is more than a size."""

WIDE = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32})
"""Types in which a size is the same number."""

WHOLE = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL})


def follow(step: Step) -> None:
    """Say what sizes a node's outputs are, and fix the channels whose number is used as a value."""
    sizes, node = step.book.sizes, step.node
    if node.op_type in {"Shape", "Size"}:
        measured = _measured(step)
        if any(t is not None for t in measured):
            sizes[step.key] = measured
        return
    _fix(step, names_read(node) - set(node.input), "reads its number inside a subgraph")
    if _is_list(step):
        step.book.written[step.key] = [v for i in range(len(node.input)) for v in _written(step, i)]
    elif node.op_type in PICKS and node.input[0] in step.book.written:
        step.book.written |= _parts(step, _tried(lambda: _picked(step, _written(step, 0))) or [])
    fed = [i for i, name in enumerate(node.input) if name in sizes]
    if not fed or fed == [NAMES_SIZES.get(node.op_type)]:
        return
    moved = _tried(lambda: _moved(step))
    if moved is None:
        _fix(step, {node.input[i] for i in fed}, CALCULATES)
    elif any(t is not None for t in moved):
        sizes |= _parts(step, moved)


def _tried(moved: Callable[[], list[T] | None]) -> list[T] | None:
    """Elements of an output; nothing where the node asks for what is not there, which costs the channels, not the run."""
    try:
        return moved()
    except (IndexError, ValueError, KeyError, TypeError):
        return None


def _parts(step: Step, moved: list[T]) -> dict[str, list[T]]:
    """Elements by output: a Split has several."""
    node = step.node
    parts = [step.model.shapes[o][0] for o in node.output] if node.op_type == "Split" else [len(moved)]
    ends = np.cumsum(parts).tolist()
    return {o: moved[a:b] for o, (a, b) in zip(node.output, itertools.pairwise([0, *ends]), strict=False)}


def _fix(step: Step, names: set[str], why: str) -> None:
    for name in sorted(names):
        step.fix_each(step.book.sizes.get(name, ()), why)


def _is_list(step: Step) -> bool:
    """Whether a node puts sizes in a row, or writes such a row in another type."""
    lists = step.node.op_type == "Concat" or step.attrs.get("to") in WIDE
    known = lists and all(n in step.model.shapes for n in (*step.node.input, step.key))
    return known and len(step.out_shape()) == 1


def _measured(step: Step) -> Elements:
    axes = list(step.x(0))
    if step.node.op_type == "Shape":
        start, end = step.attrs.get("start", 0), step.attrs.get("end", len(axes))
        return axes[start:end]
    step.fix_each(axes, CALCULATES)
    return []


def _moved(step: Step) -> Elements | None:
    """Elements of the output; None for an operator that does more than move sizes."""
    op, first = step.node.op_type, _elements(step, 0)
    alone = not any(name in step.book.sizes for name in step.node.input[1:])
    found: Elements | None = None
    if op in PICKS:
        found = _picked(step, first) if alone else None
    elif alone and (op in {"Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten"} or step.attrs.get("to") in WHOLE):
        found = first
    elif op == "Concat":
        found = [t for i in range(len(step.node.input)) for t in _elements(step, i)]
    elif op in {*NEUTRAL, "Equal", "Where"}:
        made = [
            _calculated(op, cell) for cell in zip(*(_cells(step, i) for i in range(len(step.node.input))), strict=True)
        ]
        step.book.written[step.key] = [known for _, known in made]
        found = [tokens for tokens, _ in made]
    return found


def _picked(step: Step, first: list[T]) -> list[T] | None:
    """What is taken of a row, for all outputs one after the other."""
    op, index = step.node.op_type, step.const(1)
    if op == "Split" and all(len(step.out_shape(i)) == 1 for i in range(len(step.node.output))):
        return first
    if op == "Gather" and index is not None and len(step.shape(0)) == 1:
        return [first[int(i)] for i in index.ravel()]
    if op == "Slice" and len(step.shape(0)) == 1:
        low, high, stride = step.setting("starts", 1), step.setting("ends", 2), step.setting("steps", 4) or [1]
        return first[low[0] : high[0] : stride[0]] if low and high else None
    return None


def _calculated(op: str, cell: tuple[Cell, ...]) -> Cell:
    """An element of what is calculated from these; ValueError where it is a count's function and not the count."""
    live = [i for i, (tokens, _) in enumerate(cell) if tokens is not None]
    values = [known for _, known in cell]
    if op == "Where" and values[0] is not None:  # the stretched axes of an exporter's `expand`, which are written as -1
        return cell[1 if values[0] else 2]
    if op == "Equal" and len(live) < 2:
        other = values[1 - live[0]] if live else None
        if other is not None and other <= 0:  # which no count is
            return None, 0
        if not live:
            return None, None if None in values else int(values[0] == values[1])
    if not live:
        return None, None
    if op == "Mul" and len(live) == 1 and values[1 - live[0]] is None:
        return cell[live[0]]  # by the batch: an axis of both is as long as that
    rest = [known for i, known in enumerate(values) if i != live[0]]
    if any(known != NEUTRAL.get(op) or known is None for known in rest) or (live[0] and op in {"Sub", "Div"}):
        raise ValueError(op)
    return cell[live[0]]


def _cells(step: Step, i: int) -> list[Cell]:
    """Elements of input i, spread over those of the output."""
    shape = step.shape(i)
    places = np.broadcast_to(np.arange(int(np.prod(shape))).reshape(shape), step.out_shape()).ravel()
    found = list(zip(_elements(step, i), _written(step, i), strict=True))
    return [found[int(p)] for p in places]


def _written(step: Step, i: int) -> list[int | None]:
    """The whole numbers that input i always is; None for what is none, such as NaN or 1.1."""
    length, value = int(np.prod(step.shape(i))), step.const(i)
    if value is None or value.dtype.kind not in "iubf":
        return step.book.written.get(step.node.input[i]) or [None] * length
    return [int(v) if np.isfinite(v) and v == int(v) else None for v in value.ravel()]


def _elements(step: Step, i: int) -> Elements:
    """Elements of input i."""
    return step.book.sizes.get(step.node.input[i]) or [None] * int(np.prod(step.shape(i)))
