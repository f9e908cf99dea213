"""Cut a model by a plan, or mask the original by it: both must compute the same.

Pruning changes shapes, rarely nodes: initializers and attributes are edited in place on a copy, so everything else that the file
carries stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.ledger import Keep
from onnx_amc.graph.light import declared, stripped
from onnx_amc.graph.load import MOVES, densify, true_inputs
from onnx_amc.graph.proto import (
    all_read,
    attributes,
    declare_stored,
    defaults,
    drop,
    key_of,
    names_of,
    names_read,
    set_nodes,
    unused,
)

Arrays = Mapping[str, np.ndarray]


def cut(
    analysis: Analysis,
    kept: Mapping[str, Sequence[int]],
    values: Arrays | None = None,
    biases: Arrays | None = None,
    proto: onnx.ModelProto | None = None,
) -> onnx.ModelProto:
    """Return a new model with the other channels removed.

    Args:
        analysis: Of the model to cut.
        kept: The channels that each group keeps.
        values: New contents of initializers, in their original shape; the cut comes after.
        biases: For contractions that have none: the bias of the surviving outputs, by the node's first output.
        proto: A graph with the same names to cut instead of the model's own.

    """
    source = proto or analysis.model.proto
    keep = analysis.keeper(kept)
    result = _shortened(_cuts(analysis, keep), source, values or {})
    _follow(analysis, keep, result)
    _add_biases(result, biases or {})
    list_stored(result)
    del result.graph.value_info[:]
    return result


class Cut:
    """A cut model whose weights change one after the other, without being cut anew each time.

    Args:
        analysis: Of the model to cut.
        kept: The channels that each group keeps.
        values: New contents of initializers, in their original shape.
        biases: Of contractions that have none, by the node's first output.
        proto: A graph with the same names to cut instead of the model's own.

    Attributes:
        model: What `cut` gives for the contents of now.

    """

    def __init__(
        self,
        analysis: Analysis,
        kept: Mapping[str, Sequence[int]],
        values: Arrays,
        biases: Arrays,
        proto: onnx.ModelProto,
    ) -> None:
        self.model = cut(analysis, kept, values, biases, proto)
        self._cuts = _cuts(analysis, analysis.keeper(kept))
        self._places = {t.name: i for i, t in enumerate(self.model.graph.initializer)}

    def write(self, values: Arrays, biases: Arrays) -> None:
        """Give these initializers, and these contractions that have no bias of their own, other contents."""
        held = self.model.graph.initializer
        for name, array in values.items():
            tensor = held[self._places[name]]
            tensor.CopyFrom(_tensor(tensor, _taken(array, self._cuts.get(name, {}))))
        named = {n.output[0]: n.input[2] for n in self.model.graph.node if len(n.input) > 2}
        added = {output: bias for output, bias in biases.items() if not named.get(output)}
        for output in biases.keys() - added.keys():
            tensor = held[self._places[named[output]]]
            tensor.CopyFrom(_tensor(tensor, biases[output]))
        if added:
            _add_biases(self.model, added)
            list_stored(self.model)
            self._places = {t.name: i for i, t in enumerate(held)}


def finish(analysis: Analysis, result: onnx.ModelProto) -> onnx.ModelProto:
    """Make a cut model fit to deliver: share again what is equal again, restore constant nodes, drop what nothing reads."""
    _share(analysis, result)
    _restore_constants(analysis, result)
    used = all_read(result.graph) | defaults(analysis.model.original)
    drop(result.graph.initializer, lambda stored: stored.name not in used)
    known = {i.name for i in (*result.graph.initializer, *true_inputs(analysis.model.original))}
    drop(result.graph.input, lambda info: info.name not in known)
    list_stored(result)
    if len(analysis.model.original.graph.value_info):
        try:
            inferred = onnx.shape_inference.infer_shapes(declared(result))
        except (onnx.shape_inference.InferenceError, ValueError):
            return result
        result.graph.value_info.extend(inferred.graph.value_info)
    return result


def list_stored(result: onnx.ModelProto) -> None:
    """Initializers that are listed as inputs have the shape of what is left; up to IR 3 all of them must be listed."""
    known = {i.name: i for i in result.graph.input}
    for tensor in result.graph.initializer:
        if tensor.name in known or result.ir_version < 4:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            (known[tensor.name] if tensor.name in known else result.graph.input.add()).CopyFrom(info)


def masked(original: onnx.ModelProto, slices: Sequence[Mapping[str, Any]]) -> onnx.ModelProto:
    """Return the original with every slice marked `mask` set to zero: what the cut model must compute, from the plan alone."""
    result = deepcopy(original)
    densify(result)
    holders = _holders(result)
    taken = names_of(result.graph)
    masks = [s for s in slices if s["mask"]]
    for tensor in dict.fromkeys(s["tensor"] for s in masks):
        mine = [s for s in masks if s["tensor"] == tensor]
        users = [n for n in result.graph.node if tensor in n.input]
        named = dict.fromkeys(s.get("node") for s in mine)
        shared = len(users) > 1 and None not in named
        for user in named if shared else [None]:
            array = numpy_helper.to_array(holders[tensor]).copy()
            for entry in mine:
                if not shared or entry.get("node") == user:
                    array[(slice(None),) * entry["axis"] + (entry["removed"],)] = 0
            new = numpy_helper.from_array(array, unused(f"{tensor}/masked/{user}", taken) if shared else tensor)
            if not shared:
                holders[tensor].CopyFrom(new)
                continue
            result.graph.initializer.append(new)
            node = next(n for n in users if user in n.output)
            for i, name in enumerate(node.input):
                if name == tensor:
                    node.input[i] = new.name
    declare_stored(result)  # onnxruntime refuses those that are not listed once nothing reads them
    return result


def _holders(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Where each constant's data lies: in an initializer or in a Constant node."""
    found = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name in {"value_float", "value_floats"}:
                array = np.array(onnx.helper.get_attribute_value(attribute), np.float32)
                attribute.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(array)))
            if attribute.name == "value":
                found[node.output[0]] = attribute.t
    return found


