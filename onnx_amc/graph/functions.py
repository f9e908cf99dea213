"""Local functions written out, which no rule has to know of then; those that have no end are refused before that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter

import onnx
import onnx.inliner

from onnx_amc.errors import ModelError
from onnx_amc.graph.proto import names_read, subgraphs

MOST = 1_000_000
"""Nodes that a model may have once its functions are written out: functions that call each other twice double them each time."""

Name = tuple[str, str, str]


def inlined(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Return the model without local functions.

    Raises:
        ModelError: One calls itself, all together have too many nodes, or onnx cannot write them out.

    """
    if not len(proto.functions):
        return proto
    fix = "export it again without functions, or mend them: none may call itself"
    bodies = {(f.domain, f.name, f.overload): list(_calls(f.node)) for f in proto.functions}
    sizes: dict[Name, int] = {}
    try:
        for name in TopologicalSorter(bodies).static_order():  # onnx itself may follow a circle until the stack is full
            sizes[name] = 1 + sum(sizes[inner] for inner in bodies.get(name, []))
    except CycleError as error:
        raise ModelError(f"its local function '{error.args[1][0][1]}' calls itself", where=where, fix=fix) from error
    total = sum(sizes.get(name, 1) for name in _calls(proto.graph.node))
    if total > MOST:
        raise ModelError(f"its local functions, written out, have {total:.1g} nodes", where=where, fix=fix)
    try:
        result = onnx.inliner.inline_local_functions(proto)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        told = str(error).splitlines()[0][:300]
        raise ModelError(f"its local functions cannot be written out: {told}", where=where, fix=fix) from error
    known = {o.domain for o in result.opset_import}  # the inliner leaves out what only functions import
    result.opset_import.extend(
        {o.domain: o for f in proto.functions for o in f.opset_import if o.domain not in known}.values()
    )
    _drop_dead(result.graph, {o for n in proto.graph.node for o in n.output if o})
    return result


def _drop_dead(graph: onnx.GraphProto, ours: set[str]) -> None:
    """Leave out what functions compute and nothing reads: it belongs to no output of a call, by which a plan could name it."""
    needed = ours | {o.name for o in graph.output}
    for i in reversed(range(len(graph.node))):
        if needed.isdisjoint(graph.node[i].output):
            del graph.node[i]
        else:
            needed |= names_read(graph.node[i]) - {""}


def _calls(nodes: Iterable[onnx.NodeProto]) -> Iterator[Name]:
    """What each node calls, those within subgraphs too."""
    for node in nodes:
        yield node.domain, node.op_type, node.overload
        for graph in subgraphs(node):
            yield from _calls(graph.node)
