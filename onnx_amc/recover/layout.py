"""How torch computes while a network is trained: how tensors lie in memory, how finely they are multiplied, on how many threads.

On a CPU torch convolves fastest with channels innermost ("by pixel"). What leaves that order on the way, forwards or backwards,
takes along all that comes after it, and sums of tensors in different orders take several times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

STILL = 1e-12
"""Variance of what never moves, relative to its mean square: about that of float32's rounding."""


def by_pixel(value: Tensor) -> Tensor:
    """The same tensor, its channels innermost in memory if it has four axes."""
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def is_by_pixel(value: Tensor | None) -> bool:
    """Whether channels are innermost, and could be otherwise."""
    if value is None or value.ndim != 4 or value.is_contiguous():
        return False
    return value.is_contiguous(memory_format=torch.channels_last)


def held_by_pixel(value: Tensor) -> Tensor:
    """The same tensor by pixel, and its gradient too."""
    value = by_pixel(value)
    if value.requires_grad and value.ndim == 4:
        value.register_hook(by_pixel)  # type: ignore[no-untyped-call]
    return value


class MeanSquare(torch.autograd.Function):
    """The mean squared difference of two tensors, whose gradient lies in memory as the first does; that of torch's own does not.

    Equal infinities, as of a class that a mask rules out, are no difference.
    """

    @staticmethod
    def forward(ctx: Any, found: Tensor, goal: Tensor) -> Tensor:
        """Return a scalar of float32, or of what is wider; the goal takes no gradient."""
        gap = found - goal
        kind = torch.promote_types(gap.dtype, torch.float32)
        norm: Tensor = torch.linalg.vector_norm(gap, dtype=kind)
        if bool(norm.isnan()):
            gap = gap.masked_fill(found == goal, 0.0)
            norm = torch.linalg.vector_norm(gap, dtype=kind)
        ctx.dtype = found.dtype
        ctx.save_for_backward(gap)
        return norm.square() / gap.numel()

    @staticmethod
    def backward(ctx: Any, *above: Any) -> tuple[Tensor, None]:
        """Return the gradient of what was found, in its type and order."""
        (gap,) = ctx.saved_tensors
        return (gap * (above[0] * (2 / gap.numel()))).to(ctx.dtype), None


def variance(value: Tensor) -> float:
    """Of each element from sample to sample, averaged, but at least `STILL` of the mean square; infinities are left out."""
    value = value.double()
    endless = value.isinf()
    if endless.any():
        known = value.masked_fill(endless, 0.0)
        value = torch.where(endless, known.sum(dim=0) / (~endless).sum(dim=0).clamp_min(1), known)
    return max(float(value.var(dim=0, correction=0).mean()), STILL * float(value.square().mean()))


def coarse_products() -> bool:
    """Whether this processor multiplies matrices of bfloat16 by itself (AMX), much faster than those of float32."""
    told = getattr(torch.cpu, "get_capabilities", None)  # of torch 2.10 and later
    return bool(told and told().get("amx_bf16"))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch's operators do without threads of their own, in this thread and in those that it starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Let new tensors be of float32, whatever the caller has set torch to."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
