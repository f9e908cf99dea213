"""First and second moments of a layer's input, gathered in one pass; everything later is solved from them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from onnx_amc.fit.patches import widened


class Moments:
    """Sums of z z' over rows z = [x - c, 1], one matrix per convolution group; c is the mean of the first rows added.

    The column of ones carries the mean, hence the bias. Products are taken in the data's precision (float32 at least), after
    the centre is taken off, and sums are kept in float64.

    Args:
        groups: Groups of the convolution; 1 otherwise.
        width: Inputs per group: channels times kernel taps.

    """

    def __init__(self, groups: int, width: int) -> None:
        self.gram = np.zeros((groups, width + 1, width + 1))
        self.centre: np.ndarray | None = None
        self.rows = 0

    def add(self, columns: Float[np.ndarray, "groups_width rows"]) -> None:
        """Add rows, given as columns (see `patches`). Cost: rows x width^2 x groups."""
        groups, width = self.gram.shape[0], self.gram.shape[1] - 1
        data = widened(columns)
        if self.centre is None:
            self.centre = data.mean(axis=1, dtype=np.float64).astype(data.dtype)
        data = data - self.centre[:, None]
        for g in range(groups):
            z = data[g * width : (g + 1) * width]
            sums = z.sum(axis=1, dtype=np.float64)
            self.gram[g, :width, :width] += z @ z.T
            self.gram[g, width, :width] += sums
            self.gram[g, :width, width] += sums
        self.gram[:, width, width] += columns.shape[1]
        self.rows += columns.shape[1]

    def _offset(self, group: int) -> np.ndarray:
        """E[x - c]."""
        return np.asarray(self.gram[group, -1, :-1] / self.rows)

    def mean(self, group: int = 0) -> Float[np.ndarray, " width"]:
        """E[x]."""
        if self.centre is None:
            raise ValueError("no rows were added")
        width = self.gram.shape[1] - 1
        centre = self.centre[group * width : (group + 1) * width].astype(np.float64)
        return np.asarray(centre + self._offset(group))

    def second(self, group: int = 0) -> Float[np.ndarray, "width width"]:
        """E[x x']."""
        mean = self.mean(group)
        return np.asarray(self.covariance(group) + np.outer(mean, mean))

    def covariance(self, group: int = 0) -> Float[np.ndarray, "width width"]:
        """E[x x'] - E[x] E[x]'."""
        offset = self._offset(group)
        return np.asarray(self.gram[group, :-1, :-1] / self.rows - np.outer(offset, offset))
