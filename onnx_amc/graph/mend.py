"""What onnxruntime takes, but onnx's checker or the analysis does not, put right before anything looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import onnx

from onnx_amc.errors import ModelError
from onnx_amc.graph.proto import declare_stored, key_of, names_read, subgraphs

CONTRIB = "com.microsoft"


def mend(proto: onnx.ModelProto, where: str) -> None:
    """Bring a model into the form that the standard asks for, in place.

    Raises:
        ModelError: Its nodes have no order.

    """
    graphs = list(_graphs(proto.graph))
    for graph in graphs:
        _open_dimensions(graph)
        _plain_domain(graph)
    proto.graph.name = proto.graph.name or "graph"
    declare_stored(proto)
    known = {o.domain for o in proto.opset_import}
    if CONTRIB not in known and any(n.domain == CONTRIB for graph in graphs for n in graph.node):
        proto.opset_import.add(domain=CONTRIB, version=1)
    _sort(proto.graph, where)


def _plain_domain(graph: onnx.GraphProto) -> None:
    """Leave out the standard operators' domain, as onnx's checker wants it: onnxruntime knows it by either name."""
    for node in graph.node:
        if node.domain == "ai.onnx":
            node.domain = ""


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all inside it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _graphs(inner)


def _open_dimensions(graph: onnx.GraphProto) -> None:
    """Some exporters write -1 for a dimension of any length, which would be taken for a size."""
    for info in (*graph.input, *graph.output, *graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")


def _sort(graph: onnx.GraphProto, where: str) -> None:
    """Put the nodes in order where they are not: converters append theirs at the end."""
    made: dict[str, int] = {}
    for at, node in enumerate(graph.node):
        for name in node.output:
            made.setdefault(name, at)
    needs = {at: [made[n] for n in names_read(node) if n in made] for at, node in enumerate(graph.node)}
    if all(max(before, default=-1) < at for at, before in needs.items()):
        return
    keys = [key_of(node) for node in graph.node]
    try:
        rank = {keys[at]: place for place, at in enumerate(TopologicalSorter(needs).static_order())}
    except CycleError as error:
        circle = " <- ".join(f"'{keys[at][:80]}'" for at in error.args[1][:5])
        raise ModelError(
            f"its nodes wait for each other in a circle: {circle}", where=where, fix="export it again: no run would end"
        ) from error
    graph.node.sort(key=lambda node: rank[key_of(node)])
