"""Small questions to nodes."""

from __future__ import annotations

import onnx


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """A node's attributes by name, as Python values."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def key_of(node: onnx.NodeProto) -> str:
    """What the program knows a node by: the first output that has a name."""
    return next((str(o) for o in node.output if o), "")


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs inside a control-flow node."""
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else [*a.graphs])]


def names_read(node: onnx.NodeProto) -> set[str]:
    """Every tensor a node reads, the outer ones that its subgraphs read included; not what these make, under whatever name."""
    names = set(node.input)
    for graph in subgraphs(node):
        read = {name for inner in graph.node for name in names_read(inner)} | {o.name for o in graph.output}
        names |= read.difference(
            (o for inner in graph.node for o in inner.output), (t.name for t in (*graph.input, *graph.initializer))
        )
    return names


def defaults(proto: onnx.ModelProto) -> set[str]:
    """Initializers for which a caller may give others: from IR 4 on those that are inputs too. Before, all of them must be."""
    listed = {i.name for i in proto.graph.input} if proto.ir_version >= 4 else set()
    return listed.intersection(t.name for t in proto.graph.initializer)


def declare_stored(proto: onnx.ModelProto) -> None:
    """List every initializer among the inputs up to IR 3, in place: there they must be."""
    if proto.ir_version < 4:
        listed = {i.name for i in proto.graph.input}
        missing = [t for t in proto.graph.initializer if t.name not in listed]
        proto.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in missing)
