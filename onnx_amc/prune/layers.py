"""The layers that read channels, as least squares sees them: a matrix, a bias, and where both are stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from onnx_amc.fit.patches import Window
from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.ledger import Reader, Tokens
from onnx_amc.graph.load import FLOATS, MOVES, Model
from onnx_amc.graph.proto import attributes, offered

FOREIGN = "its bias is shared, an input too, computed in the graph or one per row"
"""Why a layer is not refitted whose output holds more than what could be written."""

ODD = "its weight is no single matrix on the right, nor one on the left of samples"
"""Why a product is not refitted that contracts what it reads with several matrices, or with one on the left where no batch is."""

POINTS = Window((1,), (1,), (1,), (0, 0), (1,))
"""What a weight on the left is: a convolution whose kernel is one point."""

WIDEST = 6_000
"""Inputs above which a layer gets no Gram matrix, its memory being quadratic: it is fitted to fewer rows than that, by the dual."""


@dataclass(frozen=True)
class Stored:
    """A tensor that is an initializer, perhaps moved about and cast.

    Args:
        name: The initializer.
        index: int, in the tensor's shape: the flat position in the initializer of each element.
        kinds: ONNX's types that the numbers go through, from the initializer's to the tensor's.

    """

    name: str
    index: np.ndarray
    kinds: tuple[int, ...]

    def held(self, numbers: np.ndarray) -> np.ndarray:
        """What is left of some numbers on their way from the initializer; infinite where a type cannot hold one."""
        with np.errstate(over="ignore"):
            for kind in self.kinds:
                numbers = numbers.astype(onnx.helper.tensor_dtype_to_np_dtype(kind), copy=False)
        return numbers


@dataclass(frozen=True)
class Layer:
    """y[g, o] = sum over i, t of w[g, o, i, t] x[g, i, t] + b[g, o].

    Args:
        node: The contraction's first output.
        output: The tensor that holds y, bias added.
        x: The activation it reads.
        channels_last: Whether x's and y's channels are their last axis; otherwise axis 1.
        weight: Where w lies; index is (groups, outputs, inputs, taps).
        bias: Where b lies, index (groups x outputs,); None where there is none.
        can_add_bias: Whether a bias may be given to the node.
        window: Geometry of the kernel.
        inputs: Tokens of the inputs, (groups, inputs); None where they cannot be cut.
        outputs: Tokens of the outputs, (groups x outputs,); None where they cannot be cut.
        whole: Whether the inputs and outputs of each group go together: no channel of it can stand in for another.

    """

    node: str
    output: str
    x: str
    channels_last: bool
    weight: Stored
    bias: Stored | None
    can_add_bias: bool
    window: Window
    inputs: Tokens | None
    outputs: Tokens | None
    whole: bool = False

    @property
    def width(self) -> int:
        """Inputs of each output: channels of its group times taps."""
        return int(self.weight.index.shape[2] * self.weight.index.shape[3])

    @property
    def affine(self) -> bool:
        """Whether the layer's output can be shifted as well as scaled."""
        return self.bias is not None or self.can_add_bias


def find_layers(analysis: Analysis) -> tuple[list[Layer], dict[str, str]]:
    """Return the readers that can be refitted, in graph order, and for each of the others the reason why not."""
    model = analysis.model
    finder = _Finder(model)
    layers: list[Layer] = []
    refused: dict[str, str] = {}
    for reader in analysis.ledger.readers:
        found = finder.layer(reader)
        if isinstance(found, Layer):
            layers.append(found)
        else:
            refused[reader.node] = found
    known = {reader.node for reader in analysis.ledger.readers}
    read = {s.owner.tensor for group in analysis.groups for s in group.slices if s.role == "reads"}
    for node in model.proto.graph.node:
        product = node.op_type in {"MatMul", "Gemm"} and node.output[0] not in known
        if product and not read.isdisjoint(node.input):
            refused[node.output[0]] = ODD
    return layers, refused


