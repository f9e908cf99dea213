"""Weights with many zeros, stored so that the file shrinks and onnxruntime still loads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_amc.graph import cost, light
from onnx_amc.graph.functions import inlined
from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.load import FLOATS

SPARSE_IR = 6
"""Version of the file format from which a graph may hold sparse initializers."""

ENVELOPE = 32
"""Bytes that a sparse tensor takes besides its numbers, about."""


def bytes_left(counts: np.ndarray, sizes: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Bytes of tensors of which so many elements are not zero, each in the form that is smaller, int of the shape of `counts`.

    The positions are whole numbers of one to five bytes (seven bits a byte); they are taken to be spread evenly.

    Args:
        counts: int (..., tensors), elements that are not zero.
        sizes: int (tensors,), elements.
        widths: int (tensors,), bytes of an element.

    """
    bounds = 2.0 ** (7 * np.arange(1, 5))
    mean = 1 + np.maximum(1 - bounds[:, None] / np.maximum(sizes, 1), 0).sum(axis=0)
    sparse = np.ceil(counts * (widths + mean)).astype(np.int64) + ENVELOPE
    return np.asarray(np.minimum(sparse, sizes * widths))


def store(model: onnx.ModelProto, names: frozenset[str]) -> int:
    """Make initializers sparse, in place, where that is smaller; return how many.

    The positions lie in `int64_data`, where protobuf writes small numbers in few bytes. With eight bytes for each, as raw data has,
    a fifth of the weights would take three fifths of the bytes.

    Args:
        model: What to change; below version 6 of the format it stays as it is.
        names: Initializers, or outputs of Constant nodes, which then become initializers.

    """
    graph, inputs = model.graph, {i.name for i in model.graph.input}
    if model.ir_version < SPARSE_IR:
        return 0
    found: list[onnx.SparseTensorProto] = []
    for i in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[i]
        sparse = _sparse(tensor, tensor.name) if tensor.name in names - inputs else None
        if sparse is not None:
            found.insert(0, sparse)
            del graph.initializer[i]
    for i in reversed(range(len(graph.node))):
        node = graph.node[i]
        if node.op_type == "Constant" and node.output[0] in names and node.attribute[0].HasField("t"):
            sparse = _sparse(node.attribute[0].t, node.output[0])
            if sparse is not None:
                found.append(sparse)
                del graph.node[i]
    graph.sparse_initializer.extend(found)
    return len(found)


def _sparse(tensor: onnx.TensorProto, name: str) -> onnx.SparseTensorProto | None:
    """The tensor by its elements that are not zero; None where that is no smaller."""
    array = numpy_helper.to_array(tensor)
    flat = array.reshape(-1)
    places = np.flatnonzero(flat)
    sparse = onnx.SparseTensorProto(dims=array.shape)
    sparse.values.CopyFrom(numpy_helper.from_array(flat[places], name))
    sparse.indices.data_type = onnx.TensorProto.INT64
    sparse.indices.dims.append(len(places))
    sparse.indices.int64_data.extend(places.tolist())
    return sparse if sparse.ByteSize() < tensor.ByteSize() else None


def can_be_sparse(model: onnx.ModelProto, name: str) -> bool:
    """Whether `store` may make an initializer sparse: the format knows that, and the caller cannot give another in its place."""
    return model.ir_version >= SPARSE_IR and all(i.name != name for i in model.graph.input)


def bytes_now(model: onnx.ModelProto, tensors: Mapping[str, onnx.TensorProto]) -> np.ndarray:
    """Bytes that tensors take in a model as it came, int (tensors,), counted as by `bytes_left`.

    Args:
        model: The model, where some may be sparse.
        tensors: The same ones written out, by name.

    """
    sparse = {s.values.name: s for s in model.graph.sparse_initializer}
    dense = {name: light.data_length(tensor) for name, tensor in tensors.items()}
    return np.array([_bytes(sparse[n]) if n in sparse else dense[n] for n in tensors], dtype=np.int64)


def _bytes(sparse: onnx.SparseTensorProto) -> int:
    """Of a sparse tensor, less what a dense one takes besides its numbers too."""
    return int(sparse.ByteSize() - sparse.values.ByteSize() + light.data_length(sparse.values))


def elements(model: onnx.ModelProto, beside: Sequence[onnx.TensorProto] = ()) -> int:
    """Elements of the float initializers, those of sparse ones included that are zero, and of the tensors beside them."""
    held = [t for t in model.graph.initializer if t.data_type in FLOATS]
    return sum(int(np.prod(t.dims)) for t in (*held, *model.graph.sparse_initializer, *beside))


def nonzeros(model: onnx.ModelProto, beside: Sequence[onnx.TensorProto] = ()) -> int:
    """How many of them are not zero."""
    held = [*model.graph.initializer, *(s.values for s in model.graph.sparse_initializer), *beside]
    return sum(int(np.count_nonzero(numpy_helper.to_array(t))) for t in held if t.data_type in FLOATS)


def in_nodes(model: onnx.ModelProto, analysis: Analysis) -> list[onnx.TensorProto]:
    """Parameters that a model, as it is written, has in Constant nodes."""
    counted, nodes = cost.parameters(analysis.model), inlined(model, analysis.model.source).graph.node
    return [counted[o] for n in nodes if n.op_type == "Constant" for o in n.output if o in counted]
