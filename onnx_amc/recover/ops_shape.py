"""Operators that move, select and make elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  its usual name

from onnx_amc.recover.call import Call, UnreadableError, operator

ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda places: torch.ceil(places - 0.5),
    "round_prefer_ceil": lambda places: torch.floor(places + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


@operator("Constant")
def _constant(c: Call) -> Tensor:
    value = next(iter(c.attrs.values()))
    return _tensor(value) if isinstance(value, onnx.TensorProto) else torch.tensor(value)


def _tensor(proto: onnx.TensorProto) -> Tensor:
    return torch.from_numpy(numpy_helper.to_array(proto).copy())


@operator("ConstantOfShape")
def _constant_of_shape(c: Call) -> Tensor:
    value = _tensor(c.attrs["value"]) if "value" in c.attrs else torch.zeros(1)
    return value.reshape(()).expand(c.ints(0) or [])


@operator("Shape")
def _shape(c: Call) -> Tensor:
    end = c.attrs.get("end")
    return torch.tensor(c.x.shape[c.int("start", 0) : None if end is None else int(cast(int, end))])


@operator("Size")
def _size(c: Call) -> Tensor:
    return torch.tensor(c.x.numel())


@operator("Range")
def _range(c: Call) -> Tensor:
    (start,), (limit,), (delta,) = (c.numbers(i) or [0] for i in range(3))
    return torch.arange(start, limit, delta, dtype=c.x.dtype)


@operator("Reshape")
def _reshape(c: Call) -> Tensor:
    wanted = c.ints(1, "shape") or []
    if not c.int("allowzero", 0):
        wanted = [c.x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return c.x.reshape(wanted)


@operator("Flatten")
def _flatten(c: Call) -> Tensor:
    axis = c.int("axis", 1)
    axis += c.x.ndim * (axis < 0)
    return c.x.reshape(int(np.prod(c.x.shape[:axis])), -1)


@operator("Transpose")
def _transpose(c: Call) -> Tensor:
    return c.x.permute(c.ints(99, "perm") or list(reversed(range(c.x.ndim))))


@operator("Squeeze")
def _squeeze(c: Call) -> Tensor:
    axes = c.ints(1, "axes")
    return c.x.squeeze() if axes is None else c.x.squeeze(tuple(axes))


@operator("Unsqueeze")
def _unsqueeze(c: Call) -> Tensor:
    axes = c.ints(1, "axes") or []
    x, rank = c.x, c.x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def _concat(c: Call) -> Tensor:
    return torch.cat([a for a in c.args if a is not None], c.int("axis", 0))


@operator("Split")
def _split(c: Call) -> Sequence[Tensor]:
    axis, sizes = c.int("axis", 0), c.ints(1, "split")
    if sizes is None:
        each = -(-c.x.shape[axis] // c.int("num_outputs", c.outputs))
        return torch.split(c.x, each, axis)
    return torch.split(c.x, sizes, axis)


@operator("Slice")
def _slice(c: Call) -> Tensor:
    starts, ends = c.ints(1, "starts") or [], c.ints(2, "ends") or []
    axes, steps = c.ints(3, "axes") or list(range(len(starts))), c.ints(4) or [1] * len(starts)
    x = c.x
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        span = _span(start, end, step, x.shape[axis])
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (span,)]
        else:
            x = x.index_select(axis, torch.tensor(range(x.shape[axis])[span], device=x.device))
    return x


def _span(start: int, end: int, step: int, size: int) -> slice:
    """A slice as ONNX reads it: an end below -size, going backwards, means the very first element."""
    return slice(start, None if step < 0 and end < -size else end, step)


@operator("Gather")
def _gather(c: Call) -> Tensor:
    axis, at = c.int("axis", 0), c.need(1).long()
    axis %= c.x.ndim
    at = torch.where(at < 0, at + c.x.shape[axis], at)
    found = c.x.index_select(axis, at.reshape(-1))
    return found.reshape((*c.x.shape[:axis], *at.shape, *c.x.shape[axis + 1 :]))


@operator("GatherElements")
def _gather_elements(c: Call) -> Tensor:
    axis, at = c.int("axis", 0), c.need(1).long()
    return c.x.gather(axis, torch.where(at < 0, at + c.x.shape[axis], at))


@operator("GatherND")
def _gather_nd(c: Call) -> Tensor:
    if c.int("batch_dims", 0):
        raise UnreadableError("GatherND with batch_dims")
    at = c.need(1).long()
    return c.x[tuple(at.movedim(-1, 0))]


@operator("ScatterND")
def _scatter_nd(c: Call) -> Tensor:
    if c.text("reduction", "none") != "none":
        raise UnreadableError("ScatterND with a reduction")
    at = c.need(1).long()
    return c.x.index_put(tuple(at.movedim(-1, 0)), c.need(2))


@operator("Expand")
def _expand(c: Call) -> Tensor:
    return c.x * torch.ones(c.ints(1) or [], dtype=c.x.dtype, device=c.x.device)


@operator("Tile")
def _tile(c: Call) -> Tensor:
    return c.x.repeat(c.ints(1) or [])


@operator("Trilu")
def _trilu(c: Call) -> Tensor:
    (k,) = c.ints(1) or [0]
    return torch.triu(c.x, k) if c.int("upper", 1) else torch.tril(c.x, k)


@operator("Pad")
def _pad(c: Call) -> Tensor:
    pads, mode = c.ints(1, "pads") or [], c.text("mode", "constant")
    axes = c.ints(3) or list(range(len(pads) // 2))
    fill = c.number(2, "value") or 0.0
    x = c.x
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        x = _pad_axis(x, axis % x.ndim, before, after, mode, fill)
    return x


def _pad_axis(x: Tensor, axis: int, before: int, after: int, mode: str, fill: float) -> Tensor:
    if before < 0 or after < 0:
        cut = (max(-before, 0), x.shape[axis] - max(-after, 0))
        x, before, after = x.narrow(axis, cut[0], cut[1] - cut[0]), max(before, 0), max(after, 0)
    if not before and not after:
        return x
    if mode == "constant":
        last = x.ndim - 1 - axis
        return F.pad(x, [0] * (2 * last) + [before, after], value=fill)
    size = x.shape[axis]
    at = torch.arange(-before, size + after, device=x.device)
    if mode == "edge":
        at = at.clamp(0, size - 1)
    elif mode == "wrap":
        at = at % size
    else:
        at = at.abs()
        at = torch.where(at >= size, 2 * (size - 1) - at, at)
    return x.index_select(axis, at)


@operator("DepthToSpace", "SpaceToDepth")
def _depth_space(c: Call) -> Tensor:
    b, (n, channels, height, width) = c.int("blocksize", 1), c.x.shape
    if c.kind == "SpaceToDepth":
        x = c.x.reshape(n, channels, height // b, b, width // b, b)
        return x.permute(0, 3, 5, 1, 2, 4).reshape(n, channels * b * b, height // b, width // b)
    if c.text("mode", "DCR") == "DCR":
        x = c.x.reshape(n, b, b, channels // b**2, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        x = c.x.reshape(n, channels // b**2, b, b, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, channels // b**2, height * b, width * b)


@operator("Resize", "Upsample")
def _resize(c: Call) -> Tensor:
    """Nearest and linear, whatever the coordinates: a gather per axis."""
    mode, kind = c.text("mode", "nearest"), c.text("coordinate_transformation_mode", "half_pixel")
    if c.kind == "Upsample" or c.opset < 11:
        kind = "asymmetric"
    odd = c.int("antialias", 0) or "axes" in c.attrs or kind == "tf_crop_and_resize"
    if mode not in {"nearest", "linear"} or odd or c.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnreadableError(f"{c.kind} by {mode}, {kind}")
    at = 1 if c.opset < 11 else 2
    scales = c.numbers(at) or c.attrs.get("scales")
    sizes = c.ints(3) if c.opset >= 11 else None
    if sizes is None:
        ratios = [np.float32(s) for s in cast("list[float]", scales)]
        sizes = [int(np.float32(n) * s) for n, s in zip(c.x.shape, ratios, strict=True)]
    else:
        ratios = [np.float32(m) / np.float32(n) for m, n in zip(sizes, c.x.shape, strict=True)]
    x = c.x
    if sizes == list(x.shape):  # onnxruntime copies, whatever the scales
        return x
    rounding = c.text("nearest_mode", "round_prefer_floor") if c.opset >= 11 else "floor"
    for axis, (size, ratio) in enumerate(zip(sizes, ratios, strict=True)):
        if size != x.shape[axis] or ratio != 1:
            places = _sources(size, x.shape[axis], ratio, kind)
            x = _nearest(x, axis, places, rounding) if mode == "nearest" else _linear(x, axis, places)
    return x


def _sources(size: int, before: int, scale: np.float32, kind: str) -> Tensor:
    """Where each element of an axis comes from, in float32 as in onnxruntime: the nearest one may depend on the rounding."""
    at, ratio = torch.arange(size, dtype=torch.float32), torch.tensor(scale)
    if kind == "asymmetric":
        return at / ratio
    if kind == "align_corners":
        return at * ((before - 1) / (size - 1)) if size > 1 else at * 0
    if kind == "pytorch_half_pixel" and size == 1:
        return at * 0
    if kind == "tf_half_pixel_for_nn":
        return (at + 0.5) / ratio
    if kind == "half_pixel_symmetric":
        shift = before / 2 * (1 - size / (ratio * before))
        return shift + (at + 0.5) / ratio - 0.5
    return (at + 0.5) / ratio - 0.5


def _nearest(x: Tensor, axis: int, places: Tensor, rounding: str) -> Tensor:
    rounded = ROUNDINGS[rounding](places)
    return x.index_select(axis, rounded.clamp(0, x.shape[axis] - 1).to(dtype=torch.int64, device=x.device))


def _linear(x: Tensor, axis: int, places: Tensor) -> Tensor:
    places = places.clamp(0, x.shape[axis] - 1)
    low = places.floor().to(torch.int64)
    high = (low + 1).clamp(max=x.shape[axis] - 1).to(x.device)
    share = (places - low).to(dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1 - axis))
    return x.index_select(axis, low.to(x.device)) * (1 - share) + x.index_select(axis, high) * share
