"""Element-wise operators, reductions and products."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  its usual name

from onnx_amc.recover.call import Call, UnreadableError, operator

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh, "Atan": torch.atan,
    "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "HardSwish": F.hardswish, "Identity": lambda x: x, "IsNaN": torch.isnan, "Log": torch.log, "Mish": F.mish,
    "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round,
    "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Softplus": F.softplus,
    "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
}  # fmt: skip

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "And": torch.logical_and, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "Less": torch.lt, "LessOrEqual": torch.le, "MatMul": torch.matmul, "Mul": torch.mul, "Or": torch.logical_or,
    "PRelu": lambda x, slope: torch.where(x < 0, slope * x, x), "Sub": torch.sub, "Xor": torch.logical_xor,
}  # fmt: skip

MANY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum, "Mean": torch.add, "Min": torch.minimum, "Sum": torch.add
}  # fmt: skip

SHAPED: dict[str, tuple[Callable[[Tensor, float], Tensor], float]] = {
    "Celu": (F.celu, 1.0), "Elu": (F.elu, 1.0), "LeakyRelu": (F.leaky_relu, 0.01),
    "Swish": (lambda x, alpha: x * torch.sigmoid(alpha * x), 1.0),
    "ThresholdedRelu": (lambda x, alpha: F.threshold(x, alpha, 0.0), 1.0),
}  # fmt: skip
"""Activations of one number, `alpha`, and what it usually is."""

REDUCED: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceL1": lambda x, d, k: x.abs().sum(d, keepdim=k),
    "ReduceL2": lambda x, d, k: x.square().sum(d, keepdim=k).sqrt(),
    "ReduceLogSum": lambda x, d, k: x.sum(d, keepdim=k).log(),
    "ReduceLogSumExp": lambda x, d, k: torch.logsumexp(x, d, keepdim=k),
    "ReduceMax": lambda x, d, k: torch.amax(x, d, keepdim=k),
    "ReduceMean": lambda x, d, k: x.mean(d, keepdim=k),
    "ReduceMin": lambda x, d, k: torch.amin(x, d, keepdim=k),
    "ReduceProd": lambda x, d, k: reduce(
        lambda y, axis: y.prod(axis, keepdim=k), sorted({i % x.ndim for i in d}, reverse=True), x
    ),
    "ReduceSum": lambda x, d, k: x.sum(d, keepdim=k),
    "ReduceSumSquare": lambda x, d, k: x.square().sum(d, keepdim=k),
}


@operator(*UNARY)
def _unary(c: Call) -> Tensor:
    return UNARY[c.kind](c.x)


@operator(*BINARY)
def _binary(c: Call) -> Tensor:
    return BINARY[c.kind](c.x, c.need(1))


@operator(*MANY)
def _many(c: Call) -> Tensor:
    total = reduce(MANY[c.kind], [a for a in c.args if a is not None])
    return total / len(c.args) if c.kind == "Mean" else total


@operator(*REDUCED)
def _reduced(c: Call) -> Tensor:
    x, axes, keep = c.x, c.ints(1, "axes"), bool(c.int("keepdims", 1))
    if not axes and c.int("noop_with_empty_axes", 0):  # each element is reduced by itself
        x, axes, keep = x[None], [0], False
    found = REDUCED[c.kind](x, axes or list(range(x.ndim)), keep)
    return found if x.is_floating_point() else found.to(x.dtype)  # torch sums whole numbers in int64


@operator("Div")
def _div(c: Call) -> Tensor:
    a, b = c.x, c.need(1)
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def _mod(c: Call) -> Tensor:
    return torch.fmod(c.x, c.need(1)) if c.int("fmod", 0) else torch.remainder(c.x, c.need(1))


@operator("Pow")
def _pow(c: Call) -> Tensor:
    return torch.pow(c.x, c.need(1)).to(c.x.dtype)


@operator("Where")
def _where(c: Call) -> Tensor:
    return torch.where(c.x, c.need(1), c.need(2))


@operator("Clip")
def _clip(c: Call) -> Tensor:
    low, high = (c.number(i, name) for i, name in enumerate(("min", "max"), 1))
    if low is None and high is None:
        return c.x
    if c.x.is_floating_point() and low is not None and high is not None:
        return F.hardtanh(c.x, low, high)  # its gradient takes one pass over memory, that of clamp four
    return torch.clamp(c.x, low, high)


@operator(*SHAPED)
def _shaped(c: Call) -> Tensor:
    function, usual = SHAPED[c.kind]
    return function(c.x, c.float("alpha", usual))


@operator("Selu")
def _selu(c: Call) -> Tensor:
    alpha, gamma = c.float("alpha", 1.67326319217681884765625), c.float("gamma", 1.05070102214813232421875)
    return gamma * F.elu(c.x, alpha)


@operator("HardSigmoid")
def _hard_sigmoid(c: Call) -> Tensor:
    return torch.clamp(c.float("alpha", 0.2) * c.x + c.float("beta", 0.5), 0.0, 1.0)


@operator("Gelu")
def _gelu(c: Call) -> Tensor:
    return F.gelu(c.x, approximate=c.text("approximate", "none"))


@operator("Softmax", "LogSoftmax")
def _softmax(c: Call) -> Tensor:
    function = torch.softmax if c.kind == "Softmax" else torch.log_softmax
    if c.opset >= 13:
        return function(c.x, c.int("axis", -1))
    axis = c.int("axis", 1) % c.x.ndim
    return function(c.x.flatten(axis), -1).reshape(c.x.shape)


@operator("ArgMax", "ArgMin")
def _arg(c: Call) -> Tensor:
    if c.int("select_last_index", 0):
        raise UnreadableError(f"{c.kind} with select_last_index")
    function = torch.argmax if c.kind == "ArgMax" else torch.argmin
    return function(c.x, c.int("axis", 0), keepdim=bool(c.int("keepdims", 1)))


@operator("CumSum")
def _cumsum(c: Call) -> Tensor:
    (axis,) = c.ints(1) or [0]
    x = c.x.flip(axis) if c.int("reverse", 0) else c.x
    whole = None if x.is_floating_point() else x.dtype  # torch sums whole numbers in int64
    found = x.cumsum(axis, dtype=whole) - (x if c.int("exclusive", 0) else 0)
    return found.flip(axis) if c.int("reverse", 0) else found


@operator("Gemm")
def _gemm(c: Call) -> Tensor:
    a = c.x.T if c.int("transA", 0) else c.x
    b = c.need(1).T if c.int("transB", 0) else c.need(1)
    found, bias = c.float("alpha", 1.0) * (a @ b), c.optional(2)
    return found if bias is None else found + c.float("beta", 1.0) * bias


@operator("Einsum")
def _einsum(c: Call) -> Tensor:
    return torch.einsum(c.text("equation", ""), *[a for a in c.args if a is not None])


@operator("Cast")
def _cast(c: Call) -> Tensor:
    from onnx.helper import tensor_dtype_to_np_dtype  # noqa: PLC0415  beside its only use

    try:
        kind = torch.from_numpy(torch.zeros(0).numpy().astype(tensor_dtype_to_np_dtype(c.int("to", 1)))).dtype
    except TypeError as error:
        raise UnreadableError("Cast to a type that torch does not have") from error
    return c.x.to(kind)


@operator("CastLike")
def _cast_like(c: Call) -> Tensor:
    return c.x.to(c.need(1).dtype)


@operator("Dropout")
def _dropout(c: Call) -> tuple[Tensor, Tensor]:
    return c.x, torch.ones_like(c.x, dtype=torch.bool)
