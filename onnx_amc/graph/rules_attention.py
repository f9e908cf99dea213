"""The operator table, continued: attention as one operator (opset 23)."""

from __future__ import annotations

import numpy as np

from onnx_amc.graph.ledger import Axes, Tokens, number
from onnx_amc.graph.rules import Step, mark_params, rule


@rule("Attention")
def attention(step: Step) -> list[Axes]:
    """Softmax(Q K' / sqrt(d)) V by heads: whole heads go, and single columns of V where it has an axis of its own."""
    flat = len(step.shape(0)) == 3
    heads = (
        [step.attrs.get("q_num_heads"), step.attrs.get("kv_num_heads")] if flat else [step.shape(i)[1] for i in (0, 1)]
    )
    outputs = [step.plain(i) for i in range(len(step.node.output))]
    if any(step.has(i) for i in range(4, len(step.node.input))) or any(step.node.output[1:]) or None in heads:
        return step.fix_all("keeps a state, or has heads that are not understood")
    for i in (1, 2):
        step.fix(step.x(i)[1 if flat else 2], "takes a softmax over it")
    step.fix_each(step.x(3)[-2:] if step.has(3) else (), "takes a softmax over it")
    q, k = (int(h) for h in heads)  # type: ignore[arg-type]
    of_query = _heads(step, 0, q, flat=flat)
    of_key = [_heads(step, i, k, flat=flat) for i in (1, 2)]
    keys = step.join(of_key[0], of_key[1])
    joined = of_query if k == 1 else step.join(of_query, None if keys is None else np.repeat(keys, q // k))
    if step.has(3) and q > 1 and step.spans(3, -3, q):
        joined = step.join(joined, step.x(3)[-3])
    if not flat:
        for i in (0, 1):
            step.book.bare_product(step.x(i)[3], (), f"{step.label} scales by the root of its width")
        return [(step.x(0)[0], joined, step.x(0)[2], step.x(2)[3]), *outputs[1:]]
    if joined is None:
        return outputs
    step.edit("q_num_heads", joined, number(joined))
    if keys is not None:
        step.edit("kv_num_heads", keys, number(keys))
    width = step.out_shape()[2] // q
    return [(step.x(0)[0], step.x(0)[1], np.repeat(joined, width)), *outputs[1:]]


def _heads(step: Step, i: int, count: int, *, flat: bool) -> Tokens | None:
    """One token per head of input i; in the flat layout all columns of a head are tied."""
    axes = step.x(i)
    if not flat:
        return axes[1]
    tokens = axes[2]
    if tokens is None or count == 1:
        step.fix(tokens, "has one head")
        return None
    block = tokens.reshape(count, -1)
    step.book.tie(block, block[:, :1])
    return block[:, 0]


@rule("RotaryEmbedding")
def rotary(step: Step) -> list[Axes]:
    """Turns pairs of columns of each head; the heads pass."""
    mark_params(step)
    x, count = step.x(0), int(step.attrs.get("num_heads", 0))
    if len(x) == 3:
        if not count:
            step.fix(x[2], "turns pairs of its columns")
        heads = _heads(step, 0, count, flat=True) if count else None
        if heads is None:
            return [(x[0], x[1], None)]
        step.edit("num_heads", heads, number(heads))
        return [(x[0], x[1], np.repeat(heads, step.shape(0)[2] // count))]
    step.fix(x[3], "turns pairs of its columns")
    return [(x[0], x[1], x[2], None)]
