"""Channel counts that the graph measures at run time: fine as the size of something, wrong as a number to calculate with.

A masked network still measures all of its channels, a cut one measures what is left. `sizes` follows each element of a measured
shape through the whole-number arithmetic of exporters, and fixes the channels where it ends in anything but a size.
"""

from __future__ import annotations

import numpy as np
import onnx

from onnx_amc.graph.ledger import Tokens
from onnx_amc.graph.rules import Step

Elements = list[Tokens | None]
"""For each element of a flat tensor of sizes, the tokens whose number it depends on."""

NAMES_SIZES = {
    "Reshape": 1,
    "Expand": 1,
    "Resize": 1,
    "Upsample": 1,
    "Slice": 1,
    "Split": 1,
    "Pad": 1,
    "ConstantOfShape": 0,
}
"""Operators that take sizes, from which input on."""

WITH_SIZES = "Add Sub Mul Div Mod Min Max Where Equal Greater Less Abs Neg ReduceProd ReduceMax ReduceMin ReduceSum"
ARITHMETIC = frozenset(WITH_SIZES.split())
"""What calculates with sizes: each result depends on all of them."""

WHOLE = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL})


def follow(step: Step) -> None:
    """Say what sizes a node's outputs depend on, and fix the channels whose number is used as a value."""
    sizes, node = step.book.sizes, step.node
    if node.op_type in {"Shape", "Size"}:
        measured = _measured(step)
        if any(t is not None for t in measured):
            sizes[step.key] = measured
        return
    if (
        node.op_type == "Concat"
        and all(n in step.shapes for n in (*node.input, step.key))
        and len(step.out_shape()) == 1
    ):
        step.book.written[step.key] = [v for i in range(len(node.input)) for v in _written(step, i)]
    fed = [i for i, name in enumerate(node.input) if name in sizes]
    if not fed or (node.op_type in NAMES_SIZES and fed[0] >= NAMES_SIZES[node.op_type]):
        return
    try:
        moved = _moved(step)
    except (IndexError, ValueError, KeyError, TypeError):  # costs the channels, not the run
        moved = None
    if moved is None:
        for i in fed:
            for tokens in sizes[node.input[i]]:
                step.fix(tokens, "calculates with the number of its channels")
    elif any(t is not None for t in moved):
        for name in node.output:
            if name:
                sizes[name] = moved


def _measured(step: Step) -> Elements:
    axes = list(step.x(0))
    if step.node.op_type == "Shape":
        start, end = step.attrs.get("start", 0), step.attrs.get("end", len(axes))
        return axes[start:end]
    live = [t for t in axes if t is not None]
    return [np.concatenate(live) if live else None]


def _moved(step: Step) -> Elements | None:
    """Elements of the output; None for an operator that does more than move sizes and calculate with them."""
    op, first, index = step.node.op_type, _elements(step, 0), step.const(1)
    found: Elements | None = None
    if op in {"Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten"} or step.attrs.get("to") in WHOLE:
        found = first
    elif op == "Gather" and index is not None and len(step.shape(0)) == 1:
        found = [first[int(i)] for i in index.ravel()]
    elif op == "Slice" and len(step.shape(0)) == 1:
        low, high, stride = step.setting("starts", 1), step.setting("ends", 2), step.setting("steps", 4) or [1]
        found = first[low[0] : high[0] : stride[0]] if low and high else None
    elif op == "Concat":
        found = [t for i in range(len(step.node.input)) for t in _elements(step, i)]
    elif op in ARITHMETIC:
        live = [t for i in range(len(step.node.input)) for t in _elements(step, i) if t is not None]
        found = [np.concatenate(live) if live else None] * int(np.prod(step.out_shape()))
    return found


def _written(step: Step, i: int) -> list[int | None]:
    """The whole numbers of a constant input; None for what is none, such as NaN."""
    value = step.const(i)
    if value is None or value.dtype.kind not in "iubf":
        return [None] * int(np.prod(step.shape(i)))
    return [int(v) if np.isfinite(v) else None for v in value.ravel()]


def _elements(step: Step, i: int) -> Elements:
    """Elements of input i."""
    return step.book.sizes.get(step.node.input[i]) or [None] * int(np.prod(step.shape(i)))
