"""A graph read as a torch module: the same numbers as onnxruntime, and gradients besides."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from onnx_amc.errors import DataError, ModelError
from onnx_amc.graph.load import FLOATS, MOVES
from onnx_amc.graph.proto import answers, attributes, drop, last_uses, names_read, offered, opset_of, set_nodes
from onnx_amc.recover import ops_layer, ops_math, ops_shape
from onnx_amc.recover.call import TABLE, Call, UnreadableError
from onnx_amc.recover.layout import held_by_pixel, is_by_pixel
from onnx_amc.run.check import apart
from onnx_amc.run.session import open_session, run_session

READ = (ops_layer, ops_math, ops_shape)
"""Modules that fill the table when they are imported."""

WEIGHTS = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1), "BatchNormalization": (1, 2), "PRelu": (1,),
    "LayerNormalization": (1, 2), "RMSNormalization": (1,), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2),
}  # fmt: skip
"""Inputs of operators that hold what training may change, if they are initializers; and what `followers` finds behind products."""


SMALLEST = 0.1
"""Size of a channel's weights, relative to the whole tensor's, at least."""

FEW = 8
"""Elements of a float constant, at most, that is kept where it can be read without waiting, as those of whole numbers are."""

WITHOUT = "the model is delivered without recovery"

APART = 1e-2
"""Difference between torch and onnxruntime, relative to the largest output, that no rounding makes."""

TINY = 1e-2
"""Size of a bias, at least, where that of the weights beside it is usual: one of zero has to be able to move."""

BESIDE = 1e3
"""How many times as large these may be, at most."""


class Reading(nn.Module):
    """Computes a graph in torch.

    Args:
        proto: The graph; initializers and Constant nodes hold its constants.
        where: What to call it in messages.
        copies: Sets of initializers that are to stay equal: each is one weight, or none where one of them is not trained.

    Raises:
        ModelError: An operator that is not in the table.

    """

    def __init__(self, proto: onnx.ModelProto, where: str = "model", copies: Collection[Collection[str]] = ()) -> None:
        super().__init__()
        self.where = where
        self._nodes = [(node, attributes(node)) for node in proto.graph.node]
        self._opset = opset_of(proto)
        odd = sorted({_title(n) for n in proto.graph.node if not _known(n)})
        if odd:
            raise ModelError(f"torch has no reading of {', '.join(odd)}", where=where, fix=WITHOUT)
        self.outputs = [o.name for o in proto.graph.output]
        trained, first = trainable(proto), dict[str, str]()
        for names in copies:
            if trained.issuperset(names):
                first |= dict.fromkeys(names, min(names))
            else:
                trained.difference_update(names)
        floors = _floors(proto)
        kernels = {node.input[1] for node in proto.graph.node if node.op_type == "Conv"}
        self.weights = nn.ParameterDict()
        self._names: dict[str, str] = {}
        self._host: dict[str, Tensor] = {}
        keys: dict[str, str] = {}
        for i, tensor in enumerate(proto.graph.initializer):
            key = self._names[tensor.name] = keys.setdefault(first.get(tensor.name, tensor.name), f"t{i}")
            if key != f"t{i}":
                continue
            value = _tensor(tensor, where)
            if tensor.name in trained and bool(value.isfinite().all()):  # infinity is a mask, not a bias
                floor = floors.get(tensor.name, TINY)
                scale = scale_of(value, by_channel=tensor.name in kernels, floor=floor)
                self.register_buffer(f"s{i}", scale)
                self.weights[f"t{i}"] = nn.Parameter(value / scale)
            elif value.is_floating_point() and value.numel() > FEW:
                self.register_buffer(f"t{i}", value)
            else:
                self._host[f"t{i}"] = value
        self._last = last_uses(proto)

    def hold(self, proto: onnx.ModelProto, feed: Mapping[str, np.ndarray], sent: Mapping[str, Tensor]) -> None:
        """Hold what torch computes against onnxruntime: no table of operators knows all their uses.

        Args:
            proto: The graph.
            feed: A few samples.
            sent: The same in torch.

        Raises:
            ModelError: They differ, or onnxruntime cannot compute it for these samples.

        """
        expected = in_onnxruntime(proto, self.outputs, self.where, once=True)(feed)
        with torch.no_grad():
            found = self(sent)
        for name, goal in zip(self.outputs, expected, strict=True):
            whole = goal.dtype.kind == "f" and np.isfinite(goal).all()
            if whole and apart(goal, found[name].cpu().numpy()) > APART:
                raise ModelError(
                    f"torch computes the output '{name}' otherwise than onnxruntime",
                    where=self.where,
                    fix=WITHOUT,
                )

    def initializer(self, name: str) -> Tensor:
        """The present value of an initializer."""
        key = self._names[name]
        if key in self._host:
            return self._host[key]
        return self.weights[key] * self.get_buffer(f"s{key[1:]}") if key in self.weights else self.get_buffer(key)

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """What training changes: initializers in units of their size, with their names; copies share one."""
        return [(name, self.weights[key]) for name, key in self._names.items() if key in self.weights]

    def trained(self) -> dict[str, np.ndarray]:
        """The present contents of the initializers that training changes."""
        return {name: self.initializer(name).detach().cpu().contiguous().numpy() for name, _ in self.named()}

    def forward(self, feed: Mapping[str, Tensor], wanted: Collection[str] = ()) -> dict[str, Tensor]:
        """Return the graph's outputs, and any other tensors that are wanted, by name.

        Raises:
            ModelError: A use of an operator that torch cannot repeat.

        """
        wanted = {*self.outputs, *wanted}
        held = {name: value for name, value in feed.items() if name not in self._names}
        for i, (node, attrs) in enumerate(self._nodes):
            args = tuple(self._value(name, held) for name in node.input)
            call = Call(node.op_type, attrs, args, sum(bool(o) for o in node.output), self._opset)
            try:
                found = TABLE[node.op_type](call)
            except (UnreadableError, RuntimeError, TypeError, IndexError, KeyError, ValueError) as error:
                text = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ModelError(
                    f"torch cannot compute node '{node.name or node.output[0]}' ({node.op_type}): {text}",
                    where=self.where,
                    fix=WITHOUT,
                ) from error
            results = (found,) if isinstance(found, Tensor) else tuple(found)
            if node.op_type != "Transpose" and any(map(is_by_pixel, args)):
                results = tuple(map(held_by_pixel, results))
            held |= {name: value for name, value in zip(node.output, results, strict=False) if name}
            for name in {*node.input, *node.output}:
                if self._last.get(name, -1) <= i and name not in wanted:
                    held.pop(name, None)
        return {name: held[name] if name in held else self.initializer(name) for name in wanted}

    def _value(self, name: str, held: Mapping[str, Tensor]) -> Tensor | None:
        if not name:
            return None
        return held[name] if name in held else self.initializer(name)


def in_onnxruntime(
    proto: onnx.ModelProto, names: Sequence[str], where: str, *, threads: int | None = None, once: bool = False
) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
    """What onnxruntime computes of a graph; it raises a ModelError where samples do not go through together."""
    session = open_session(proto, threads=threads, once=once, where=where)

    def answers(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return run_session(session, names, feed, where=where)
        except DataError as error:  # of a fixed batch that constants inside the graph insist on
            count = max((len(value) for value in feed.values() if value.ndim), default=0)
            raise ModelError(f"with {count} samples at a time, {error.what}", where=where, fix=WITHOUT) from error

    return answers


def _tensor(tensor: onnx.TensorProto, where: str) -> Tensor:
    """An initializer in torch; ModelError for a type that is not known there."""
    array = np.array(numpy_helper.to_array(tensor))
    if tensor.data_type == onnx.TensorProto.BFLOAT16:  # numpy has it from elsewhere, and torch does not know that one
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        kind = "text" if array.dtype.hasobject else f"{array.dtype}"
        raise ModelError(f"torch has no reading of the {kind} in '{tensor.name}'", where=where, fix=WITHOUT) from error


def scale_of(value: Tensor, *, by_channel: bool, floor: float = TINY) -> Tensor:
    """The size of a weight, of each output channel of a convolution's, as a power of two: dividing by it loses no bit.

    Adam's steps are as large for small weights as for large ones. Where a BatchNormalization was folded into a convolution, the
    sizes of its channels differ by orders of magnitude, and steps that are right for one destroy another.
    """
    whole = float(value.square().mean().sqrt())
    size = torch.full((1,) * value.ndim, whole)
    if by_channel and value.ndim > 1:
        size = value.square().mean(dim=tuple(range(1, value.ndim)), keepdim=True).sqrt()
    return torch.exp2(torch.log2(size.clamp_min(max(SMALLEST * whole, floor))).round())


def _floors(proto: onnx.ModelProto) -> dict[str, float]:
    """By initializer what its size is at least: `TINY`, but no more than its layer's weights have, and not far less."""
    stored = {t.name: t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    found: dict[str, float] = {}
    for node in proto.graph.node:
        names = [name for name in _weights(node) if name in stored]
        if names:
            square = np.square(numpy_helper.to_array(stored[names[0]]), dtype=np.float64).mean()
            size = float(np.sqrt(square)) or TINY
            floor = float(np.clip(TINY, size / BESIDE, size)) if np.isfinite(size) else TINY
            found |= {name: min(found.get(name, floor), floor) for name in names}
    for name, weight in followers(proto, "Add"):
        floor = found.get(weight, TINY)
        found[name] = min(found.get(name, floor), floor)
    return found


def followers(proto: onnx.ModelProto, *kinds: str) -> list[tuple[str, str]]:
    """Initializers that nodes of these kinds, Add and Mul, apply to the outputs of a product with a weight, each with that weight.

    They have a number for each output, as the bias of a MatMul has, or a BatchNormalization that was not folded. What is added to a
    MatMul at once is a bias where it is any vector. A scale and then a shift along one and the same axis of any activation count
    too, with the scale: that is a normalisation that was not folded.
    """
    stored = {t.name: list(t.dims) for t in proto.graph.initializer}
    floats = {t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    fixed, found = {"", *stored}, list[tuple[str, str]]()
    products: dict[str, tuple[str, int, bool]] = {}
    scaled: dict[str, str] = {}
    given = {i.name for i in proto.graph.input}
    for node in proto.graph.node:
        if node.input and fixed.issuperset(node.input):
            fixed.update(node.output)
        weight = next((n for n in reversed(node.input[:2]) if n in fixed), None)
        fed = next((n for n in node.input if n in products), None)
        if node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"} and weight is not None:
            dims = stored.get(weight, []) if weight == node.input[1] else []
            products[node.output[0]] = weight, _outputs(node, dims), node.op_type == "MatMul"
        elif fed is not None and node.op_type in MOVES:
            products[node.output[0]] = *products[fed][:2], False
        elif fed is not None and node.op_type in {"Add", "Mul"}:
            name = next((n for n in node.input if n != fed), "")
            weight, outputs, bare = products[fed]
            size = math.prod(stored.get(name, ()))
            vector = bare and node.op_type == "Add" and size == math.prod(stored.get(name, [])[-1:])
            if name in floats and (size == outputs > 1 or vector):
                found += [(name, weight)] if node.op_type in kinds else []
                products[node.output[0]] = weight, outputs, False
        elif node.op_type == "Mul" and given.isdisjoint(node.input):  # what scales an input is no part of the network
            names = [n for n in node.input if n in floats and sum(d > 1 for d in stored[n]) == 1]
            scaled |= dict.fromkeys(node.output[: len(names)], names[0] if names else "")
        elif node.op_type == "Add" and (scale := next((scaled[n] for n in node.input if n in scaled), None)):
            names = [n for n in node.input if n in floats and stored[n] == stored[scale]]
            found += [(n, scale) for n in names] if "Add" in kinds else []
            found += [(scale, scale)] if names and "Mul" in kinds else []
    return found


def _outputs(product: onnx.NodeProto, dims: Sequence[int]) -> int:
    """How many outputs a product has by its weight's shape; 0 where it has none."""
    attrs = attributes(product)
    if not dims:
        return 0
    if product.op_type == "ConvTranspose":
        return int(dims[1] * attrs.get("group", 1))
    return int(dims[0 if product.op_type == "Conv" or attrs.get("transB") else -1])


def trainable(proto: onnx.ModelProto) -> set[str]:
    """Names of the float initializers that hold weights and biases.

    What is added to a product is a bias only where the product is one by a weight: a mask of an attention is none.
    Nor is what a normalisation takes for its mean or variance too: torch has no gradient for it. What is an output of the graph, or
    what such an output is calculated from alone, somebody reads as it is; what is offered as an input too, somebody may replace.
    """
    floats = {t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    fixed = {"", *(t.name for t in proto.graph.initializer)}
    found = {name for name, _ in followers(proto, "Add", "Mul")}
    sources: dict[str, Sequence[str]] = {}
    for node in proto.graph.node:
        if node.input and fixed.issuperset(node.input):
            fixed.update(node.output)
            sources |= dict.fromkeys(node.output, node.input)
        found |= floats.intersection(_weights(node))
    told = [o.name for o in proto.graph.output]
    for name in told:  # grows meanwhile
        told += sources.pop(name, ())
    return found.difference(
        told, offered(proto), *(n.input[3:] for n in proto.graph.node if n.op_type == "BatchNormalization")
    )


def _weights(node: onnx.NodeProto) -> list[str]:
    """What training may change of a node's inputs, if they are initializers."""
    return [node.input[i] for i in WEIGHTS.get(node.op_type, ()) if i < len(node.input)]


def lighten(proto: onnx.ModelProto) -> None:
    """Drop the outputs that are no numbers to train towards and that torch cannot compute, in place, with all that only they need.

    A classifier's class by name, or its maps of probabilities by class, whose tensor stays.
    """
    types = {o.name: o.type.tensor_type.elem_type for o in proto.graph.output}
    dark, kept = set[str](), answers(proto)
    for node in proto.graph.node:
        if not _known(node) or not dark.isdisjoint(names_read(node)):
            dark.update(node.output)
    if not dark or any(types.get(name, onnx.TensorProto.FLOAT) in FLOATS for name in dark.intersection(kept)):
        return
    kept = [name for name in kept if name not in dark]
    if not kept:
        return
    needed, nodes = set(kept), list[onnx.NodeProto]()
    for node in reversed(proto.graph.node):
        if not needed.isdisjoint(node.output):
            needed |= names_read(node)
            nodes.insert(0, node)
    told = {o.name: deepcopy(o) for o in proto.graph.output}
    outputs = [told.get(name, onnx.ValueInfoProto(name=name)) for name in kept]
    set_nodes(proto.graph, nodes)
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
    drop(proto.graph.initializer, lambda stored: stored.name not in needed)


def _known(node: onnx.NodeProto) -> bool:
    return node.domain in {"", "ai.onnx"} and node.op_type in TABLE


def _title(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in {"", "ai.onnx"} else node.op_type
