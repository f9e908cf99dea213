"""Read a model, check it, and bring it into the one form that the analysis works on.

Nothing of what the user wrote is lost: the graph is edited in place, so metadata, doc strings, domains, opsets and names stay.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from onnx_amc.errors import ModelError
from onnx_amc.graph import light
from onnx_amc.graph.examine import check_inputs, check_selections, check_whole
from onnx_amc.graph.fold import QUANTISED, Dims, fold
from onnx_amc.graph.functions import inlined
from onnx_amc.graph.limits import LARGEST_INPUT, is_huge, too_large
from onnx_amc.graph.mend import mend
from onnx_amc.graph.outside import fetch, scattered
from onnx_amc.graph.proto import (
    all_read,
    attributes,
    declare_stored,
    defaults,
    drop,
    key_of,
    names_of,
    names_read,
    opset_of,
    set_nodes,
    unused,
)
from onnx_amc.graph.shapes import concrete_shapes, other_shapes

FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
)
MOVES = frozenset({"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators behind which a weight is a weight still."""

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

Source = str | os.PathLike[str] | onnx.ModelProto


@dataclass(frozen=True)
class Model:
    """A checked model in normal form.

    Args:
        proto: Constants are initializers, size arithmetic is folded, accidental sharing undone. Owned: never change it.
        original: The model as it came.
        source: Where it came from, for messages.
        digest: SHA-256 of the original's file; None where it came from none.
        bytes: Length of the original's serialisation, external data included.
        external: Whether the original keeps weights in files of their own.
        sizes: Shapes of the inputs for one sample, where they were given.
        shapes: Every tensor's shape for one sample (batch 1).
        others: Shapes at another batch and length, of those tensors for which inference tells them.
        origin: For each initializer that was split off a shared one: the original's name and the user it serves.
        lifted: Constant nodes that became initializers, by output; they are nodes again in what is delivered. Not among them are
            the weights of a model that has none in initializers.
        made: Initializers of `proto` that the original has under no name: folded, or from inside a function.
        weights: The initializers of `proto` by name.

    """

    proto: onnx.ModelProto
    original: onnx.ModelProto
    source: str
    digest: str | None
    bytes: int
    external: bool
    sizes: Mapping[str, tuple[int, ...]]
    shapes: dict[str, tuple[int, ...]]
    others: dict[str, tuple[int, ...]]
    origin: dict[str, tuple[str, str]]
    lifted: dict[str, onnx.NodeProto]
    made: frozenset[str]
    weights: dict[str, onnx.TensorProto] = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        """Of the original's file, and then of the weights that it keeps beside it."""
        return self.digest or _sha256(self.original)

    def value(self, name: str) -> np.ndarray:
        """The array of an initializer."""
        return numpy_helper.to_array(self.weights[name])

    @cached_property
    def defaults(self) -> frozenset[str]:
        """Initializers for which a caller may give others."""
        return frozenset(defaults(self.proto))

    def constant(self, name: str) -> np.ndarray | None:
        """The array of an initializer for which no caller may give another; None for any other tensor."""
        return self.value(name) if name in self.weights and name not in self.defaults else None

    def bounds(self, clip: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray] | None:
        """Lowest and highest value that a Clip lets through; None where they are computed in the graph."""
        attrs, given = attributes(clip), [*clip.input, "", ""][1:3]
        low, high = (
            self.constant(name) if name else np.asarray(attrs.get(key, default))
            for name, key, default in zip(given, ("min", "max"), (-np.inf, np.inf), strict=True)
        )
        return None if low is None or high is None else (low, high)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return opset_of(self.proto)

    @cached_property
    def producer(self) -> dict[str, onnx.NodeProto]:
        """The node that makes each tensor."""
        return {o: n for n in self.proto.graph.node for o in n.output if o}

    @cached_property
    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes that read each tensor, as often as they do."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.proto.graph.node:
            for name in (*node.input, *names_read(node).difference(node.input)):
                found.setdefault(name, []).append(node)
        return found

    def length(self, name: str, axis: int) -> int | None:
        """Of an axis that is as long for every input; None where it is not, or not known."""
        shape = self.shapes.get(name)
        if shape is None or not -len(shape) <= axis < len(shape):
            return None
        again = shape if name in self.weights or not self.others else self.others.get(name)
        return shape[axis] if again is not None and again[axis] == shape[axis] else None