class _Finder:
    """Looks layers up in the graph."""

    def __init__(self, model: Model) -> None:
        self.model, self.producer, self.consumers = model, model.producer, model.consumers
        self.outputs = {o.name for o in model.proto.graph.output}
        self.offered = offered(model.proto)

    def stored(self, name: str) -> Stored | None:
        """Find the initializer behind a tensor, through operators that move elements or round them to another type."""
        if name in self.model.weights:
            dims = list(self.model.weights[name].dims)
            return Stored(name, np.arange(int(np.prod(dims))).reshape(dims), (self.model.weights[name].data_type,))
        node = self.producer.get(name)
        if node is None or node.op_type not in MOVES | {"Cast"} or name not in self.model.shapes:
            return None
        source = self.stored(node.input[0])
        if source is None:
            return None
        attrs = attributes(node)
        if node.op_type == "Cast":
            kinds = (*source.kinds, int(attrs["to"]))
            return replace(source, kinds=kinds) if FLOATS.issuperset(kinds) else None
        if node.op_type == "Transpose":
            return replace(source, index=source.index.transpose(attrs.get("perm")))
        return replace(source, index=source.index.reshape(self.model.shapes[name]))

    def alone(self, name: str) -> bool:
        """Whether one node alone reads a tensor, and those it is moved from, back to an initializer that no caller replaces."""
        if name in self.outputs | self.offered or len(self.consumers.get(name, [])) != 1:
            return False
        return name in self.model.weights or self.alone(self.producer[name].input[0])

    def layer(self, reader: Reader) -> Layer | str:
        """Describe one reader, or say why it cannot be refitted."""
        node = self.producer[reader.node]
        weight = self.stored(reader.w)
        if node.domain not in {"", "ai.onnx"}:
            return "it is fused with what follows"
        if weight is None:
            return "its weight is computed in the graph"
        if not self.alone(reader.w):
            return "its weight is shared: something else reads it too, or it is an input"
        if _left(reader, node) and len(self.model.shapes[reader.x]) != 3:
            return ODD
        attrs = attributes(node)
        if node.op_type == "Gemm" and (attrs.get("alpha", 1.0) != 1.0 or attrs.get("beta", 1.0) != 1.0):
            return "it scales its operands"
        return self._described(reader, node, weight, attrs)

    def _described(self, reader: Reader, node: onnx.NodeProto, weight: Stored, attrs: dict[str, Any]) -> Layer | str:
        spatial = node.op_type in {"Conv", "ConvTranspose"}
        left = _left(reader, node)
        window: Window | None = POINTS if left else Window()
        if spatial:
            index = _kernel(node.op_type, attrs, weight.index)
            sizes = (self.model.shapes[name][2:] for name in (reader.x, reader.node))
            window = _window(node.op_type, attrs, weight.index.shape[2:], *sizes)
        else:
            index = _matrix(node.op_type, attrs, weight.index.T if left else weight.index)
        if window is None:
            return "its padding is unusual"
        outputs = index.shape[0] * index.shape[1]
        found = self._bias(node, outputs, (outputs, 1) if left else (outputs,))
        if found is None:
            return FOREIGN
        output, bias, addable = found
        return Layer(
            reader.node, output, reader.x, not (spatial or left), replace(weight, index=index), bias, addable, window,
            reader.inputs, reader.outputs, reader.whole,
        )  # fmt: skip

    def _bias(
        self, node: onnx.NodeProto, outputs: int, shape: tuple[int, ...]
    ) -> tuple[str, Stored | None, bool] | None:
        """The biased output, where the bias lies and whether one may be added; None where one is added that cannot be written.

        What is added to a MatMul is a bias where it ends in this shape.
        """
        if node.op_type != "MatMul":
            if len(node.input) < 3 or not node.input[2]:
                return node.output[0], None, True
            if node.op_type == "Gemm" and self.model.shapes.get(node.input[2], ())[-1:] != (outputs,):
                return None
            bias = self._vector(node.input[2], outputs)
            return None if bias is None else (node.output[0], bias, False)
        users = self.consumers.get(node.output[0], [])
        if len(users) != 1 or users[0].op_type != "Add" or node.output[0] in self.outputs:
            return node.output[0], None, False
        other = next((n for n in users[0].input if n != node.output[0]), "")
        fits = self.model.shapes.get(other, ())[-len(shape) :] == shape
        bias = self._vector(other, outputs) if fits else None
        return (users[0].output[0] if bias else node.output[0]), bias, False

    def _vector(self, name: str, length: int) -> Stored | None:
        """A bias that one node alone reads, one number per output."""
        found = self.stored(name)
        if found is None or found.index.size != length or not self.alone(name):
            return None
        return replace(found, index=found.index.ravel())


def _left(reader: Reader, node: onnx.NodeProto) -> bool:
    """Whether a product's weight stands on the left: channels are the last axis but one."""
    return node.op_type == "MatMul" and reader.w == node.input[0]


def _matrix(kind: str, attrs: dict[str, Any], index: np.ndarray) -> np.ndarray:
    """(1, outputs, inputs, 1), of a product's weight."""
    return (index if kind == "Gemm" and attrs.get("transB") else index.T)[None, :, :, None]


def _kernel(kind: str, attrs: dict[str, Any], index: np.ndarray) -> np.ndarray:
    """(groups, outputs, inputs, taps), of a convolution's weight."""
    if kind == "Conv":
        groups = int(attrs.get("group", 1))
        return index.reshape(groups, len(index) // groups, index.shape[1], -1)
    flipped = index[(slice(None), slice(None), *(slice(None, None, -1),) * (index.ndim - 2))]
    return flipped.swapaxes(0, 1).reshape(1, index.shape[1], index.shape[0], -1)


def _window(
    kind: str, attrs: dict[str, Any], kernel: tuple[int, ...], space: tuple[int, ...], out: tuple[int, ...]
) -> Window | None:
    """Geometry from a node's attributes; None where it does not give the output that the model has."""
    d = len(kernel)

    def ints(name: str, default: int, count: int) -> tuple[int, ...]:
        return tuple(int(v) for v in attrs.get(name, [default] * count))

    strides, dilations = ints("strides", 1, d), ints("dilations", 1, d)
    reach = [(k - 1) * s + 1 for k, s in zip(kernel, dilations, strict=True)]
    auto = attrs.get("auto_pad", b"NOTSET")
    pads = ints("pads", 0, 2 * d)
    if kind == "ConvTranspose":
        if auto not in {b"NOTSET", b"VALID"} or attrs.get("output_shape"):
            return None
        extra = ints("output_padding", 0, d)
        before = tuple(r - 1 - p for r, p in zip(reach, pads[:d], strict=True))
        after = tuple(r - 1 - p + e for r, p, e in zip(reach, pads[d:], extra, strict=True))
        window = Window(kernel, (1,) * d, dilations, before + after, strides)
    else:
        if auto in {b"SAME_UPPER", b"SAME_LOWER"}:
            total = [max((o - 1) * s + r - i, 0) for o, s, r, i in zip(out, strides, reach, space, strict=True)]
            small = tuple(t // 2 for t in total)
            large = tuple(t - t // 2 for t in total)
            pads = small + large if auto == b"SAME_UPPER" else large + small
        window = Window(kernel, strides, dilations, pads, (1,) * d)
    return window if window.outputs(space) == tuple(out) else None
