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
    """A tensor that is an initializer, perhaps moved about and cast, or as it arrives behind what follows its layer alone.

    Args:
        name: The initializer.
        index: int, in the tensor's shape: the flat position in the initializer of each element.
        kinds: ONNX's types that the numbers go through, from the initializer's to the tensor's.
        scale: By what each element is multiplied on the way; None for nothing.
        offset: What is added to each element then; None for nothing.

    """

    name: str
    index: np.ndarray
    kinds: tuple[int, ...]
    scale: np.ndarray | None = None
    offset: np.ndarray | None = None

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
        output: The tensor that holds y, bias added; behind a normalisation of each output by itself, if one alone follows.
        x: The activation it reads.
        channels_last: Whether x's channels are its last axis, and y's where it is not turned; otherwise axis 1.
        weight: Where w lies; index is (groups, outputs, inputs, taps).
        bias: Where b lies, index (groups x outputs,); None where there is none.
        can_add_bias: Whether a bias may be given to the node.
        window: Geometry of the kernel.
        inputs: Tokens of the inputs, (groups, inputs); None where they cannot be cut.
        outputs: Tokens of the outputs, (groups x outputs,); None where they cannot be cut.
        whole: Whether the inputs and outputs of each group go together: no channel of it can stand in for another.
        turned: Whether a Transpose has made y's channels its last axis, which were axis 1.
        others: Where the biases of the layers lie that share its weight and for which it stands.

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
    turned: bool = False
    others: tuple[Stored, ...] = ()

    @property
    def output_axis(self) -> int:
        """The axis of the output's channels."""
        return -1 if self.channels_last or self.turned else 1

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


ONE = np.ones(1)

SHAPED = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
"""What keeps the order of the places, if the outputs stay on their axis."""

Biased = tuple[str, Stored | None, bool, np.ndarray, bool]
"""The biased output, where the bias lies, whether one may be added, by what the outputs are multiplied before it is, and whether
their channels are last by then and were not."""


def find_siblings(analysis: Analysis) -> list[list[Layer]]:
    """Layers that share one weight, which nothing else reads, and read the same channels by it: branches of a siamese network.

    The first of each stands for all, with the biases of the others; none may be given a bias that it has not.
    """
    sharing: dict[str, list[Reader]] = {}
    for reader in analysis.ledger.readers:
        sharing.setdefault(reader.w, []).append(reader)
    found: list[list[Layer]] = []
    for readers in (r for r in sharing.values() if len(r) > 1):
        finder = _Finder(analysis.model, len(readers))
        several = [finder.layer(reader) for reader in readers]
        layers = [replace(x, can_add_bias=False) for x in several if isinstance(x, Layer)]
        if len(layers) == len(readers) and all(_alike(analysis.labels, layers[0], x) for x in layers[1:]):
            others = tuple(x.bias for x in layers[1:] if x.bias is not None)
            found.append([replace(layers[0], others=others), *layers[1:]])
    return found


def _alike(labels: np.ndarray, one: Layer, other: Layer) -> bool:
    """Whether two layers of one weight read the same channels by it in the same way, and both have a bias or none."""
    mine, its = one.weight, other.weight
    scale, other_scale = (ONE if stored.scale is None else stored.scale for stored in (mine, its))
    return (
        mine.name == its.name
        and np.array_equal(mine.index, its.index)
        and np.array_equal(scale, other_scale)
        and (one.bias is None) == (other.bias is None)
        and np.array_equal(labels[one.inputs], labels[other.inputs])
    )


