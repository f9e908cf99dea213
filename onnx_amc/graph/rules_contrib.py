"""Operators that onnxruntime's optimiser leaves in a saved graph (domain com.microsoft): contractions with an activation."""

from __future__ import annotations

from onnx_amc.graph.ledger import Axes
from onnx_amc.graph.rules import RULES, Rule, Step

CONTRIB: dict[str, Rule] = {
    name: RULES[same]
    for name, same in {
        "FusedGemm": "Gemm",
        "FusedMatMul": "MatMul",
        "Gelu": "Gelu",
        "QuickGelu": "Gelu",
        "FastGelu": "Add",
        "BiasGelu": "Add",
    }.items()
}


def fused_conv(step: Step) -> list[Axes]:
    """A Conv, perhaps with a tensor added, and an activation."""
    first = RULES["Conv"](step)[0]
    if not step.has(3):
        return [first]
    added = step.x(3)
    return [(first[0], step.join(first[1], added[1]), *first[2:])]


CONTRIB["FusedConv"] = fused_conv
