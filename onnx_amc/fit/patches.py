"""im2col at chosen positions: the rows of the least-squares problem behind a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Int

TOGETHER = 2**21
"""Elements that are taken at a time before they are put in order, so that both fit into the caches."""

FAINT, VAST = 1e-13, 1e15
"""Values below which squares of what is small among them are lost in float32, and above which sums of squares may be."""


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution over d spatial axes; d = 0 for a matrix product.

    Args:
        kernel: Kernel size per axis.
        strides: Step between outputs, in input elements.
        dilations: Step between kernel taps, in input elements.
        pads: Zeros before each axis, then zeros after each axis (ONNX order).
        upsample: Zeros are put between the inputs so that they lie this far apart: 1 for a convolution, the stride of a
            transposed one.

    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    upsample: tuple[int, ...] = ()

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return int(np.prod(self.kernel))

    def outputs(self, space: tuple[int, ...]) -> tuple[int, ...]:
        """Output size per axis for inputs of this size."""
        d = len(self.kernel)
        padded = [(space[i] - 1) * self.upsample[i] + 1 + self.pads[i] + self.pads[d + i] for i in range(d)]
        reach = [(self.kernel[i] - 1) * self.dilations[i] + 1 for i in range(d)]
        return tuple((p - r) // s + 1 for p, r, s in zip(padded, reach, self.strides, strict=True))


def patches(
    x: Float[np.ndarray, "n c *space"], window: Window, positions: Int[np.ndarray, "p d"]
) -> Float[np.ndarray, "c_taps n_p"]:
    """One column per sample and position, holding what the kernel sees there, channel by channel and tap by tap.

    Args:
        x: Input of the convolution.
        window: Its geometry.
        positions: Output positions to look at; (1, 0) for a matrix product.

    """
    n, c = x.shape[:2]
    d = len(window.kernel)
    if d == 0:
        return np.ascontiguousarray(x.T)
    wide = _spread(x, window.upsample)
    offsets = np.array(list(product(*(range(k) for k in window.kernel)))) * window.dilations - window.pads[:d]
    at = (offsets[:, None] + positions * window.strides).reshape(-1, d)
    outside = ((at < 0) | (at >= wide.shape[2:])).any(axis=1)
    at = at.clip(0, np.subtract(wide.shape[2:], 1))
    out = np.empty((c, window.taps, n, len(positions)), dtype=x.dtype)
    few = max(1, TOGETHER // (c * len(at)))
    for i in range(0, n, few):
        seen = picked(wide[i : i + few], at)
        seen[:, :, outside] = 0
        out[:, :, i : i + few] = np.moveaxis(seen.reshape(-1, c, window.taps, len(positions)), 0, 2)
    return out.reshape(c * window.taps, -1)


def picked(x: Float[np.ndarray, "n c *space"], positions: Int[np.ndarray, "p d"]) -> Float[np.ndarray, "n c p"]:
    """What lies at some positions; `take` along one axis is several times faster than an index per axis."""
    flat = np.ravel_multi_index(tuple(positions.T), x.shape[2:])
    return np.asarray(x.reshape(*x.shape[:2], -1).take(flat, axis=2))


def choose(space: tuple[int, ...], count: int, rng: np.random.Generator) -> Int[np.ndarray, "p d"]:
    """Draw `count` distinct output positions, or all of them where there are no more."""
    total = int(np.prod(space))
    flat = np.arange(total) if count >= total else np.sort(rng.choice(total, count, replace=False))
    return np.stack(np.unravel_index(flat, space), axis=1) if space else np.zeros((1, 0), dtype=np.int64)


def _spread(x: np.ndarray, upsample: tuple[int, ...]) -> np.ndarray:
    """Put zeros between the inputs, as a transposed convolution does."""
    if all(u == 1 for u in upsample):
        return x
    sizes = [(size - 1) * u + 1 for size, u in zip(x.shape[2:], upsample, strict=True)]
    sparse = np.zeros((*x.shape[:2], *sizes), x.dtype)
    sparse[(slice(None), slice(None), *(slice(None, None, u) for u in upsample))] = x
    return sparse


def widened(values: np.ndarray) -> np.ndarray:
    """Return values precise enough to multiply: float16 becomes float32, and float64 what float32 could not hold the squares of."""
    values = values.astype(np.float32, copy=False) if values.dtype == np.float16 else values
    if values.dtype != np.float32:
        return values
    peak = max(float(values.max(initial=0)), -float(values.min(initial=0)))
    return values if FAINT <= peak <= VAST else values.astype(np.float64)