class _Finder:
    """Looks layers up in the graph.

    Args:
        model: That the graph is of.
        users: How many nodes read the weight of a layer.

    """

    def __init__(self, model: Model, users: int = 1) -> None:
        self.users = users
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

    def alone(self, name: str, users: int = 1) -> bool:
        """Whether so many nodes alone read a tensor, and one what it is moved from, back to what no caller replaces."""
        if name in self.outputs | self.offered or len(self.consumers.get(name, [])) != users:
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
        if not self.alone(reader.w, self.users):
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
        found = self._behind(node, outputs, last=not (spatial or left)) or self._bias(node, outputs)
        if found is None:
            return FOREIGN
        output, bias, addable, scale, turned = found
        factor = None if (scale == 1).all() else np.broadcast_to(scale, outputs).reshape(*index.shape[:2], 1, 1)
        return Layer(
            reader.node, output, reader.x, not (spatial or left), replace(weight, index=index, scale=factor), bias, addable,
            window, reader.inputs, reader.outputs, reader.whole, turned,
        )  # fmt: skip

    def _bias(self, node: onnx.NodeProto, outputs: int) -> Biased | None:
        """The node's own bias, or that it has none; None where what it adds cannot be written."""
        if len(node.input) < 3 or not node.input[2]:
            return node.output[0], None, node.op_type != "MatMul", ONE, False
        if node.op_type == "Gemm" and self.model.shapes.get(node.input[2], ())[-1:] != (outputs,):
            return None
        bias = self._vector(node.input[2], outputs)
        return None if bias is None else (node.output[0], bias, False, ONE, False)

    def _behind(self, node: onnx.NodeProto, outputs: int, *, last: bool) -> Biased | None:
        """The bias that lies in a later node, behind a scale of each output if there is one; None where none does.

        So BatchNormalizations are written that were not folded, and what is added to a MatMul.
        """
        shift = self._constant(node.input[2], outputs, -1) if len(node.input) > 2 and node.input[2] else 0.0 * ONE
        tensor, scale, matrix = node.output[0], ONE, last
        while shift is not None and len(users := self.consumers.get(tensor, [])) == 1 and tensor not in self.outputs:
            user = users[0]
            before, after = (len(self.model.shapes.get(name, ())) for name in (tensor, user.output[0]))
            axis = -1 if last else 1 - after
            other = next((n for n in user.input if n != tensor), "")
            bias, factor = None, None
            if user.op_type == "Transpose" and not last:
                last = list(attributes(user).get("perm", ())) == [0, *range(2, after), 1]
                factor = ONE if last else None
            elif user.op_type in SHAPED:
                led = last or self.model.shapes[tensor][:1] == self.model.shapes.get(user.output[0], ())[:1]
                factor = ONE if led and self.model.length(user.output[0], axis % max(after, 1)) == outputs else None
            elif before != after or after < 2:
                break
            elif user.op_type == "Add":
                bias = self._vector(other, outputs) if self._along(other, axis, outputs) else None
            elif user.op_type == "BatchNormalization" and axis == 1 - after:
                bias, factor, mean = self._normalised(user, outputs)
                shift = shift - mean
            elif user.op_type == "Mul":
                factor = self._constant(other, outputs, axis)
            if factor is not None:
                scale, shift = scale * factor, shift * factor
            if bias is not None:
                bias = replace(bias, offset=np.broadcast_to(shift, outputs)) if shift.any() else bias
                return user.output[0], bias, False, scale, last and not matrix
            if factor is None:
                break
            tensor = user.output[0]
        return None

    def _normalised(self, node: onnx.NodeProto, outputs: int) -> tuple[Stored | None, np.ndarray | None, np.ndarray]:
        """Where the shift of a BatchNormalization lies, its scale, and what it takes off before; None where it has others."""
        attrs, held = attributes(node), [self._constant(name, outputs, -1) for name in node.input[1:]]
        gamma, _, mean, variance = held
        bias = self._vector(node.input[2], outputs)
        if len(node.output) > 1 or attrs.get("training_mode") or not attrs.get("spatial", 1):
            return None, None, ONE
        if bias is None or gamma is None or mean is None or variance is None:
            return None, None, ONE
        return bias, gamma / np.sqrt(variance + attrs.get("epsilon", 1e-5)), mean

    def _along(self, name: str, axis: int, outputs: int) -> bool:
        """Whether a tensor has one number for each output, the outputs being on this axis, counted from the end."""
        shape = self.model.shapes.get(name, ())
        return len(shape) >= -axis and shape[axis] == outputs == int(np.prod(shape))

    def _constant(self, name: str, outputs: int, axis: int) -> np.ndarray | None:
        """A constant of one finite number, or of one for each output, in float64."""
        value = self.model.constant(name)
        fits = value is not None and (value.size == 1 or self._along(name, axis, outputs))
        found = np.ravel(value).astype(np.float64) if value is not None and fits else None
        return found if found is not None and np.isfinite(found).all() else None

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