def load(source: Source, sizes: Mapping[str, tuple[int, ...]] | None = None) -> Model:
    """Read and normalise a model, of any size.

    Args:
        source: Its path, or the model.
        sizes: Shapes of the inputs for one sample; None for the usual ones (see `concrete_shapes`).

    Raises:
        ModelError: No such file, not ONNX, truncated, invalid, or not to be run by onnxruntime.

    """
    return sized(read(source), sizes or {})


def read(source: Source) -> Model:
    """As `load`, but without any shapes: they may wait for the data."""
    original, where, digest, external = _read(source)
    proto = deepcopy(original)
    mend(proto, where)
    check_whole(proto, where)
    check_inputs(proto, where)
    proto = inlined(proto, where)
    densify(proto)
    lifted = _lift_constants(proto)
    _adopt(proto, lifted)
    fold(proto, where)
    origin = _unshare(proto, original)
    _drop_unused(proto)
    return Model(
        proto=proto,
        original=original,
        source=where,
        digest=digest,
        bytes=light.size(original),
        external=external,
        sizes={},
        shapes={},
        others={},
        origin=origin,
        lifted=lifted,
        made=_made(proto, original, origin),
        weights={t.name: t for t in proto.graph.initializer},
    )


def sized(model: Model, sizes: Mapping[str, tuple[int, ...]]) -> Model:
    """Give a model its shapes."""
    shapes = concrete_shapes(model.proto, sizes)
    found = replace(model, sizes=sizes, shapes=shapes, others=other_shapes(model.proto, shapes))
    check_selections(found)
    return found


def refolded(model: Model, lengths: Mapping[str, Dims]) -> Model:
    """A model whose sizes that are the same in every run, by these lengths of axes, are constants."""
    proto = deepcopy(model.proto)
    fold(proto, model.source, lengths)
    _drop_unused(proto)
    made = _made(proto, model.original, model.origin)
    return replace(model, proto=proto, made=made, weights={t.name: t for t in proto.graph.initializer})


def _made(proto: onnx.ModelProto, original: onnx.ModelProto, origin: dict[str, tuple[str, str]]) -> frozenset[str]:
    """Initializers that a plan cannot name to somebody who has the original file alone."""
    known = {t.name for t in original.graph.initializer} | {t.values.name for t in original.graph.sparse_initializer}
    known |= {o for n in original.graph.node if n.op_type == "Constant" for o in n.output}
    return frozenset(t.name for t in proto.graph.initializer if origin.get(t.name, (t.name, ""))[0] not in known)


def true_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs a caller must give: up to IR 3 initializers are listed among the inputs as well."""
    known = {t.name for t in proto.graph.initializer}
    return [i for i in proto.graph.input if i.name not in known]


def _read(source: Source) -> tuple[onnx.ModelProto, str, str | None, bool]:
    """The model, what to call it, the sha256 of its files if it has any, and whether weights lie in other files."""
    if isinstance(source, onnx.ModelProto):
        model = deepcopy(source)
        where = source.graph.name or "model"
        if scattered(model):
            raise ModelError(
                "its weights lie in files and are not loaded", where=where, fix="give onnx.load(PATH), or the path"
            )
        return model, where, None, False
    path = Path(source)
    try:
        payload = path.read_bytes()
    except OSError as error:
        what = "no such file" if error.errno == errno.ENOENT else f"cannot be read: {error.strerror}"
        raise ModelError(what, where=str(path), fix="give the path of an existing .onnx file") from error
    try:
        model = onnx.load_model_from_string(payload)
    except (DecodeError, ValueError) as error:
        raise ModelError(
            f"not an ONNX model, or a truncated one ({len(payload)} bytes): {str(error).splitlines()[0]}",
            where=str(path),
            fix="export or download the file again; it must load with onnx.load",
        ) from error
    digest, outside = hashlib.sha256(payload), scattered(model)
    external = fetch(model, path.parent, str(path))
    for tensor in outside:
        digest.update(tensor.raw_data)
    return model, str(path), digest.hexdigest(), external


def _sha256(model: onnx.ModelProto) -> str:
    """Of the file that the model would be; above 2 GB, where it cannot be one, of its graph and then its weights."""
    if light.size(model) < light.LARGEST:
        return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    bare, heavy = light.stripped(model)
    digest = hashlib.sha256(bare.SerializeToString(deterministic=True))
    for tensor in heavy:
        digest.update(tensor.raw_data)
    return digest.hexdigest()


def _adopt(proto: onnx.ModelProto, lifted: dict[str, onnx.NodeProto]) -> None:
    """Let constants be initializers for good where an exporter has written all weights so: as parameters they count.

    Other constants that are nodes, such as bounds, scales and sizes, are none.
    """
    floats = {t.name for t in proto.graph.initializer if t.data_type in FLOATS}
    weights, biases = set[str](), set[str]()
    for node in reversed(proto.graph.node):
        if node.op_type in WEIGHTED or (node.op_type in MOVES and not weights.isdisjoint(node.output)):
            weights.update(node.input[:2])
            biases.update(node.input[2:])
    if floats & weights <= lifted.keys():
        for name in floats & (weights | biases) & lifted.keys():
            del lifted[name]


def _lift_constants(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Turn Constant nodes into initializers, in place: one kind of constant is enough."""
    nodes, lifted = [], {}
    for node in proto.graph.node:
        tensor = _constant_value(node)
        if tensor is None:
            nodes.append(node)
            continue
        tensor.name = node.output[0]
        lifted[tensor.name] = deepcopy(node)
        proto.graph.initializer.append(tensor)
    set_nodes(proto.graph, nodes)
    declare_stored(proto)
    return lifted


