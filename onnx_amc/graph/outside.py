"""Weights that a model keeps in files of their own: read from its own folder and from nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnx_amc.errors import ModelError
from onnx_amc.graph import light

SPARE = 2**30
"""Bytes by which tensors may need more than the files hold, since several may lie in one place."""


def fetch(model: onnx.ModelProto, folder: Path, where: str) -> bool:
    """Read what lies outside into the model, in place; whether initializers were among it.

    Args:
        model: As it came out of its file.
        folder: Of the model.
        where: What to call the model in messages.

    Raises:
        ModelError: A place outside the folder (absolute, `..` or by a link), a file that is missing, too short or no plain file.

    """
    found, external = scattered(model), light.has_external_data(model)
    wanted = [(tensor, *_place(tensor, folder, where)) for tensor in found]
    there = sum(path.stat().st_size for path in {path for _, path, _, _ in wanted})
    if (needed := sum(length for _, _, _, length in wanted)) > there + SPARE:
        raise ModelError(
            f"its tensors take {needed} bytes out of external data of {there}: refused", where=where, fix=AGAIN
        )
    for tensor, path, offset, length in wanted:
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return external


def scattered(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The tensors that lie outside, wherever in the model they are named."""
    return [t for t in all_tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]


def files_of(path: Path) -> list[Path]:
    """The files in which a model keeps weights; none where it cannot be read."""
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as text:
            if text.find(b"location") < 0:  # the key that every such tensor has; parsing gigabytes takes seconds
                return []
        model = onnx.load_model(path, load_external_data=False)
    except (OSError, DecodeError, ValueError):
        return []
    said = {entry.value for t in scattered(model) for entry in t.external_data if entry.key == "location"}
    return [path.parent / location for location in sorted(said)]


AGAIN = 'export it again, or onnx.save(onnx.load(MODEL), NEW, save_as_external_data=True, location="NEW.data")'


def _place(tensor: onnx.TensorProto, folder: Path, where: str) -> tuple[Path, int, int]:
    """File, offset and length of a tensor's data, once they are known to be sound."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said.get("location", "")
    name, path = f"external data '{location[:80]}' of tensor '{tensor.name[:80]}'", folder / location
    try:
        inside = not Path(location).is_absolute() and path.resolve().is_relative_to(folder.resolve())
        if inside and not path.exists():
            raise ModelError(f"its {name} is missing", where=where, fix="put the data file beside the model")
        plain = inside and path.is_file()
    except (OSError, ValueError, RuntimeError):  # names that the system does not take, links in a circle
        inside = plain = False
    if not inside or not plain:
        what = "is no file" if inside else "lies outside the model's folder: refused"
        raise ModelError(
            f"its {name} {what}", where=where, fix="copy the data beside the model, and name it by its bare name"
        )
    try:
        needed = light.data_length(tensor)
        offset, length = int(said.get("offset") or 0), int(said.get("length") or needed)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"its {name} has no sound type, offset or length: {error}", where=where, fix=AGAIN) from error
    if length != needed or offset < 0 or length < 0 or offset + length > path.stat().st_size:
        what = f"has {path.stat().st_size} bytes, the tensor {list(tensor.dims)} needs {needed} and asks for {length} from {offset}"
        raise ModelError(f"its {name} {what}", where=where, fix=AGAIN)
    return path, offset, length


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that holds numbers: initializers and attributes, those in subgraphs and functions too."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _of_graph(graph)
