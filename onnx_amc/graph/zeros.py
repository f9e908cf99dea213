"""Which weights, set to zero, make a channel of a tensor zero: how a channel is masked where no initializer reads it.

A channel that two activations are contracted over (Q.K of attention), or that is read through a weight computed from others, is
masked at its source. That works only if every operator on the way turns zero into zero, and none divides by what may be zero then.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from onnx_amc.graph.divisors import Divisors
from onnx_amc.graph.ledger import Axes, Owner
from onnx_amc.graph.load import Model
from onnx_amc.graph.proto import attributes, key_of, spelled

Sources = frozenset[Owner]

FIRST = (
    "Identity Cast CastLike Dropout Relu LeakyRelu PRelu Elu Selu Celu Gelu Tanh Abs Neg Sign Sin Asin Atan Sinh Asinh Erf Sqrt "
    "Div HardSwish Mish Swish Softsign Floor Ceil Round Transpose Reshape Flatten Squeeze Unsqueeze Slice Split Gather Expand Tile "
    "DepthToSpace SpaceToDepth QuantizeLinear DequantizeLinear MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool "
    "GlobalLpPool ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare RMSNormalization Resize Upsample "
    "GridSample RoiAlign MaxRoiPool Col2Im CenterCropPad GatherElements GatherND LpNormalization"
)
KEEPS_ZERO = frozenset(FIRST.split())
"""Operators whose output is zero where their first input is."""

MOVED = "Identity Transpose Reshape Flatten Squeeze Unsqueeze Slice Split Gather DepthToSpace SpaceToDepth MaxPool"
MOVES = frozenset(MOVED.split())
"""Operators that change no number."""

ALL = frozenset({"Add", "Sub", "Sum", "Mean", "Max", "Min"})
"""Operators whose output is zero where all their inputs are."""

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})

DEEPEST = 64
"""Operators that are followed back from a contraction."""


class Zeros:
    """Traces tensors back to the weights that make them.

    Args:
        model: The model.
        axes: Tokens of every tensor.
        labels: int (tokens,), the channel of each token.

    """

    def __init__(self, model: Model, axes: Mapping[str, Axes | None], labels: np.ndarray) -> None:
        self.model, self.axes, self.labels = model, axes, labels
        self._known: dict[tuple[str, bytes], Sources | None] = {}
        self.producer, self.divisors = model.producer, Divisors(model).unsafe()

    def sources(self, tensor: str, channels: np.ndarray, depth: int = 0) -> Sources | None:
        """Owners whose slices of these channels (classes), set to zero, make the tensor zero there; None where none do."""
        key = tensor, channels.tobytes()
        if key not in self._known:  # else every way through a chain of branches would be gone
            self._known[key] = self._traced(tensor, channels, depth)
        return self._known[key]

    def divides(self, channels: np.ndarray, sources: Sources) -> bool:
        """Whether a node, wherever it is, divides by what these sources make in these channels and may be zero."""
        masked = {o.tensor for o in sources}
        return any(not masked.isdisjoint(self._origins(t, channels)) for t in self.divisors)

    def _origins(self, tensor: str, channels: np.ndarray) -> set[str]:
        """What a tensor is made of that carries these channels."""
        found: set[str] = set()
        left = [tensor]
        while left:
            name = left.pop()
            if name not in found and self._carries(name, channels):
                found.add(name)
                left += self.producer[name].input if name in self.producer else []
        return found

    def _traced(self, tensor: str, channels: np.ndarray, depth: int) -> Sources | None:
        if not self._carries(tensor, channels) or depth > DEEPEST:
            return None
        if tensor in self.model.weights:
            return self._owners(tensor, channels)
        node = self.producer.get(tensor)
        if node is None or (tensor != node.output[0] and node.op_type != "Split"):
            return None
        if node.op_type in PRODUCTS:
            return self._product(node, channels, depth + 1)
        inputs, all_of = self._needed(node, channels)
        if not all_of:
            return self._any(inputs, channels, depth + 1)
        return _together([self.sources(name, channels, depth + 1) for name in inputs])

    def _needed(self, node: onnx.NodeProto, channels: np.ndarray) -> tuple[list[str], bool]:
        """Inputs that make the output zero where they are zero: all of them together, or any one."""
        op, given = node.op_type, [n for n in node.input if n]
        if op in {"QuantizeLinear", "DequantizeLinear"} and self._offset(node):
            start = self._quantiser(node) if op == "DequantizeLinear" else None
            return ([] if start is None else [start]), True
        if op in KEEPS_ZERO or (op == "Pad" and self._pads_zeros(node)):
            return given[:1], True
        if op in {"Clip", "Pow"} and self._keeps_zero(node):
            return given[:1], True
        if op == "Concat":
            return [n for n in given if self._carries(n, channels)], True
        if op in {"BatchNormalization", "InstanceNormalization"}:
            return given[1:3], True
        return (given, op != "Mul") if op in ALL or op == "Mul" else ([], True)

    def _carries(self, tensor: str, channels: np.ndarray) -> bool:
        return any(self._on(axis, channels) for axis in self.axes.get(tensor) or ())

    def _on(self, axis: np.ndarray | None, channels: np.ndarray) -> bool:
        return axis is not None and bool(np.isin(self.labels[axis], channels).any())

    def _owners(self, weight: str, channels: np.ndarray) -> Sources:
        axes = self.axes.get(weight) or ()
        return frozenset(Owner(weight, i) for i, axis in enumerate(axes) if self._on(axis, channels))

    def _any(self, tensors: list[str], channels: np.ndarray, depth: int) -> Sources | None:
        return next((f for t in tensors if (f := self.sources(t, channels, depth)) is not None), None)

    def _product(self, node: onnx.NodeProto, channels: np.ndarray, depth: int) -> Sources | None:
        """Zero rows or columns of a factor make zero rows or columns of the product; a bias must go too."""
        if node.op_type == "Einsum":
            return self._summed(node, channels, depth)
        out = self.axes.get(key_of(node)) or ()
        a, b = (self.axes.get(n) or () for n in node.input[:2])
        held: list[Sources | None] = []
        attrs = attributes(node)
        if node.op_type in {"Conv", "ConvTranspose"}:
            both = len(a) > 1 and self._on(a[1], channels) and self._on(b[0] if b else None, channels)
            groups = attrs.get("group", 1)
            whole = (
                node.op_type == "ConvTranspose" or groups >= self.model.shapes.get(node.input[1], (0, groups + 1))[1]
            )
            depthwise = both and groups > 1 and whole  # else an output sums over the rest of its group
            factors = list(node.input[:2]) if depthwise else [node.input[1]]
            held = [self._any(factors, channels, depth)]
        else:
            flips = (bool(attrs.get("transA", 0)), bool(attrs.get("transB", 0)))
            rows = a[-1 if flips[0] else -2] if len(a) > 1 else None
            columns = b[-2 if flips[1] else -1] if len(b) > 1 else None
            if self._on(rows, channels):
                held.append(self.sources(node.input[0], channels, depth))
            if self._on(columns, channels):
                held.append(self.sources(node.input[1], channels, depth))
            if any(self._on(axis, channels) for axis in out[:-2]):
                held.append(self._any(list(node.input[:2]), channels, depth))
        if len(node.input) > 2 and node.input[2] and node.op_type != "MatMul":
            held.append(self.sources(node.input[2], channels, depth))
        return _together(held)

    def _summed(self, node: onnx.NodeProto, channels: np.ndarray, depth: int) -> Sources | None:
        """A letter of the output is zero where it is so in one of an Einsum's operands."""
        operands, right = spelled(node, [len(self.model.shapes[n]) for n in node.input])
        held: list[Sources | None] = []
        for letter, axis in zip(right, self.axes.get(key_of(node)) or (), strict=True):
            if self._on(axis, channels):
                factors = [n for n, o in zip(node.input, operands, strict=True) if letter in o]
                held.append(self._any(factors, channels, depth))
        return _together(held)

    def _keeps_zero(self, node: onnx.NodeProto) -> bool:
        """Whether zero lies between the bounds of a Clip, and the power of a Pow is more than zero."""
        if node.op_type == "Pow":
            power = self.model.constant(node.input[1])
            return power is not None and bool(np.all(power > 0))
        bounds = self.model.bounds(node)
        return bounds is not None and bool(np.all(bounds[0] <= 0) and np.all(bounds[1] >= 0))

    def _offset(self, node: onnx.NodeProto) -> bool:
        """Whether a quantised zero is not, or may not be, the number zero."""
        zero = node.input[2] if len(node.input) > 2 else ""
        known = self.model.constant(zero)
        return bool(zero) and (known is None or bool(np.any(known)))

    def _quantiser(self, node: onnx.NodeProto) -> str | None:
        """What the numbers that this node reads were before they were quantised with the same zero point."""
        zero, before = node.input[2], self.producer.get(node.input[0])
        while before is not None and before.op_type in MOVES:
            before = self.producer.get(before.input[0])
        if before is None or before.op_type != "QuantizeLinear" or len(before.input) < 3:
            return None
        one, other = self.model.constant(zero), self.model.constant(before.input[2])
        same = one is not None and other is not None and np.array_equal(one, other)
        return before.input[0] if same or zero == before.input[2] else None

    def _pads_zeros(self, node: onnx.NodeProto) -> bool:
        attrs = attributes(node)
        if attrs.get("mode", b"constant") != b"constant":
            return True
        if attrs.get("value", 0.0) != 0.0:
            return False
        if len(node.input) < 3 or not node.input[2]:
            return True
        value = self.model.constant(node.input[2])
        return value is not None and not np.any(value)


def _together(found: list[Sources | None]) -> Sources | None:
    """All of several sources; None where one is not known, or there are none."""
    known = [f for f in found if f is not None]
    return frozenset().union(*known) if known and len(known) == len(found) else None
