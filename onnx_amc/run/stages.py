"""Running a graph piece by piece over all samples at once, so that weights further on may still change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx

from onnx_amc.errors import DataError
from onnx_amc.graph.proto import last_uses, names_read
from onnx_amc.prune.surgery import list_stored
from onnx_amc.run.session import open_session, run_session


class Stages:
    """A network that stops on the way; what has been computed and is still needed is held in memory.

    Args:
        batches: Inputs of the network, batch by batch.
        wanted: Tensors that will be asked for, each as often as it will be.
        where: What to call the model in messages.

    """

    def __init__(self, batches: Sequence[Mapping[str, np.ndarray]], wanted: Iterable[str], where: str) -> None:
        self._wanted = Counter(wanted)
        self._held: list[dict[str, np.ndarray]] = [dict(b) for b in batches]
        self._where = where
        self._position = 0
        self._last: dict[str, int] = {}
        self._place: dict[str, int] = {}

    def until(
        self, proto: onnx.ModelProto, node: str, names: Collection[str], *, through: bool = False
    ) -> list[dict[str, np.ndarray]]:
        """Run everything that lies before a node and has not been run yet.

        Args:
            proto: The graph, of the same nodes each time; what has been run of it must be as it was.
            node: Some output of the node to stop before.
            names: Tensors computed by then whose values to return, batch by batch.
            through: Whether to run the node too.

        Raises:
            DataError: onnxruntime cannot run the piece.

        """
        if not self._last:
            self._last = last_uses(proto)
            self._place = {o: i for i, n in enumerate(proto.graph.node) for o in n.output if o}
        stop = max(self._place[node] + through, self._position)
        piece = list(proto.graph.node[self._position : stop])
        self._run(proto, piece, sorted({o for n in piece for o in n.output if o and self._needed(o, stop)}))
        self._position = stop
        found = [{n: b[n] for n in names} for b in self._held]
        self._wanted.subtract(names)
        for batch in self._held:
            for name in [n for n in batch if not self._needed(n, stop)]:
                del batch[name]
        return found

    def _needed(self, name: str, stop: int) -> bool:
        return self._last.get(name, -1) >= stop or self._wanted[name] > 0

    def _run(self, proto: onnx.ModelProto, piece: list[onnx.NodeProto], results: list[str]) -> None:
        if not results:
            return
        read = {name for n in piece for name in names_read(n)}
        part = onnx.ModelProto(ir_version=proto.ir_version)
        part.opset_import.extend(proto.opset_import)
        part.graph.name = "piece"
        part.graph.node.extend(piece)
        part.graph.initializer.extend(t for t in proto.graph.initializer if t.name in read)
        stored = {t.name for t in part.graph.initializer}
        for name, value in self._held[0].items():
            if name in read - stored:
                kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
                part.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * value.ndim))
        list_stored(part)
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in results)
        session = open_session(part, where=self._where)
        for batch in self._held:
            values = run_session(session, results, batch, where=self._where)
            if not all(isinstance(v, np.ndarray) for v in values):
                raise DataError(
                    "a value on the way is no tensor", where=self._where, fix="the refit goes without this step"
                )
            batch |= dict(zip(results, values, strict=True))


def live_bytes(proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], stops: Collection[str]) -> int:
    """Bytes per sample of what is held at the fullest of some stops, counting four bytes a number."""
    stored, last, most = {t.name for t in proto.graph.initializer}, last_uses(proto), 1
    held = sum(_bytes(shapes, i.name) for i in proto.graph.input if i.name in last.keys() - stored)
    for i, node in enumerate(proto.graph.node):
        held += sum(_bytes(shapes, o) for o in node.output)
        if any(o in stops for o in node.output):
            most = max(most, held)
        held -= sum(_bytes(shapes, n) for n in names_read(node).union(node.output) - stored if last.get(n, i) == i)
    return most


def _bytes(shapes: dict[str, tuple[int, ...]], name: str) -> int:
    return 4 * int(np.prod(shapes.get(name, (0,))))
