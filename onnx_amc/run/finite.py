"""What is not finite among a network's outputs: NaN answers nothing."""

from __future__ import annotations

import numpy as np


def answered(z: np.ndarray) -> np.ndarray:
    """Which samples have a finite number in an output, and no NaN, bool (N,)."""
    rows = z.reshape(len(z), -1)
    return np.asarray(np.isfinite(rows).any(axis=1) & ~np.isnan(rows).any(axis=1))
