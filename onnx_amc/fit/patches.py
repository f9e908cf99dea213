"""im2col at chosen positions: the rows of the least-squares problem behind a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Int


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
    wide = _spread(x, window)
    out = np.empty((c, window.taps, n, len(positions)), dtype=x.dtype)
    for tap, offset in enumerate(product(*(range(k) for k in window.kernel))):
        index = tuple(positions[:, i] * window.strides[i] + offset[i] * window.dilations[i] for i in range(d))
        out[:, tap] = np.moveaxis(wide[(slice(None), slice(None), *index)], 0, 1)  # type: ignore[arg-type]
    return out.reshape(c * window.taps, -1)


def choose(space: tuple[int, ...], count: int, rng: np.random.Generator) -> Int[np.ndarray, "p d"]:
    """Draw `count` distinct output positions, or all of them where there are no more."""
    total = int(np.prod(space))
    flat = np.arange(total) if count >= total else np.sort(rng.choice(total, count, replace=False))
    return np.stack(np.unravel_index(flat, space), axis=1) if space else np.zeros((1, 0), dtype=np.int64)


def _spread(x: np.ndarray, window: Window) -> np.ndarray:
    """Put zeros between (transposed convolution) and around the inputs."""
    d = len(window.kernel)
    space = x.shape[2:]
    if any(u > 1 for u in window.upsample):
        sparse = np.zeros(
            (*x.shape[:2], *((s - 1) * u + 1 for s, u in zip(space, window.upsample, strict=True))), x.dtype
        )
        sparse[(slice(None), slice(None), *(slice(None, None, u) for u in window.upsample))] = x
        x = sparse
    if not any(window.pads):
        return x
    before = [max(p, 0) for p in window.pads[:d]]
    after = [max(p, 0) for p in window.pads[d:]]
    x = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    crop = tuple(
        slice(max(-a, 0), x.shape[2 + i] - max(-b, 0))
        for i, (a, b) in enumerate(zip(window.pads[:d], window.pads[d:], strict=True))
    )
    return x[(slice(None), slice(None), *crop)]


def widened(values: np.ndarray) -> np.ndarray:
    """Return values precise enough to multiply: float16 becomes float32."""
    return values.astype(np.float32, copy=False) if values.dtype == np.float16 else values
