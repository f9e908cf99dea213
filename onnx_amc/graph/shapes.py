"""The shape of every tensor for one sample."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort

from onnx_amc.graph.light import declared, session
from onnx_amc.graph.limits import check_memory, is_huge

IMAGE_SIDE = 224
"""Height and width assumed for an image input that names neither."""

COLOURS = 4
"""Channels of an image at most, by which it is told whether they come last."""

LENGTHS = (1, 16, 64, 256, 1024)
"""What is tried in turn for any other dimension that an input leaves open, until the network runs: sound needs a window or more."""

WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})

MOST_AXES, MOST_NAMED = 8, 16
"""Bounds on the constants that are taken for lengths."""

OTHER_BATCH, OTHER_LENGTH = 3, 32
"""The batch, and how much longer all else, at which a second look is taken: strides up to 32 divide it as before."""


def concrete_shapes(proto: onnx.ModelProto, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor with batch 1, by inference, and by a run where inference does not know.

    Inputs that `sizes` names have the shapes that it says. In the others a dynamic batch counts as 1, dynamic height and width as
    224 (before the channels where the last axis has at most 4), any other dynamic dimension as the first of `LENGTHS` at which the
    network runs. A tensor whose shape neither way tells is left out: the rules take none of its channels.

    """
    light = declared(proto, is_weight)
    stored = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    inputs = [i for i in light.graph.input if i.name not in stored]
    given = stored | {i.name: sizes.get(i.name, _settled(i, LENGTHS[0])) for i in inputs}
    shapes = given | _inferred(light, given)
    check_memory(proto, shapes)
    torn = _too_short(proto, shapes) or any(n.op_type == "Reshape" and _torn(shapes, n) for n in proto.graph.node)
    missing = [o for n in proto.graph.node for o in n.output if o and o not in shapes]
    if torn:  # the assumed lengths are not those that the network takes
        shapes, missing = given, list(dict.fromkeys(o for n in proto.graph.node for o in n.output if o))
    if missing:
        unsaid = [i for i in proto.graph.input if i.name not in stored.keys() | sizes.keys()]
        shapes |= _tried(proto, light, given, unsaid, missing)
    return shapes


