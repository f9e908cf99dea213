"""Fold the size arithmetic that exporters leave in a graph (pads, target shapes, slice bounds) into plain constants."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from onnx_amc.errors import ModelError
from onnx_amc.graph.shapes import is_light, measured, without_weights

NEVER = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
DATA_DEPENDENT = frozenset({"NonZero", "Unique", "Compress", "NonMaxSuppression", "If", "Loop", "Scan", "StringSplit"})
LARGEST = 65_536
LARGEST_FLOAT = 1_024


def fold(proto: onnx.ModelProto, where: str) -> None:
    """Replace nodes whose result does not depend on the inputs or on a weight by initializers, in place.

    Weights themselves are left alone (their chains of Transpose and Reshape carry channel tokens), and so is a large result:
    a file that grows is no compression.
    """
    graph = proto.graph
    static = _static_shapes(proto)
    known = {t.name for t in graph.initializer if is_light(t)}
    foldable: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type in NEVER or node.domain not in {"", "ai.onnx"} or any(a.HasField("g") for a in node.attribute):
            continue
        if all(name in known for name in node.input if name) or (node.op_type == "Shape" and node.input[0] in static):
            foldable.append(node)
            known.update(node.output)
    if not foldable:
        return
    values = _evaluate(proto, foldable, static, where)
    outputs = {o.name for o in graph.output}
    gone = {id(n) for n in foldable if all(_small(values[o]) and o not in outputs for o in n.output if o)}
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node if id(n) not in gone]
    needed = {name for node in kept for name in _reads(node)}
    for node in foldable:
        if id(node) in gone:
            graph.initializer.extend(numpy_helper.from_array(values[o], o) for o in node.output if o in needed)
    if proto.ir_version < 4:
        listed = {i.name for i in graph.input}
        graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
            for t in graph.initializer
            if t.name not in listed
        )
    del graph.node[:]
    graph.node.extend(kept)


def _small(value: np.ndarray) -> bool:
    return bool(value.size <= (LARGEST_FLOAT if value.dtype.kind not in "iub" else LARGEST))


def _reads(node: onnx.NodeProto) -> set[str]:
    inner = (n for a in node.attribute for g in [a.g, *a.graphs] for n in g.node)
    return set(node.input).union(*(_reads(n) for n in inner))


def _static_shapes(proto: onnx.ModelProto) -> dict[str, list[int]]:
    """Shapes that are the same for every input."""
    try:
        inferred = onnx.shape_inference.infer_shapes(without_weights(proto), data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        inferred = proto.graph
    found: dict[str, list[int]] = {}
    for info in [*inferred.value_info, *inferred.input, *inferred.output]:
        kind = info.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            found[info.name] = [d.dim_value for d in kind.shape.dim]
    found.update({t.name: list(t.dims) for t in proto.graph.initializer})
    unknown = {n.input[0] for n in proto.graph.node if n.op_type == "Shape" and n.input[0] not in found}
    if unknown and all(i.name in found for i in proto.graph.input) and not _data_dependent(proto):
        given = {i.name: tuple(found[i.name]) for i in proto.graph.input}
        found.update({name: list(shape) for name, shape in measured(proto, given, sorted(unknown)).items()})
    return found


def _data_dependent(proto: onnx.ModelProto) -> bool:
    """Whether shapes may depend on values."""
    return any(n.op_type in DATA_DEPENDENT for n in proto.graph.node)


def _evaluate(
    proto: onnx.ModelProto, nodes: list[onnx.NodeProto], static: dict[str, list[int]], where: str
) -> dict[str, np.ndarray]:
    """Run the constant part of the graph once in onnxruntime."""
    constants = onnx.ModelProto(ir_version=proto.ir_version)
    constants.opset_import.extend(proto.opset_import)
    constants.graph.name = "constants"
    read = {name for node in nodes for name in node.input}
    constants.graph.initializer.extend(t for t in proto.graph.initializer if t.name in read and is_light(t))
    for node in nodes:
        if node.op_type == "Shape":
            constants.graph.initializer.append(numpy_helper.from_array(_shape_of(node, static), node.output[0]))
        else:
            constants.graph.node.append(node)
    constants.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
        for t in (constants.graph.initializer if proto.ir_version < 4 else ())
    )
    shapes = {n.output[0]: _shape_of(n, static) for n in nodes if n.op_type == "Shape"}
    wanted = [o for n in nodes if n.op_type != "Shape" for o in n.output if o]
    constants.graph.output.extend(onnx.ValueInfoProto(name=o) for o in wanted)
    if not wanted:
        return shapes
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
    return shapes | dict(zip(wanted, results, strict=True))


def _shape_of(node: onnx.NodeProto, static: dict[str, list[int]]) -> np.ndarray:
    limits = {a.name: a.i for a in node.attribute}
    shape = static[node.input[0]]
    return np.array(shape[limits.get("start", 0) : limits.get("end", len(shape))], dtype=np.int64)