def densify(proto: onnx.ModelProto) -> None:
    """Write sparse initializers out: a cut of their indices would be one more thing to get wrong."""
    for sparse in proto.graph.sparse_initializer:
        values = numpy_helper.to_array(sparse.values)
        indices = numpy_helper.to_array(sparse.indices)
        if math.prod(sparse.dims) > LARGEST_INPUT or is_huge(sparse.dims) or min(sparse.dims, default=0) < 0:
            raise too_large(sparse.values.name, tuple(sparse.dims))
        dense = np.zeros(list(sparse.dims), dtype=values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        proto.graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del proto.graph.sparse_initializer[:]


def _constant_value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.domain not in {"", "ai.onnx"} or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor: onnx.TensorProto = deepcopy(attribute.t)
        return tensor
    if attribute.name in {"value_int", "value_ints"}:
        return numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), dtype=np.int64))
    if attribute.name in {"value_float", "value_floats"}:
        return numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), dtype=np.float32))
    return None


def _unshare(proto: onnx.ModelProto, original: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Give each user its own copy of a vector or a constant fill that exporters store once; a shared matrix is a true tie.

    All nodes that came out of one call are one user: a plan can name the call alone.
    """
    calls = _calls(proto, original)
    users = {key_of(node): calls.get(key_of(node), key_of(node)) for node in proto.graph.node}
    pairs = {(name, users[key_of(node)]) for node in proto.graph.node for name in node.input if name}
    uses = Counter(name for name, _ in pairs)
    offsets = {n.input[2] for n in proto.graph.node if n.op_type in QUANTISED and len(n.input) > 2}
    shared = {
        t.name: t
        for t in proto.graph.initializer
        if uses[t.name] > 1 and (t.data_type in FLOATS or t.name in offsets) and _accidental(t)
    }
    origin: dict[str, tuple[str, str]] = {}
    held: dict[tuple[str, str], str] = {}
    taken = names_of(proto.graph)
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            if name not in shared:
                continue
            use = name, users[key_of(node)]
            if use not in held and name not in origin:
                held[use] = name
            elif use not in held:
                copy = deepcopy(shared[name])
                copy.name = held[use] = unused(f"{name}/{key_of(node)}/{i}", taken)
                proto.graph.initializer.append(copy)
            node.input[i] = held[use]
            origin[held[use]] = use
    declare_stored(proto)
    return origin


def _calls(proto: onnx.ModelProto, original: onnx.ModelProto) -> dict[str, str]:
    """For each node that came out of a local function, by its key, the key of the call in the original."""
    if not len(original.functions):
        return {}
    ours = {o: key_of(n) for n in original.graph.node for o in n.output if o}
    found: dict[str, str] = {}
    leads: dict[str, str] = {}
    for node in reversed(proto.graph.node):
        call = next((ours.get(o) or leads.get(o) for o in node.output if o in ours or o in leads), None)
        if call is not None:
            found[key_of(node)] = call
            for name in node.input:
                if name not in ours:
                    leads.setdefault(name, call)
    return found


def _accidental(tensor: onnx.TensorProto) -> bool:
    elements = int(np.prod(tensor.dims))
    if elements <= 1:
        return False
    if sum(d > 1 for d in tensor.dims) <= 1:
        return True
    values = numpy_helper.to_array(tensor)
    return bool((values == values.flat[0]).all())


def _drop_unused(proto: onnx.ModelProto) -> None:
    """Remove initializers that no node reads any more after folding."""
    unread = {t.name for t in proto.graph.initializer} - all_read(proto.graph) - defaults(proto)
    for listed in (proto.graph.initializer, proto.graph.input):
        drop(listed, lambda stored: stored.name in unread)
