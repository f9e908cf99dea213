"""Convolutions, pooling and norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  its usual name

from onnx_amc.recover.call import Call, UnreadableError, operator

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _spread(values: Sequence[int]) -> list[int]:
    """Pads of ONNX (all begins, then all ends) in torch's order (last axis first, begin and end in turn)."""
    half = len(values) // 2
    return [v for i in reversed(range(half)) for v in (values[i], values[i + half])]


def _pads(c: Call, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Padding in ONNX's order, `auto_pad` and `ceil_mode` worked out."""
    d, auto = len(kernel), c.text("auto_pad", "NOTSET")
    reach = [(k - 1) * s + 1 for k, s in zip(kernel, dilations, strict=True)]
    if auto in {"SAME_UPPER", "SAME_LOWER"}:
        total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(c.x.shape[2:], strides, reach, strict=True)]
        small = [t // 2 for t in total]
        large = [t - s for t, s in zip(total, small, strict=True)]
        return small + large if auto == "SAME_UPPER" else large + small
    return (c.ints(99, "pads") or [0] * (2 * d)) if auto == "NOTSET" else [0] * (2 * d)


def _geometry(c: Call, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    d = len(kernel)
    strides, dilations = c.ints(99, "strides") or [1] * d, c.ints(99, "dilations") or [1] * d
    return strides, dilations, _pads(c, kernel, strides, dilations)


@operator("Conv")
def _conv(c: Call) -> Tensor:
    w = c.need(1)
    strides, dilations, pads = _geometry(c, w.shape[2:])
    d, x, even = w.ndim - 2, c.x, pads[: len(pads) // 2]
    if even != pads[len(pads) // 2 :]:
        x, even = F.pad(x, _spread(pads)), [0] * d
    return CONV[d](x, w, c.optional(2), strides, even, dilations, c.int("group", 1))


@operator("ConvTranspose")
def _conv_transpose(c: Call) -> Tensor:
    if c.text("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in c.attrs:
        raise UnreadableError("ConvTranspose with auto_pad or output_shape")
    w = c.need(1)
    strides, dilations, pads = _geometry(c, w.shape[2:])
    d = w.ndim - 2
    extra = c.ints(99, "output_padding") or [0] * d
    ends = [e - p for e, p in zip(extra, pads[d:], strict=True)]
    bias = c.optional(2)
    late = bias is not None and max(ends) > 0  # what is padded has the bias too
    whole = TRANSPOSED[d](c.x, w, None if late else bias, strides, 0, 0, c.int("group", 1), dilations)
    found: Tensor = F.pad(whole, _spread([-p for p in pads[:d]] + ends))
    return found + bias.reshape(-1, *[1] * d) if late and bias is not None else found


def _overhang(c: Call, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Geometry of a pool, and how far its last windows reach beyond the padding where sizes are rounded up."""
    strides, dilations, pads = _geometry(c, kernel)
    d, more = len(kernel), [0] * len(kernel)
    if c.int("ceil_mode", 0) and c.text("auto_pad", "NOTSET") in {"NOTSET", "VALID"}:
        for i, n in enumerate(c.x.shape[2:]):
            left = n + pads[i] + pads[i + d] - (kernel[i] - 1) * dilations[i] - 1
            steps = -(-left // strides[i])
            if steps * strides[i] >= n + pads[i]:  # a window must not start in the end padding
                steps -= 1
            more[i] = max(steps * strides[i] - left, 0)
    return strides, dilations, pads, more


@operator("MaxPool")
def _max_pool(c: Call) -> Tensor:
    if c.outputs > 1 or c.int("storage_order", 0):
        raise UnreadableError("MaxPool with indices")
    kernel = c.ints(99, "kernel_shape") or []
    strides, dilations, pads, more = _overhang(c, kernel)
    ends = [p + m for p, m in zip(pads[len(kernel) :], more, strict=True)]
    x = F.pad(c.x, _spread(pads[: len(kernel)] + ends), value=-torch.inf)
    return MAX_POOL[len(kernel)](x, kernel, strides, 0, dilations)


@operator("AveragePool")
def _average_pool(c: Call) -> Tensor:
    kernel = c.ints(99, "kernel_shape") or []
    strides, dilations, pads, more = _overhang(c, kernel)
    if any(s != 1 for s in dilations):
        raise UnreadableError("AveragePool with dilations")
    d, pool = len(kernel), AVG_POOL[len(kernel)]
    beyond = _spread([0] * d + more)
    counted = torch.ones((1, 1, *c.x.shape[2:]), dtype=c.x.dtype, device=c.x.device)
    counted = F.pad(F.pad(counted, _spread(pads), value=float(c.int("count_include_pad", 0))), beyond)
    x = F.pad(F.pad(c.x, _spread(pads)), beyond)
    return pool(x, kernel, strides) / pool(counted, kernel, strides)


@operator("GlobalAveragePool")
def _global_average(c: Call) -> Tensor:
    return c.x.mean(tuple(range(2, c.x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def _global_max(c: Call) -> Tensor:
    return c.x.amax(tuple(range(2, c.x.ndim)), keepdim=True)


@operator("BatchNormalization")
def _batch_norm(c: Call) -> Tensor:
    if c.int("training_mode", 0) or c.outputs > 1:
        raise UnreadableError("BatchNormalization in training mode")
    return F.batch_norm(c.x, c.need(3), c.need(4), c.need(1), c.need(2), False, 0.0, c.float("epsilon", 1e-5))


@operator("InstanceNormalization")
def _instance_norm(c: Call) -> Tensor:
    return F.instance_norm(c.x, None, None, c.need(1), c.need(2), True, 0.0, c.float("epsilon", 1e-5))


@operator("GroupNormalization")
def _group_norm(c: Call) -> Tensor:
    groups, channels = c.int("num_groups", 1), c.x.shape[1]
    scale, bias = (c.need(i).repeat_interleave(channels // c.need(i).numel()) for i in (1, 2))
    return F.group_norm(c.x, groups, scale, bias, c.float("epsilon", 1e-5))


@operator("LayerNormalization")
def _layer_norm(c: Call) -> Tensor:
    if c.outputs > 1:
        raise UnreadableError("LayerNormalization whose mean is read")
    axis = c.int("axis", -1) % c.x.ndim
    found = F.layer_norm(c.x, c.x.shape[axis:], eps=c.float("epsilon", 1e-5)) * c.need(1)
    bias = c.optional(2)
    return found if bias is None else found + bias


@operator("RMSNormalization")
def _rms_norm(c: Call) -> Tensor:
    axis = c.int("axis", -1) % c.x.ndim
    return F.rms_norm(c.x, c.x.shape[axis:], eps=c.float("epsilon", 1e-5)) * c.need(1)


@operator("LRN")
def _lrn(c: Call) -> Tensor:
    size = c.int("size", 1)
    squares = F.pad(c.x.square().movedim(1, -1), ((size - 1) // 2, size - 1 - (size - 1) // 2)).unfold(-1, size, 1)
    sums = squares.sum(-1).movedim(-1, 1)
    scale = c.float("bias", 1.0) + c.float("alpha", 1e-4) / size * sums
    return c.x / scale.pow(c.float("beta", 0.75))


@operator("LpNormalization")
def _lp_norm(c: Call) -> Tensor:
    return F.normalize(c.x, p=float(c.int("p", 2)), dim=c.int("axis", -1))
