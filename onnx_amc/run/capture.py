"""One pass of the calibration data through the original network: the moments of every layer's input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_amc.errors import DataError
from onnx_amc.fit.moments import Moments
from onnx_amc.fit.patches import choose, patches
from onnx_amc.graph.limits import WIDTH, at_a_time, room
from onnx_amc.graph.load import Model, true_inputs
from onnx_amc.graph.proto import names_of, unused
from onnx_amc.prune.layers import Layer
from onnx_amc.run.data import Dataset
from onnx_amc.run.session import open_session, run_session

MEMORY = 256 * 2**20
"""Bytes of activations that one batch of the pass may hold."""

BATCH = 100
"""Samples run at a time, at most."""

CACHE, FEWEST = 16 * 2**20, 4
"""Bytes that a batch's largest activation is to have at most, so that it stays within the caches; samples that it has at least."""

MOMENTS = 8 * 2**30
"""Bytes of moments that are held in memory, where the machine has room for them; more go to disk."""

LARGEST = 1e15
"""Of an activation's values: sums of the squares of larger ones come near what float32 holds."""

Progress = Callable[[int, int], None]


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """The batch size that the model insists on, or None."""
    for info in true_inputs(model):
        dims = info.type.tensor_type.shape.dim
        if len(dims) and dims[0].HasField("dim_value") and dims[0].dim_value > 0:
            return int(dims[0].dim_value)
    return None


