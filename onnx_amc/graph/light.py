"""Models without the weight of their weights: protobuf copies and serialises big tensors slowly, and nothing beyond 2 GB."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from onnx_amc.graph.proto import all_read

SMALL = 1024
"""Elements up to which a tensor stays in the graph: shapes must, and the rest does no harm (onnxruntime#26261)."""


LARGEST = 2**31 - 2**20
"""Bytes that protobuf can write into one file."""

PACKED = {
    kind: many
    for name, many in (("INT4", 2), ("UINT4", 2), ("FLOAT4E2M1", 2), ("INT2", 4), ("UINT2", 4))
    if (kind := getattr(onnx.TensorProto, name, None)) is not None
}
"""Types of which a byte holds several, and how many; not every version of onnx has all."""


def is_heavy(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's data is worth leaving out; NumPy cannot hold packed data as onnxruntime wants it."""
    return bool(tensor.HasField("raw_data")) and math.prod(tensor.dims) > SMALL and tensor.data_type not in PACKED


Choice = Callable[[onnx.TensorProto], bool]


def stripped(proto: onnx.ModelProto, heavy: Choice = is_heavy) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """Return a copy without the heavy initializers, and those initializers."""
    light = onnx.ModelProto()
    _copy_all_but(proto, light, "graph")
    _copy_all_but(proto.graph, light.graph, "initializer")
    left: list[onnx.TensorProto] = []
    for tensor in proto.graph.initializer:
        if heavy(tensor):
            left.append(tensor)
        else:
            light.graph.initializer.append(tensor)
    return light, left


def _copy_all_but(
    source: onnx.ModelProto | onnx.GraphProto, target: onnx.ModelProto | onnx.GraphProto, skip: str
) -> None:
    for field, value in source.ListFields():
        if field.name == skip:
            continue
        if isinstance(value, str | int | float | bytes):
            setattr(target, field.name, value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            getattr(target, field.name).CopyFrom(value)


def declared(proto: onnx.ModelProto, heavy: Choice = is_heavy) -> onnx.ModelProto:
    """Return a copy in which heavy initializers are inputs: valid, and quick to check and to infer shapes on."""
    light, left = stripped(proto, heavy)
    listed = {i.name for i in light.graph.input}
    light.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in left if t.name not in listed
    )
    return light


def size(proto: onnx.ModelProto) -> int:
    """Bytes of the model's file, its external data included."""
    light, heavy = stripped(proto)
    bare, weights = len(light.graph.SerializeToString()), sum(_bytes(t) for t in heavy)
    return len(light.SerializeToString()) + weights + _varint(bare + weights) - _varint(bare)


def _bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of one initializer in a graph: its data, and what protobuf writes before each of its lengths."""
    empty = emptied(tensor)
    data = data_length(tensor)
    inner = len(empty.SerializeToString()) + 1 + _varint(data) + data
    return inner + 1 + _varint(inner)


def emptied(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """All of a tensor but its data."""
    empty = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    if tensor.HasField("doc_string"):
        empty.doc_string = tensor.doc_string
    return empty


def data_length(tensor: onnx.TensorProto) -> int:
    """Bytes that its shape and type ask for; asking protobuf for the data itself would copy it."""
    elements: int = math.prod(tensor.dims)
    if tensor.data_type in PACKED:
        return len(tensor.raw_data) or -(-elements // PACKED[tensor.data_type])
    return width_of(tensor.data_type) * elements


def width_of(data_type: int) -> int:
    """Bytes of an element of an ONNX type."""
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _varint(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))


def externalise(
    proto: onnx.ModelProto, location: str, heavy: Choice = is_heavy
) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """Return a copy whose heavy initializers lie one after the other in the file `location`, and those initializers."""
    light, left = stripped(proto, heavy)
    offset = 0
    for tensor in left:
        empty = light.graph.initializer.add()
        empty.CopyFrom(emptied(tensor))
        empty.data_location = onnx.TensorProto.EXTERNAL
        length = data_length(tensor)
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            empty.external_data.add(key=key, value=str(value))
        offset += length
    return light, left


def check(proto: onnx.ModelProto) -> None:
    """`onnx.checker.check_model` for models of any size; as onnxruntime does, it takes outputs of unknown type or shape.

    Raises:
        onnx.checker.ValidationError: The model is not valid; the text says why.

    """
    whole = declared(proto)
    for info in whole.graph.output:
        if info.type.WhichOneof("value") is None:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for info in [*whole.graph.output, *whole.graph.value_info]:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(whole)
    for tensor in proto.graph.initializer:
        if is_heavy(tensor) and tensor.data_type not in PACKED:
            needed = data_length(tensor)
            if needed != len(tensor.raw_data):
                raise onnx.checker.ValidationError(
                    f"tensor '{tensor.name}' does not hold the {needed} bytes that its shape {list(tensor.dims)} needs"
                )


def has_external_data(source: str | Path | onnx.ModelProto) -> bool:
    """Whether a model, or the model in a file, keeps weights in files of their own."""
    proto = source if isinstance(source, onnx.ModelProto) else onnx.load(source, load_external_data=False)
    return any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer)


def session(
    proto: onnx.ModelProto,
    options: ort.SessionOptions,
    provider: str = "CPUExecutionProvider",
    extra: Iterable[str] = (),
) -> ort.InferenceSession:
    """Open a model in onnxruntime without serialising its weights.

    Args:
        proto: The model.
        options: Of the session; the weights are added to them.
        provider: Execution provider.
        extra: Tensors to make outputs as well.

    """
    used = all_read(proto.graph)
    light, heavy = externalise(proto, "weights", lambda t: is_heavy(t) and t.name in used)
    present = {o.name for o in light.graph.output}
    light.graph.output.extend(onnx.ValueInfoProto(name=n) for n in extra if n not in present)
    arrays = [np.ascontiguousarray(numpy_helper.to_array(t)) for t in heavy]
    values = [_value(array, t.data_type) for array, t in zip(arrays, heavy, strict=True)]
    if heavy:
        options.add_external_initializers([t.name for t in heavy], values)
    opened = ort.InferenceSession(light.SerializeToString(), options, providers=[provider])
    opened.weights = (arrays, values)  # the session reads them where they lie, for as long as it lives
    return opened


def _value(array: np.ndarray, data_type: int) -> ort.OrtValue:
    if data_type in {onnx.TensorProto.BFLOAT16, *PACKED} or array.dtype.kind not in "fiub":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, data_type)
    return ort.OrtValue.ortvalue_from_numpy(array)
