"""What onnxruntime takes and the analysis does not, put right before anything looks at it."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from onnx_amc.graph.proto import subgraphs


def mend(proto: onnx.ModelProto) -> None:
    """Bring a model into the form that the standard asks for, in place."""
    for graph in _graphs(proto.graph):
        _open_dimensions(graph)


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
