"""What a graph divides by, and whether that may be zero: a channel that is masked at its source would be 0 / 0 there."""

from __future__ import annotations

import numpy as np
import onnx

from onnx_amc.graph.load import Model

DIVIDES = {"Div": 1, "Mod": 1, "Reciprocal": 0, "Log": 0, "ReduceLogSum": 0, "Acosh": 0, "Pow": 0}
"""Operators that make no finite number of a zero, and the input at which they must not find one."""

POSITIVE = frozenset({"Exp", "Sigmoid", "Softplus", "Cosh", "Softmax"})
"""Operators whose output is above zero."""

SQUARES = frozenset({"Abs", "Relu", "Sqrt", "ReduceL1", "ReduceL2", "ReduceSumSquare"})
"""Operators whose output is not below zero."""

MOVED = "Identity Transpose Reshape Flatten Squeeze Unsqueeze Slice Split Gather Cast Expand Tile"
SAME = frozenset(f"{MOVED} Sqrt ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 Pow".split())
"""Operators whose output is above zero, or not below, where that is so of their first input."""


class Divisors:
    """Finds them in a model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._known: dict[tuple[str, bool], bool] = {}

    def unsafe(self) -> list[str]:
        """Tensors that a node divides by, or takes the logarithm of, and that may be zero."""
        nodes = [n for n in self.model.proto.graph.node if n.op_type in DIVIDES]
        found = [n.input[DIVIDES[n.op_type]] for n in nodes if n.op_type != "Pow" or not self._raises(n)]
        return [t for t in dict.fromkeys(found) if not (self._whole(t) or self.above(t, strictly=True))]

    def above(self, tensor: str, *, strictly: bool) -> bool:
        """Whether all of a tensor is above zero, or else that none of it is below."""
        key = tensor, strictly
        if key not in self._known:  # else every way through a chain of branches would be gone
            self._known[key] = self._above(tensor, strictly=strictly)
        return self._known[key]

    def _above(self, tensor: str, *, strictly: bool) -> bool:
        node = self.model.producer.get(tensor)
        if node is None or node.op_type == "Clip":
            low = self.model.constant(tensor) if node is None else (self.model.bounds(node) or (None,))[0]
            return low is not None and bool(np.all(low > 0 if strictly else low >= 0))
        op, given = node.op_type, [n for n in node.input if n]
        if op in POSITIVE or (not strictly and (op in SQUARES or self._squares(node))):
            return True
        if op in {"Add", "Sum"}:
            some = not strictly or any(self.above(n, strictly=True) for n in given)
            return some and all(self.above(n, strictly=False) for n in given)
        if op in {"Mul", "Div"}:
            return all(self.above(n, strictly=strictly) for n in given)
        if op == "Max":
            return any(self.above(n, strictly=strictly) for n in given)
        return op in SAME and self.above(given[0], strictly=strictly)

    def _squares(self, node: onnx.NodeProto) -> bool:
        power = self.model.constant(node.input[1]) if node.op_type == "Pow" else None
        twice = node.op_type == "Mul" and node.input[0] == node.input[1]
        return twice or (power is not None and not np.any(power % 2))

    def _raises(self, node: onnx.NodeProto) -> bool:
        power = self.model.constant(node.input[1])
        return power is not None and bool(np.all(power >= 0))

    def _whole(self, tensor: str) -> bool:
        """Whether it is a constant without a zero."""
        value = self.model.constant(tensor)
        return value is not None and bool(np.all(value != 0))