Cuts = dict[str, dict[int, np.ndarray]]
"""By initializer and axis the positions that stay."""


def _cuts(analysis: Analysis, keep: Keep) -> Cuts:
    cuts: Cuts = {}
    for owner, start, end in analysis.ledger.spans():
        if owner.axis >= 0:
            alive = keep(np.arange(start, end))
            if not alive.all():
                cuts.setdefault(owner.tensor, {})[owner.axis] = np.flatnonzero(alive)
    return cuts


def _shortened(cuts: Cuts, source: onnx.ModelProto, values: Arrays) -> onnx.ModelProto:
    """A copy with shorter and with new weights; the old ones are never copied whole."""
    result, _ = stripped(source, lambda _: True)
    for tensor in source.graph.initializer:
        if tensor.name not in cuts and tensor.name not in values:
            result.graph.initializer.append(tensor)
            continue
        array = values[tensor.name] if tensor.name in values else numpy_helper.to_array(tensor)
        result.graph.initializer.append(_tensor(tensor, _taken(array, cuts.get(tensor.name, {}))))
    return result


def _taken(array: np.ndarray, stay: Mapping[int, np.ndarray]) -> np.ndarray:
    for axis, index in stay.items():
        array = np.take(array, index, axis=axis)
    return array


def _tensor(like: onnx.TensorProto, array: np.ndarray) -> onnx.TensorProto:
    """A tensor of the same name and type with other contents."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(like.data_type)
    new = numpy_helper.from_array(np.ascontiguousarray(array.astype(dtype, copy=False)), like.name)
    if like.HasField("doc_string"):
        new.doc_string = like.doc_string
    return new


def _follow(analysis: Analysis, keep: Keep, result: onnx.ModelProto) -> None:
    """Rewrite the sizes that constants and attributes name."""
    nodes = {key_of(n): n for n in result.graph.node}
    inserted: dict[str, list[onnx.NodeProto]] = {}
    taken = names_of(result.graph)
    for edit in analysis.ledger.edits:
        if bool(keep(edit.tokens).all()):
            continue
        node, value = nodes[edit.node], edit.value(keep)
        if isinstance(edit.slot, str):
            _set_attribute(node, edit.slot, value)
            continue
        name = unused(f"{edit.node}/input{edit.slot}/cut", taken, SCALING)
        result.graph.initializer.append(numpy_helper.from_array(value, name))
        if edit.whole is not None:
            scaled = _scaled(result, analysis.model.opset, name, node.input[edit.slot], edit.whole)
            inserted.setdefault(edit.node, []).extend(scaled)
            name = f"{name}/sizes"
        while len(node.input) <= edit.slot:
            node.input.append("")
        node.input[edit.slot] = name
        if node.op_type == "Split":
            _set_attribute(node, "num_outputs", None)
    if inserted:
        ordered = [n for node in result.graph.node for n in (*inserted.get(key_of(node), []), node)]
        set_nodes(result.graph, ordered)


SCALING = ("", *(f"/{part}" for part in ("whole", "rest", "zero", "more", "up", "scaled", "open", "sizes")))
"""What the names of the tensors of `_scaled` end in."""


def _scaled(result: onnx.ModelProto, opset: int, kept: str, sizes: str, whole: np.ndarray) -> list[onnx.NodeProto]:
    """Nodes that scale sizes computed at run time by what is kept: a 1 that stretches stays 1, a -1 stays -1."""
    for name, array in (("whole", whole), ("rest", whole - 1), ("zero", np.zeros(1, np.int64))):
        result.graph.initializer.append(numpy_helper.from_array(array, f"{kept}/{name}"))
    steps = [("Mul", [sizes, kept], "more"), ("Div", [f"{kept}/more", f"{kept}/whole"], "sizes")]
    if opset >= 9:  # before, there is no Where, and what is scaled is written and more than 1
        steps = [
            ("Mul", [sizes, kept], "more"),
            ("Add", [f"{kept}/more", f"{kept}/rest"], "up"),
            ("Div", [f"{kept}/up", f"{kept}/whole"], "scaled"),
            ("Less", [sizes, f"{kept}/zero"], "open"),
            ("Where", [f"{kept}/open", sizes, f"{kept}/scaled"], "sizes"),
        ]
    return [onnx.helper.make_node(op, inputs, [f"{kept}/{output}"]) for op, inputs, output in steps]


def _set_attribute(node: onnx.NodeProto, name: str, value: np.ndarray | None) -> None:
    drop(node.attribute, lambda attribute: attribute.name == name)
    if value is not None:
        node.attribute.append(onnx.helper.make_attribute(name, value.tolist()))


def _add_biases(result: onnx.ModelProto, biases: Arrays) -> None:
    nodes = {n.output[0]: n for n in result.graph.node}
    kinds = {t.name: t.data_type for t in result.graph.initializer}
    taken = names_of(result.graph) if biases else set()
    for output, bias in biases.items():
        node, name = nodes[output], unused(f"{output}/bias", taken)
        weight = node.input[1]
        while weight in nodes and nodes[weight].op_type in MOVES:
            weight = nodes[weight].input[0]
        kind = kinds.get(weight, onnx.TensorProto.FLOAT)
        if weight in nodes and nodes[weight].op_type == "Cast":
            kind = attributes(nodes[weight])["to"]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        result.graph.initializer.append(numpy_helper.from_array(bias.astype(dtype), name))
        while len(node.input) < 3:
            node.input.append("")
        node.input[2] = name


def copies_of(analysis: Analysis, proto: onnx.ModelProto) -> list[list[str]]:
    """Initializers of a cut model that came from one of the original and are equal again: `finish` stores them once."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for tensor in proto.graph.initializer:
        origin, _ = analysis.model.origin.get(tensor.name, (None, None))
        if origin is not None:
            contents = numpy_helper.to_array(tensor).tobytes()
            found.setdefault((origin, tuple(tensor.dims), contents), []).append(tensor.name)
    return [names for names in found.values() if len(names) > 1]


def _share(analysis: Analysis, result: onnx.ModelProto) -> None:
    """Store equal copies of one original initializer once again."""
    rename = {name: names[0] for names in copies_of(analysis, result) for name in names}
    for node in result.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = rename.get(name, name)


def _restore_constants(analysis: Analysis, result: onnx.ModelProto) -> None:
    """Constants that came as nodes leave as nodes."""
    tensors = {t.name: t for t in result.graph.initializer}
    used = {name for node in result.graph.node for name in names_read(node)}
    restored: list[onnx.NodeProto] = []
    for name, node in analysis.model.lifted.items():
        if name not in tensors or name not in used:
            continue
        copy = deepcopy(node)
        old = next((a for a in copy.attribute if a.name in {"value", "value_float", "value_floats"}), None)
        if old is not None:
            value = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, doc_string=old.doc_string)
            value.t.CopyFrom(tensors[name])
            value.t.name = old.t.name
            old.CopyFrom(value)
        restored.append(copy)
    gone = {o for n in restored for o in n.output}
    set_nodes(result.graph, [*restored, *result.graph.node])
    drop(result.graph.initializer, lambda stored: stored.name in gone)