def other_shapes(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """What inference tells of the shapes at another batch and other lengths; nothing where no input leaves any open.

    A length of 1 hides where a Reshape takes its channels: what reads as (N, 1, 8) -> (N, 8, 1) scrambles at length 2. A run tells
    what inference does not.

    """
    stored = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    inputs = {i.name: i for i in proto.graph.input if i.name not in stored}
    if all(d.dim_value > 0 for i in inputs.values() for d in i.type.tensor_type.shape.dim):
        return {}
    made = {o for n in proto.graph.node for o in n.output if o}
    first: dict[str, tuple[int, ...]] = {}
    for batch in (OTHER_BATCH, 1):  # some take no other
        given = {
            name: tuple(
                was if d.dim_value > 0 else batch if was == 1 and not at else was + OTHER_LENGTH
                for at, (d, was) in enumerate(zip(info.type.tensor_type.shape.dim, shapes[name], strict=True))
            )
            for name, info in inputs.items()
        }
        found = given | _inferred(declared(proto, is_weight), stored | given)
        unclear = sorted(made - found.keys())
        run = measured(proto, given, unclear) if unclear else {}
        if run or not unclear:
            return found | run
        first = first or found
    return first


def _too_short(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a kernel would find nothing, or less, to slide over: onnxruntime refuses what inference gives a length of 0."""
    windows = [n for n in proto.graph.node if n.op_type in WINDOWED]
    empty = any(0 in shapes.get(n.output[0], ())[2:] and 0 not in shapes.get(n.input[0], ()) for n in windows)
    return empty or any(min(shape, default=0) < 0 for shape in shapes.values())


def _torn(shapes: Mapping[str, tuple[int, ...]], node: onnx.NodeProto) -> bool:
    """Whether a Reshape would have to make or to lose numbers."""
    before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
    return before is not None and after is not None and math.prod(before) != math.prod(after)


def _lengths(proto: onnx.ModelProto) -> list[int]:
    """`LENGTHS`, and the few that the graph's own constants name."""
    small = (
        t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT64 and math.prod(t.dims) <= MOST_AXES
    )
    named = sorted({int(v) for t in small for v in onnx.numpy_helper.to_array(t).ravel() if 1 < v <= LENGTHS[-1]})
    return list(dict.fromkeys([*LENGTHS, *named[:MOST_NAMED]]))


def _inferred(light: onnx.ModelProto, given: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    for info in light.graph.input:
        for dim, size in zip(info.type.tensor_type.shape.dim, given[info.name], strict=True):
            dim.dim_value = size
    found = inferred(light)
    shapes: dict[str, tuple[int, ...]] = {}
    for info in [*found.value_info, *found.output]:
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes.setdefault(info.name, tuple(d.dim_value for d in dims))
    return shapes


def inferred(light: onnx.ModelProto) -> onnx.GraphProto:
    """The graph with what follows from its inputs: what a file says of other shapes may be older than they are, and is dropped."""
    del light.graph.value_info[:]
    for info in light.graph.output:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        return light.graph


def _tried(
    proto: onnx.ModelProto,
    light: onnx.ModelProto,
    given: Mapping[str, tuple[int, ...]],
    unsaid: list[onnx.ValueInfoProto],
    missing: list[str],
) -> dict[str, tuple[int, ...]]:
    """Measure what inference does not tell, at the first length of the inputs `unsaid` at which the network runs."""
    inputs = [i for i in unsaid if _settled(i, 1) != _settled(i, 2)]
    for length in _lengths(proto) if inputs else LENGTHS[:1]:
        sizes = {**given, **{i.name: _settled(i, length) for i in inputs}}
        expected = sizes | _inferred(light, sizes)
        if _too_short(proto, expected):
            continue
        if any(is_huge(shape) for shape in expected.values()):
            return {}
        found = measured(proto, sizes, missing)
        if found:
            return (expected if length != LENGTHS[0] else {}) | found
    return {}


def sample_feed(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """One batch of noise: standard normal for floats, ones for everything else."""
    rng = np.random.default_rng(0)
    known = {t.name for t in proto.graph.initializer}
    feed: dict[str, np.ndarray] = {}
    for info in proto.graph.input:
        if info.name not in known:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            shape = shapes[info.name]
            drawn = rng.standard_normal(shape) if dtype.kind == "f" else np.ones(shape)
            feed[info.name] = drawn.astype(dtype)
    return feed


def _settled(info: onnx.ValueInfoProto, length: int) -> tuple[int, ...]:
    """An input's shape with a value for each dynamic dimension: the first is the batch, unless a 1 stands before it."""
    dims = [d.dim_value for d in info.type.tensor_type.shape.dim]
    first = next((i for i, d in enumerate(dims) if d <= 0), len(dims))
    batch = first if 1 not in dims[:first] else -1
    space: tuple[int, ...] = (2, 3) if len(dims) == 4 else ()
    if space and 0 < dims[-1] <= COLOURS and dims[1] <= 0:
        space = (1, 2)
    return tuple(d if d > 0 else 1 if i == batch else IMAGE_SIDE if i in space else length for i, d in enumerate(dims))


def measured(
    proto: onnx.ModelProto, given: Mapping[str, tuple[int, ...]], names: list[str]
) -> dict[str, tuple[int, ...]]:
    """Run the graph once with the unknown tensors as outputs; a sequence has no shape."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        results = session(proto, options, extra=names).run(names, sample_feed(proto, given))
    except Exception:  # onnxruntime raises its own, undocumented kinds  # noqa: BLE001
        return {}
    return {n: v.shape for n, v in zip(names, results, strict=True) if isinstance(v, np.ndarray)}


def is_light(tensor: onnx.TensorProto) -> bool:
    """Whether a constant may take part in size arithmetic: whole numbers, or a single float."""
    integer = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).kind in "iub" if tensor.data_type else False
    return integer or int(np.prod(tensor.dims)) <= 1


def is_weight(tensor: onnx.TensorProto) -> bool:
    """Whether a constant is anything else: shape inference needs no more than its shape."""
    return not is_light(tensor)
