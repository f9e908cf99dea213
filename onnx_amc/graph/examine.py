"""What is refused when a model is read: damage and contradictions that would only show much later."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx
from onnx import numpy_helper

from onnx_amc.errors import ModelError
from onnx_amc.graph import light
from onnx_amc.graph.limits import LARGEST_INPUT, too_large
from onnx_amc.graph.outside import all_tensors

if TYPE_CHECKING:
    from onnx_amc.graph.load import Model


def check_whole(model: onnx.ModelProto, where: str) -> None:
    """Refuse what is no graph, what onnx's own checker refuses, and tensors that do not hold what they say."""
    if not model.graph.node:
        raise ModelError(
            "not an ONNX model: it holds no graph", where=where, fix="give a model exported to ONNX, not another format"
        )
    try:
        light.check(model)
    except (onnx.checker.ValidationError, ValueError, KeyError) as error:
        raise ModelError(
            f"onnx.checker refuses the model: {str(error).strip().splitlines()[0]}",
            where=where,
            fix="export it again, or repair the node that is named",
        ) from error
    for tensor in all_tensors(model):
        _check_tensor(tensor, where)


def _check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    """Refuse a tensor that does not hold what it says: the checker looks at some of them only."""
    if light.is_heavy(tensor) or tensor.data_type == onnx.TensorProto.UNDEFINED:
        return
    try:
        numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise ModelError(
            f"tensor '{tensor.name[:80]}' of shape {list(tensor.dims)} cannot be read: {error}",
            where=where,
            fix="export the model again: the file is damaged",
        ) from error


def check_inputs(model: onnx.ModelProto, where: str) -> None:
    """Refuse inputs of which not even the number of axes is known, and those whose default is none of theirs."""
    stored = {t.name: list(t.dims) for t in model.graph.initializer}
    for info in (i for i in model.graph.input if i.name in stored and i.type.tensor_type.HasField("shape")):
        said = [d.dim_value or None for d in info.type.tensor_type.shape.dim]
        has = stored[info.name]
        if len(said) != len(has) or any(s not in {None, h} for s, h in zip(said, has, strict=True)):
            raise ModelError(
                f"input '{info.name}' has a default of shape {has}, which is not that of the input",
                where=where,
                fix="give the initializer another name, or the input its shape",
            )
    for info in (i for i in model.graph.input if i.name not in stored):
        if not info.type.tensor_type.HasField("shape"):
            kind = info.type.WhichOneof("value")
            raise ModelError(
                f"input '{info.name}' is a {kind} without a shape",
                where=where,
                fix="export again with tensors as inputs; dimensions may be dynamic, their number must be known",
            )
        if any(d.HasField("dim_value") and d.dim_value == 0 for d in info.type.tensor_type.shape.dim):
            raise ModelError(
                f"input '{info.name}' has a dimension of 0",
                where=where,
                fix="export again with an input that is not empty, or with a dynamic dimension",
            )
        sizes = [d.dim_value for d in info.type.tensor_type.shape.dim if d.dim_value > 0]
        if math.prod(sizes) > LARGEST_INPUT:
            raise too_large(info.name, tuple(sizes))


def check_selections(model: Model) -> None:
    """Refuse what asks for elements that are not there: the checker does not look, and no run would get past it."""
    for node in model.proto.graph.node:
        at = {"Gather": 1, "Slice": 4}.get(node.op_type, len(node.input))
        name = node.input[at] if at < len(node.input) else ""
        if name not in model.weights:
            continue
        values, wrong = numpy_helper.to_array(model.weights[name]).ravel(), ""
        if node.op_type == "Slice" and (values == 0).any():
            wrong = "has a step of 0"
        elif node.op_type == "Gather":
            size = model.length(node.input[0], next((a.i for a in node.attribute if a.name == "axis"), 0))
            outside = values[(values < -size) | (values >= size)] if size is not None else values[:0]
            wrong = f"reads element {outside[0]} of {size}" if outside.size else ""
        if wrong:
            raise ModelError(
                f"{node.op_type} '{node.name or node.output[0]}' {wrong}",
                where=model.source,
                fix="export the model again: no input gets past this node",
            )