def free_batch(proto: onnx.ModelProto, model: Model) -> onnx.ModelProto:
    """Have a graph of a fixed batch take any, in place: inputs say so, and target shapes take the batch from their input."""
    batch = fixed_batch(model.proto)
    if batch is None:
        return proto
    for info in [*true_inputs(proto), *proto.graph.output]:
        if info.type.tensor_type.shape.dim:
            info.type.tensor_type.shape.dim[0].dim_param = "N"
    stored = (t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT64)
    constants, taken = {t.name: numpy_helper.to_array(t) for t in stored}, names_of(proto.graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in proto.graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        target = constants[node.input[1]].copy()
        if not target.size or (model.shapes.get(node.input[0]) or (0,))[0] != batch:
            continue
        if target[0] == batch:
            target[0] = 0
        elif _parted_again(node, target.tolist(), batch, readers, constants):
            target[0] = -1
        else:
            continue
        name = unused(f"{node.output[0]}/any", taken)
        proto.graph.initializer.append(numpy_helper.from_array(target, name))
        node.input[1] = name
    return proto


def _parted_again(
    node: onnx.NodeProto, target: list[int], batch: int, readers: Mapping[str, Sequence[onnx.NodeProto]],
    constants: Mapping[str, np.ndarray],
) -> bool:  # fmt: skip
    """Whether a shape begins with batch x channels, and the two are only moved before they are parted again: channel shuffle."""
    first = readers.get(node.output[0], ())
    then = readers.get(first[0].output[0], ()) if len(first) == 1 and first[0].op_type == "Transpose" else ()
    if len(then) != 1 or then[0].op_type != "Reshape" or then[0].input[1] not in constants or -1 in target:
        return False
    order = next((list(a.ints) for a in first[0].attribute if a.name == "perm"), [*range(len(target))][::-1])
    place, parted = order.index(0), constants[then[0].input[1]].tolist()
    return bool(parted[: place + 2] == [*(target[axis] for axis in order[:place]), -1, target[0] // batch])


def batch_of(model: Model, most: int = BATCH) -> int:
    """Samples to run at a time: a MobileNet runs a third faster by six than by a hundred."""
    activations = (int(np.prod(shape)) for name, shape in model.shapes.items() if name not in model.weights)
    return int(np.clip(CACHE // (4 * max(activations, default=1) or 1), min(FEWEST, most), most))


def batches(model: onnx.ModelProto, index: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cut sample indices into batches; a model of fixed batch gets its last one filled up. Yields (indices, how many count)."""
    fixed = fixed_batch(model)
    size = fixed or size
    for start in range(0, len(index), size):
        part = index[start : start + size]
        count = len(part)
        if fixed and count < fixed:
            part = np.concatenate([part, np.repeat(part[-1:], fixed - count)])
        yield part, count


def feeds(
    model: onnx.ModelProto, data: Dataset, index: np.ndarray, size: int
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """What `batches` are fed, and how many of their samples count; the next is made ready while one is run."""
    with ThreadPoolExecutor(1, "onnx-amc-feed") as pool:
        ready: tuple[Future[dict[str, np.ndarray]], int] | None = None
        for part, count in batches(model, index, size):
            following = pool.submit(data.batch, part), count
            if ready is not None:
                yield ready[0].result(), ready[1]
            ready = following
        if ready is not None:
            yield ready[0].result(), ready[1]


def gather_moments(
    model: Model,
    layers: Sequence[Layer],
    data: Dataset,
    index: np.ndarray,
    *,
    rows: int,
    seed: int,
    memory: float | None = None,
    progress: Progress = lambda _done, _total: None,
) -> dict[str, Moments]:
    """Moments of each layer's input over the calibration samples, by the layer's node; layers of one weight have them in common.

    Args:
        model: The original network.
        layers: Layers to look at.
        data: Samples.
        index: Which samples.
        rows: Rows wanted per layer; convolutions are looked at in as many random positions as that takes.
        seed: Of the positions.
        memory: GB that the run may use; None for what there is. Where the moments take more than a quarter of that they go to a
            temporary file, layer after layer as many as fit, with a pass for each lot; what is found stays the same.
        progress: Told the samples done and their number, over all passes.

    Raises:
        DataError: An activation is not finite, or too large to be squared.

    """
    names = list(dict.fromkeys(layer.x for layer in layers))
    inputs = {i.name for i in true_inputs(model.proto)}
    wanted = [n for n in names if n not in inputs]
    session = open_session(model.proto, where=model.source, extra=wanted)
    taken = sum(int(np.prod(model.shapes[n])) for n in names)
    fixed = fixed_batch(model.proto)
    per_sample = WIDTH * max(taken, at_a_time(model.proto, model.shapes), 1)
    size = int(np.clip(MEMORY // per_sample, 1, 128))

    def activations() -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """What is looked at, batch by batch, and of how many samples; what only fills a fixed batch is left off."""
        for feed, count in feeds(model.proto, data, index, size):
            values = run_session(session, wanted, feed, where=model.source) if wanted else []
            found = dict(zip(wanted, values, strict=True)) | feed
            # places may be folded into axis 0
            yield {name: found[name][: len(found[name]) * count // (fixed or count)] for name in names}, count

    lots = _lots(layers, room(MOMENTS, memory))
    moments: dict[str, Moments] = {}
    done = 0
    for lot in lots:
        each = {layer.weight.name: Moments(len(layer.weight.index), layer.width) for layer in lot}
        mine = {layer.node: each[layer.weight.name] for layer in lot}
        rng = np.random.default_rng(seed)
        for found, count in activations():
            for layer in layers:
                _add(mine.get(layer.node), layer, found[layer.x], -(-rows * count // len(index)), rng, model.source)
            done += count
            progress(done, len(index) * len(lots))
        if len(lots) > 1:
            for one in each.values():
                one.shelve()
        moments |= mine
    return moments


def _lots(layers: Sequence[Layer], most: int) -> list[list[Layer]]:
    """The layers in lots whose moments take so many bytes at most, but for single ones that take more."""
    lots: list[list[Layer]] = [[]]
    taken = 0
    several: dict[str, list[Layer]] = {}
    for layer in layers:
        several.setdefault(layer.weight.name, []).append(layer)
    for same in several.values():
        own = Moments.bytes_of(len(same[0].weight.index), same[0].width)
        if lots[-1] and taken + own > most:
            lots.append([])
            taken = 0
        lots[-1] += same
        taken += own
    return lots


def _add(moments: Moments | None, layer: Layer, x: np.ndarray, rows: int, rng: np.random.Generator, where: str) -> None:
    """Add what a layer reads to its moments; without them only draw positions, so that those of the other layers stay the same."""
    peak = max(float(x.max(initial=0)), -float(x.min(initial=0)))
    if not np.isfinite(peak):
        raise DataError(
            f"activation '{layer.x}' has NaN or infinite values on the calibration data",
            where=where,
            fix="check the preprocessing of the data, and that the model itself gives finite results",
        )
    if peak > LARGEST:
        raise DataError(
            f"activation '{layer.x}' goes beyond {LARGEST:.0e} on the calibration data: its squares cannot be summed",
            where=where,
            fix="check the preprocessing of the data, and the model's weights",
        )
    if layer.channels_last:
        flat = x.reshape(-1, x.shape[-1])
        x, at = flat[choose((len(flat),), rows, rng)[:, 0]], np.zeros((1, 0), dtype=np.int64)
    else:
        at = choose(layer.window.outputs(x.shape[2:]), -(-rows // len(x)), rng)
    if moments is not None:
        moments.add(patches(x, layer.window, at))
