"""Fold the size arithmetic that exporters leave in a graph (pads, target shapes, slice bounds) into plain constants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from onnx_amc.errors import ModelError
from onnx_amc.graph.light import declared
from onnx_amc.graph.limits import is_huge
from onnx_amc.graph.proto import declare_stored, defaults, names_read, set_nodes
from onnx_amc.graph.shapes import inferred, is_light, is_weight, measured

RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear"})
DATA_DEPENDENT = frozenset({"NonZero", "Unique", "Compress", "NonMaxSuppression", "If", "Loop", "Scan", "StringSplit"})
"""Operators behind which shapes may depend on values."""

LARGEST = 65_536
LARGEST_FLOAT = 1_024


WHOLE = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32})
"""Types that sizes are written in."""

Dims = list[int | None]


def fold(proto: onnx.ModelProto, where: str, lengths: Mapping[str, Dims] | None = None) -> None:
    """Replace nodes whose result does not depend on the inputs or on a weight by initializers, in place.

    Weights themselves are left alone (their chains of Transpose and Reshape carry channel tokens), and so is a large result:
    a file that grows is no compression.

    Args:
        proto: The model.
        where: Its name, for messages.
        lengths: Lengths of the axes of some tensors, None for each that may differ from input to input; None for those that
            inference tells.

    """
    graph = proto.graph
    shapes = _known_shapes(proto) if lengths is None else dict(lengths)
    given: dict[str, np.ndarray] = {}
    weights = _constants(proto)
    known = {name for name, t in weights.items() if is_light(t)}
    foldable: list[onnx.NodeProto] = []
    for node in graph.node:
        if (
            node.op_type in RANDOM | QUANTISED
            or node.domain not in {"", "ai.onnx"}
            or any(a.HasField("g") for a in node.attribute)
            or any(is_huge(shapes.get(name, ())) for name in node.output)
        ):
            continue
        sizes = _sizes(node, shapes, weights)
        if sizes is not None:
            given[node.output[0]] = sizes
        if sizes is not None or (node.op_type != "Shape" and all(name in known for name in node.input if name)):
            foldable.append(node)
            known.update(node.output)
    if not foldable:
        return
    values = _evaluate(proto, foldable, given, where)
    outputs = {o.name for o in graph.output}
    gone = {id(n) for n in foldable if all(_small(values[o]) and o not in outputs for o in n.output if o)}
    kept = [n for n in graph.node if id(n) not in gone]
    needed = {name for node in kept for name in names_read(node)}
    for node in foldable:
        if id(node) in gone:
            graph.initializer.extend(numpy_helper.from_array(values[o], o) for o in node.output if o in needed)
    declare_stored(proto)
    set_nodes(graph, kept)


def settles(proto: onnx.ModelProto, lengths: Mapping[str, Dims]) -> bool:
    """Whether a size that the graph still measures is the same in every run, by these lengths of axes, and `fold` takes it out."""
    weights, shapes, outputs = _constants(proto), dict(lengths), {o.name for o in proto.graph.output}
    return any(_sizes(n, shapes, weights) is not None and outputs.isdisjoint(n.output) for n in proto.graph.node)


def _constants(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The initializers for which no caller may give others."""
    free = defaults(proto)
    return {t.name: t for t in proto.graph.initializer if t.name not in free}


def _small(value: object) -> bool:
    return isinstance(value, np.ndarray) and bool(
        value.size <= (LARGEST_FLOAT if value.dtype.kind not in "iub" else LARGEST)
    )


def _known_shapes(proto: onnx.ModelProto) -> dict[str, Dims]:
    """Shapes, None for each dimension that may differ from input to input."""
    free = defaults(proto)
    told = inferred(declared(proto, lambda t: is_weight(t) or t.name in free))
    found: dict[str, Dims] = {}
    for info in [*told.value_info, *told.input, *told.output]:
        kind = info.type.tensor_type
        if kind.HasField("shape"):
            found[info.name] = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    found.update({t.name: list(t.dims) for t in proto.graph.initializer})
    fixed = {name for name, dims in found.items() if None not in dims}
    unknown = {n.input[0] for n in proto.graph.node if n.op_type == "Shape" and n.input[0] not in fixed}
    whole = not free and all(i.name in fixed for i in proto.graph.input)
    odd = any(n.op_type in DATA_DEPENDENT for n in proto.graph.node) or any(map(is_huge, found.values()))
    if unknown and whole and not odd:
        given = {i.name: tuple(d or 0 for d in found[i.name]) for i in proto.graph.input}
        found.update({name: list(shape) for name, shape in measured(proto, given, sorted(unknown)).items()})
    return found


