"""The shape of every tensor for one sample."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort

IMAGE_SIDE = 224
"""Height and width assumed for an image input that names neither."""


def concrete_shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor with batch 1, by inference, and by a run where inference does not know.

    A dynamic batch counts as 1, dynamic height and width as 224, any other dynamic dimension as 1. A tensor whose shape neither
    way tells is left out: the rules take none of its channels.

    """
    light = without_weights(proto)
    given = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    for info in light.graph.input:
        if info.name not in given:
            given[info.name] = _settle(info)
    del light.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        inferred = light.graph
    shapes = dict(given)
    for info in [*inferred.value_info, *inferred.output]:
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes.setdefault(info.name, tuple(d.dim_value for d in dims))
    missing = [o for n in proto.graph.node for o in n.output if o and o not in shapes]
    if missing:
        shapes |= measured(proto, given, missing)
    return shapes


def sample_feed(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """One batch of noise: standard normal for floats, ones for everything else."""
    rng = np.random.default_rng(seed)
    known = {t.name for t in proto.graph.initializer}
    feed: dict[str, np.ndarray] = {}
    for info in proto.graph.input:
        if info.name not in known:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            shape = shapes[info.name]
            drawn = rng.standard_normal(shape) if dtype.kind == "f" else np.ones(shape)
            feed[info.name] = drawn.astype(dtype)
    return feed


def _settle(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Give each dynamic dimension of an input a value, in place."""
    dims = info.type.tensor_type.shape.dim
    for i, dim in enumerate(dims):
        if not dim.HasField("dim_value") or dim.dim_value <= 0:
            dim.dim_value = IMAGE_SIDE if len(dims) == 4 and i >= 2 else 1
    return tuple(d.dim_value for d in dims)


def measured(
    proto: onnx.ModelProto, given: Mapping[str, tuple[int, ...]], names: list[str]
) -> dict[str, tuple[int, ...]]:
    """Run the graph once with the unknown tensors as outputs."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    present = {o.name for o in exposed.graph.output}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in present)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run(names, sample_feed(proto, given))
    except Exception:  # onnxruntime raises its own, undocumented kinds  # noqa: BLE001
        return {}
    return {n: np.shape(v) for n, v in zip(names, results, strict=True)}


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that keeps shapes of large tensors but not their data: shape inference is slow on big files."""
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    listed = {i.name for i in light.graph.input}
    heavy = [t for t in light.graph.initializer if not is_light(t)]
    for tensor in heavy:
        if tensor.name not in listed:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    names = {t.name for t in heavy}
    rest = [t for t in light.graph.initializer if t.name not in names]
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in rest]
    del light.graph.initializer[:]
    light.graph.initializer.extend(kept)
    return light


def is_light(tensor: onnx.TensorProto) -> bool:
    """Whether a constant may take part in size arithmetic: whole numbers, or a single float."""
    integer = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).kind in "iub" if tensor.data_type else False
    return integer or int(np.prod(tensor.dims)) <= 1
