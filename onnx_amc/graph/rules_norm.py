"""The operator table, continued: normalisations over axes, recurrent layers, and what shuffles blocks."""

from __future__ import annotations

import numpy as np

from onnx_amc.graph.ledger import Axes, Tokens
from onnx_amc.graph.rules import Step, mark_params, rule


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_norm(step: Step) -> list[Axes]:
    """Every axis from `axis` on is read as a whole; the others pass."""
    x = step.x(0)
    first = int(step.attrs.get("axis", -1)) % max(len(x), 1)
    for tokens in x[first:]:
        step.fix(tokens, "takes the statistics over it")
    mark_params(step)
    for i in range(1, len(step.node.input)):
        for tokens in step.x(i) if step.has(i) else ():
            step.fix(tokens, "scales an axis that cannot be cut")
    kept: Axes = (*x[:first], *((None,) * (len(x) - first)))
    return [kept, *(step.plain(i) for i in range(1, len(step.node.output)))]


@rule("GroupNormalization")
def group_norm(step: Step) -> list[Axes]:
    """Channels of a group share their statistics."""
    x = step.x(0)
    for tokens in x[1:]:
        step.fix(tokens, "takes the statistics over groups of it")
    for i in (1, 2):
        for tokens in step.x(i):
            step.fix(tokens, "scales an axis that cannot be cut")
    return [(x[0], *((None,) * (len(x) - 1)))]


@rule("DepthToSpace", "SpaceToDepth")
def blocks(step: Step) -> list[Axes]:
    """Channels move into space or back: the b x b channels of one pixel block live and die together."""
    x, size = step.x(0), int(step.attrs["blocksize"]) ** 2
    for tokens in x[2:]:
        step.fix(tokens, "shuffles it")
    tokens = x[1]
    if tokens is None:
        return [step.plain()]
    if step.node.op_type == "SpaceToDepth":
        out: Tokens = np.tile(tokens, size)
        return [(x[0], out, None, None)]
    crd = step.attrs.get("mode", b"DCR") in {b"CRD", "CRD"}
    block = tokens.reshape(-1, size) if crd else tokens.reshape(size, -1).T
    step.book.tie(block, block[:, :1])
    first = block[:, 0]
    return [(x[0], first if len(first) > 1 else _single(step, first), None, None)]


def _single(step: Step, tokens: Tokens) -> None:
    step.fix(tokens, "makes one channel of it")
