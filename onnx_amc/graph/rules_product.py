"""The operator table, continued: what contracts an activation with a weight, or two activations."""

from __future__ import annotations

import numpy as np

from onnx_amc.graph.ledger import Axes, Tokens, number
from onnx_amc.graph.rules import Step, contract, price, read, read_by, rule


@rule("Conv")
def conv(step: Step) -> list[Axes]:
    """Y[:, o] = sum over c of W[o, c] * X[:, c] + B[o], within each of `group` groups."""
    x, w = step.x(0), step.x(1)
    weight, out = step.shape(1), step.out_shape()
    groups = int(step.attrs.get("group", 1))
    if not _slides(step, out):
        return [step.plain()]
    outputs = w[0]
    inputs: Tokens | None = None
    whole = groups > 1 and groups >= weight[1]
    if whole:
        outputs = _whole_groups(step, x[1], w[0], groups)
        inputs = x[1].reshape(groups, -1) if x[1] is not None and outputs is not None else None
    elif groups == 1:
        inputs = contract(step, (0, 1), (x[1], w[1]))
        inputs = None if inputs is None else inputs[None]
        step.book.mark(outputs, "produces", step.key)
    else:
        inputs = _grouped(step, x[1], w, groups)
        step.book.mark(outputs, "produces", step.key)
    if step.has(2) and outputs is not None:
        step.book.mark(step.x(2)[0], "produces", step.key)
        outputs = step.join(outputs, step.x(2)[0])
    inner = inputs[0] if inputs is not None and not whole else None
    price(
        step,
        int(np.prod(weight[2:])),
        [(out[0], x[0]), (out[1], outputs), (weight[1], inner), *((d, None) for d in out[2:])],
    )
    read(step, 0, 1, inputs, outputs, whole=whole)
    return [(x[0], outputs, *((None,) * (len(out) - 2)))]


def _slides(step: Step, places: tuple[int, ...]) -> bool:
    """Fix what a kernel slides along, and everything where it is no weight; tell whether it is one."""
    step.fix_each(step.x(0)[2:], "slides along it")
    if not step.is_param(1):
        step.fix_all("has a weight computed at run time")
        price(step, int(np.prod(places)) * int(np.prod(step.shape(1)[1:])), [])
    return step.is_param(1)


def _whole_groups(step: Step, x: Tokens | None, w: Tokens | None, groups: int) -> Tokens | None:
    """Groups of few channels, depthwise ones above all: the inputs and outputs of each live and die together; `group` shrinks."""
    if x is None or w is None:
        step.fix(x, "filters it with a weight that cannot be cut")
        step.fix(w, "filters channels that cannot be cut")
        return None
    blocks = x.reshape(groups, -1)
    first = blocks[:, :1]
    step.book.tie(blocks, first)
    step.book.tie(first, w.reshape(groups, -1))
    step.book.mark(w, "carries", step.key)
    step.edit("group", x, number(first))
    return w


def _grouped(step: Step, x: Tokens | None, w: Axes, groups: int) -> Tokens | None:
    """Few groups of many channels: every group loses the same positions, so that the groups stay alike."""
    if w[0] is not None:
        rows = w[0].reshape(groups, -1)
        step.book.tie(rows, rows[:1])
        step.book.blocked += [rows] if rows.shape[1] % 8 == 0 else []
    if x is None or w[1] is None:
        step.fix(x, "reads it in groups of one channel" if w[1] is None else "")
        step.book.mark(w[1], "reads", step.key)
        step.fix(w[1], "reads an axis that cannot be cut")
        return None
    blocks = x.reshape(groups, -1)
    step.book.tie(blocks, w[1][None])
    step.book.blocked += [blocks] if blocks.shape[1] % 8 == 0 else []
    read_by(step, w[1], 1, 0)
    return blocks


