"""What travels to another machine: pickles with their arrays beside them, which are shared there and not sent twice."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import onnx
from ray import cloudpickle

from onnx_amc.graph.light import emptied, is_heavy, stripped
from onnx_amc.graph.load import Model

SMALL = 1024
"""Bytes up to which an array stays in the pickle."""

Parcel = tuple[bytes, list[np.ndarray]]
"""A pickle, and the arrays that belong to it."""

Named = Callable[[object], str | None]
Tensor = tuple[bytes, np.ndarray | None]


def packed(thing: object, named: Named = lambda _thing: None) -> Parcel:
    """Pack something up.

    Args:
        thing: What is to travel. Of models only the normal form does: they can be cut there, but not delivered.
        named: Names the objects that are there already.

    """
    file = io.BytesIO()
    packer = _Packer(file, named)
    packer.dump(thing)
    return file.getvalue(), [np.frombuffer(b.raw(), np.uint8) for b in packer.beside]


def unpacked(parcel: Parcel, known: Mapping[str, object]) -> Any:
    """Unpack it; arrays that lay beside the pickle are read-only.

    Args:
        parcel: What has travelled.
        known: The objects that are here already, by their names.

    """
    return _Unpacker(parcel, known).load()


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]
    """Takes graphs apart: the same weights are in several of them, and protobuf writes no more than 2 GB at once."""

    def __init__(self, file: io.BytesIO, named: Named) -> None:
        self.beside: list[pickle.PickleBuffer] = []
        super().__init__(file, protocol=5, buffer_callback=self._put_beside)
        self._named, self._known = named, dict[bytes, np.ndarray]()

    def _put_beside(self, buffer: pickle.PickleBuffer) -> bool:
        """Return whether the buffer is to stay in the pickle."""
        small = buffer.raw().nbytes <= SMALL
        if not small:
            self.beside.append(buffer)
        return small

    def persistent_id(self, thing: object) -> str | None:
        return self._named(thing)

    def reducer_override(self, thing: object) -> Any:
        if isinstance(thing, Model):
            left = {f.name: getattr(thing, f.name) for f in fields(thing) if f.name not in {"original", "weights"}}
            return _model, (left,)
        if isinstance(thing, onnx.ModelProto):
            light, tensors = stripped(thing, lambda _tensor: True)
            return _graph, (light.SerializeToString(), [self._tensor(t) for t in tensors])
        return super().reducer_override(thing)

    def _tensor(self, tensor: onnx.TensorProto) -> Tensor:
        if not is_heavy(tensor):
            return tensor.SerializeToString(), None
        data = tensor.raw_data
        return emptied(tensor).SerializeToString(), self._known.setdefault(data, np.frombuffer(data, np.uint8))


class _Unpacker(pickle.Unpickler):
    def __init__(self, parcel: Parcel, known: Mapping[str, object]) -> None:
        super().__init__(io.BytesIO(parcel[0]), buffers=parcel[1])
        self._objects = known

    def persistent_load(self, name: str) -> object:
        return self._objects[name]


def _graph(light: bytes, tensors: Sequence[Tensor]) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.ParseFromString(light)
    for written, data in tensors:
        tensor = proto.graph.initializer.add()
        tensor.ParseFromString(written)
        if data is not None:
            tensor.raw_data = data.tobytes()
    return proto


def _model(left: dict[str, Any]) -> Model:
    weights = {t.name: t for t in left["proto"].graph.initializer}
    return Model(original=onnx.ModelProto(), weights=weights, **left)


def carry(function: Callable[..., Any]) -> None:
    """Have a function of the user's travel as it is, with its module: the other machine need not have the file."""
    inner = function.func if isinstance(function, partial) else function
    module = sys.modules.get(getattr(inner, "__module__", None) or "")
    if module is not None and module.__name__.split(".")[0] != "onnx_amc":
        cloudpickle.register_pickle_by_value(module)
