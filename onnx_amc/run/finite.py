"""What is not finite among a network's outputs: NaN answers nothing, and infinity may be meant."""

from __future__ import annotations

import numpy as np


def answered(z: np.ndarray) -> np.ndarray:
    """Which samples have a finite number in an output, and no NaN, bool (N,)."""
    rows = z.reshape(len(z), -1)
    return np.asarray(np.isfinite(rows).any(axis=1) & ~np.isnan(rows).any(axis=1))


def difference(z: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The difference in float64; equal infinities, as of a class that a mask rules out, are none."""
    with np.errstate(invalid="ignore"):
        gap: np.ndarray = np.subtract(z, target, dtype=np.float64)
    if np.isnan(gap).any():
        gap[z == target] = 0.0
    return gap


def levelled(z: np.ndarray) -> np.ndarray:
    """The same with each infinity at the mean of the element's other samples, so that it adds nothing to the variance."""
    endless = np.isinf(z)
    if not endless.any():
        return z
    known = np.where(endless, 0, z).astype(np.float64)
    mean = known.sum(axis=0) / np.maximum((~endless).sum(axis=0), 1)
    return np.where(endless, mean, known)