@rule("ConvTranspose")
def conv_transpose(step: Step) -> list[Axes]:
    """Like Conv with W[c, o]: axis 0 reads, axis 1 times `group` produces."""
    x, w = step.x(0), step.x(1)
    shape, weight, out = step.shape(0), step.shape(1), step.out_shape()
    groups = int(step.attrs.get("group", 1))
    if not _slides(step, shape):
        return [step.plain()]
    outputs = w[1]
    if groups == 1:
        rows = contract(step, (0, 1), (x[1], w[0]))
        step.book.mark(outputs, "produces", step.key)
    else:
        rows = _whole_groups(step, x[1], w[0], groups)
        outputs = None if rows is None else np.repeat(rows.reshape(groups, -1)[:, 0], weight[1])
    if step.has(2):
        step.book.mark(step.x(2)[0], "produces", step.key)
        outputs = step.join(outputs, step.x(2)[0])
    space = int(np.prod(weight[2:])) * int(np.prod(shape[2:]))
    price(step, space, [(shape[0], x[0]), (shape[1], rows), (weight[1], outputs if groups == 1 else None)])
    if groups == 1:
        read(step, 0, 1, None if rows is None else rows[None], outputs)
    return [(x[0], outputs, *((None,) * (len(out) - 2)))]


@rule("Gemm")
def gemm(step: Step) -> list[Axes]:
    """Y = alpha A' B' + beta C."""
    flip_a, flip_b = bool(step.attrs.get("transA", 0)), bool(step.attrs.get("transB", 0))
    depth = -2 if flip_a else -1
    inputs = contract(step, (0, 1), (step.x(0)[depth], step.x(1)[1 if flip_b else 0]))
    single = len(step.shape(0)) == 1  # onnxruntime takes a vector for one row: what a Squeeze leaves of a batch of 1
    rows, columns = None if single else step.x(0)[1 if flip_a else 0], step.x(1)[0 if flip_b else 1]
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
        rows = step.join(rows, offset[0]) if out[0] > 1 and step.spans(2, -2, out[0]) else rows
        columns = step.join(columns, offset[1]) if out[1] > 1 and step.spans(2, -1, out[1]) else columns
    price(step, 1, [(out[0], rows), (out[1], columns), (step.shape(0)[depth], inputs)])
    if not flip_a:
        read(step, 0, 1, None if inputs is None else inputs[None], columns)
    return [(rows, columns)]


@rule("MatMul")
def matmul(step: Step) -> list[Axes]:
    """Contract the last axis of A with the last but one of B; leading axes broadcast. FusedMatMul may flip either."""
    a, b = step.shape(0), step.shape(1)
    if step.attrs.get("transBatchA") or step.attrs.get("transBatchB"):
        return step.fix_all("moves its batch axes")
    flip_a, flip_b = (bool(step.attrs.get(name)) and len(s) > 1 for name, s in (("transA", a), ("transB", b)))
    depth = len(a) - (2 if flip_a else 1)
    inputs = contract(step, (0, 1), (step.x(0)[depth], step.x(1)[len(b) - 1 if flip_b else max(len(b) - 2, 0)]))
    out = step.out_shape()
    rows = step.x(0)[-1 if flip_a else -2] if len(a) > 1 else None
    columns = step.x(1)[-2 if flip_b else -1] if len(b) > 1 else None
    for i, tokens in ((0, rows), (1, columns)):
        if step.is_param(i):
            step.book.mark(tokens, "produces", step.key)
            for batch in step.x(i)[:-2]:
                step.book.mark(batch, "carries", step.key)
    lead: list[Tokens | None] = []
    for axis in range(-max(len(a), len(b)), -2):
        length = max(s[axis] for s in (a, b) if len(s) >= -axis)
        live = [step.x(i)[axis] for i in (0, 1) if step.spans(i, axis, length)]
        lead.append(live[0] if len(live) == 1 else step.join(live[0], live[1]))
    tail = ([rows] if len(a) > 1 else []) + ([columns] if len(b) > 1 else [])
    axes = (*lead, *tail)
    price(step, 1, [*zip(out, axes, strict=True), (a[depth], inputs)])
    if len(b) == 2:
        read(step, 0, 1, None if inputs is None else inputs[None], columns)
    if len(a) == 2:
        read(step, 1, 0, None if inputs is None else inputs[None], rows)
    return [axes]