def _sizes(node: onnx.NodeProto, shapes: dict[str, Dims], weights: dict[str, onnx.TensorProto]) -> np.ndarray | None:
    """What a Shape, or what is picked from one, gives for every input; None where it depends on the input.

    What is known of a row of sizes, and its type, is noted in `shapes` under names that no tensor can have.
    """
    row, kind = _row(node, shapes, weights)
    if row is None:
        return None
    scalar = node.op_type == "Gather" and not weights[node.input[1]].dims
    if not scalar:
        shapes[f"{node.output[0]}\0values"], shapes[f"{node.output[0]}\0type"] = row, [kind]
    if None in row:
        return None
    values = np.array(row, dtype=onnx.helper.tensor_dtype_to_np_dtype(kind))
    return values.reshape(()) if scalar else values


Row = tuple[Dims | None, int]
"""Sizes in a row, None for each that may differ from input to input, and their type."""


def _row(node: onnx.NodeProto, shapes: Mapping[str, Dims], weights: Mapping[str, onnx.TensorProto]) -> Row:
    """What a node gives that measures sizes, or moves them."""
    attrs = {a.name: a.i for a in node.attribute}
    if node.op_type == "Shape":
        dims = shapes.get(node.input[0])
        found = None if dims is None else dims[attrs.get("start", 0) : attrs.get("end", len(dims))]
        return found, onnx.TensorProto.INT64
    rows = [_noted(name, shapes, weights) for name in node.input]
    values, kind = rows[0] if rows else (None, 0)
    if values is None or all(name in weights for name in node.input):
        return None, 0
    try:
        if node.op_type == "Cast":
            return (values, attrs["to"]) if attrs["to"] in WHOLE else (None, 0)
        if node.op_type == "Concat" and None not in [row for row, _ in rows]:
            return [v for row, _ in rows for v in row or ()], kind
        if node.op_type in {"Gather", "Slice"} and len(rows) > 1 and all(name in weights for name in node.input[1:]):
            return _picked(node, values, [row or [] for row, _ in rows[1:]]), kind
    except (IndexError, ValueError):  # asks for what is not there: refused later, by its name
        pass
    return None, 0


def _noted(name: str, shapes: Mapping[str, Dims], weights: Mapping[str, onnx.TensorProto]) -> Row:
    """A row of sizes as far as it is known: constants too."""
    if name not in weights:
        return shapes.get(f"{name}\0values"), int((shapes.get(f"{name}\0type") or [0])[0] or 0)
    tensor = weights[name]
    whole = tensor.data_type in WHOLE and len(tensor.dims) <= 1 and is_light(tensor)
    return (numpy_helper.to_array(tensor).ravel().tolist() if whole else None), tensor.data_type


def _picked(node: onnx.NodeProto, values: Dims, index: list[Dims]) -> Dims | None:
    """What a Gather or Slice takes of a row."""
    if not all(index) or None in [i for one in index for i in one]:
        return None
    if node.op_type == "Gather":
        return [values[int(i or 0)] for i in index[0]]
    return values[slice(index[0][0], index[1][0], index[3][0] if len(index) > 3 else 1)]


def _evaluate(
    proto: onnx.ModelProto, nodes: list[onnx.NodeProto], given: dict[str, np.ndarray], where: str
) -> dict[str, np.ndarray]:
    """Run the constant part of the graph once in onnxruntime."""
    constants = onnx.ModelProto(ir_version=proto.ir_version)
    constants.opset_import.extend(proto.opset_import)
    constants.graph.name = "constants"
    read = {name for node in nodes for name in node.input}
    constants.graph.initializer.extend(t for t in proto.graph.initializer if t.name in read and is_light(t))
    for node in nodes:
        if node.output[0] in given:
            constants.graph.initializer.append(numpy_helper.from_array(given[node.output[0]], node.output[0]))
        else:
            constants.graph.node.append(node)
    declare_stored(constants)
    wanted = [o for n in nodes if n.output[0] not in given for o in n.output if o]
    constants.graph.output.extend(onnx.ValueInfoProto(name=o) for o in wanted)
    if not wanted:
        return given
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(constants.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results: Iterable[np.ndarray] = session.run(wanted, {})
    except Exception as error:  # onnxruntime raises its own, undocumented kinds
        raise ModelError(
            f"onnxruntime cannot evaluate its constants: {error}", where=where, fix="export the model again"
        ) from error
    return given | dict(zip(wanted, results, strict=True))
