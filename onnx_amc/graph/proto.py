"""Small questions to nodes."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any

import onnx


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name, as Python values."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def opset_of(proto: onnx.ModelProto) -> int:
    """Version of the default operator set."""
    return next((o.version for o in proto.opset_import if o.domain in {"", "ai.onnx"}), 1)


def key_of(node: onnx.NodeProto) -> str:
    """What the program knows a node by: the first output that has a name."""
    return next((str(o) for o in node.output if o), "")


def spelled(einsum: onnx.NodeProto, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of an Einsum's operands, of these ranks, and of its output: written out where the equation leaves them open."""
    left, arrow, right = str(attributes(einsum)["equation"], "ascii").replace(" ", "").partition("->")
    operands = left.split(",")
    open_axes = [rank - len(o) + 3 if "..." in o else 0 for o, rank in zip(operands, ranks, strict=True)]
    fill = "".join(c for c in string.ascii_letters if c not in left)[: max(open_axes)]
    letters = left.replace(".", "").replace(",", "")
    if not arrow:
        right = "..." + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    operands = [o.replace("...", fill[len(fill) - n :]) for o, n in zip(operands, open_axes, strict=True)]
    return operands, right.replace("...", fill)


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


def all_read(graph: onnx.GraphProto) -> set[str]:
    """Every tensor that a graph's nodes read, and its outputs."""
    return {name for node in graph.node for name in names_read(node)} | {o.name for o in graph.output}


def answers(proto: onnx.ModelProto) -> list[str]:
    """The outputs; for one that a ZipMap makes maps of, as scikit-learn's exporter has it, that tensor: maps cannot be compared."""
    zipped = {n.output[0]: n.input[0] for n in proto.graph.node if n.op_type == "ZipMap"}
    return list(dict.fromkeys(zipped.get(o.name, o.name) for o in proto.graph.output))


def last_uses(proto: onnx.ModelProto) -> dict[str, int]:
    """Position of the last node that reads each tensor."""
    return {name: i for i, node in enumerate(proto.graph.node) for name in names_read(node)}


def names_of(graph: onnx.GraphProto) -> set[str]:
    """The name of every tensor in a graph and in those inside it."""
    names = {t.name for t in (*graph.input, *graph.initializer, *graph.output)}
    names |= {t.values.name for t in graph.sparse_initializer}
    for node in graph.node:
        names.update(node.input, node.output, *(names_of(inner) for inner in subgraphs(node)))
    return names


def unused(name: str, taken: set[str], ends: Sequence[str] = ("",)) -> str:
    """A name for a new tensor, with `ends` for several: this one, or with a number behind it where any is taken. Now all are."""
    numbered = (f"{name}{i}" if i > 1 else name for i in itertools.count(1))
    found = next(n for n in numbered if taken.isdisjoint(n + end for end in ends))
    taken.update(found + end for end in ends)
    return found


def defaults(proto: onnx.ModelProto) -> set[str]:
    """Initializers for which a caller may give others: from IR 4 on those that are inputs too. Before, all of them must be."""
    listed = {i.name for i in proto.graph.input} if proto.ir_version >= 4 else set()
    return listed.intersection(t.name for t in proto.graph.initializer)


def offered(proto: onnx.ModelProto) -> set[str]:
    """Initializers that stand for a choice of the caller's: inputs too, in a file where most matrices are none.

    Some exporters list all of them, or all but what is folded later, and mean nothing by it.
    """
    listed = defaults(proto)
    matrices = {t.name for t in proto.graph.initializer if len(t.dims) > 1}
    return listed if 2 * len(matrices & listed) <= len(matrices) else set()


def declare_stored(proto: onnx.ModelProto) -> None:
    """List every initializer among the inputs up to IR 3, in place: there they must be."""
    if proto.ir_version < 4:
        listed = {i.name for i in proto.graph.input}
        missing = [t for t in proto.graph.initializer if t.name not in listed]
        proto.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in missing)


def drop(listed: Any, unwanted: Callable[[Any], bool]) -> None:
    """Delete what is not wanted from one of protobuf's lists, in place."""
    for i in reversed(range(len(listed))):
        if unwanted(listed[i]):
            del listed[i]


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Give a graph these nodes in place of its own, of which they may be some."""
    copies = [deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
