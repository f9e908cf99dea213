"""First and second moments of a layer's input, gathered in one pass; everything later is solved from them."""

from __future__ import annotations

import tempfile
import weakref
from typing import IO, Any

import numpy as np
from jaxtyping import Float

from onnx_amc.errors import kept_aside
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
        self.groups, self.width = groups, width
        self._gram = np.zeros((groups, width + 1, width + 1))
        self._file: IO[bytes] | None = None
        self.centre: np.ndarray | None = None
        self.rows = 0

    def add(self, columns: Float[np.ndarray, "groups_width rows"]) -> None:
        """Add rows, given as columns (see `patches`). Cost: rows x width^2 x groups."""
        width = self.width
        data = widened(columns)
        if self.centre is None:
            self.centre = data.mean(axis=1, dtype=np.float64).astype(data.dtype)
        data = data - self.centre[:, None]
        for g in range(self.groups):
            z = data[g * width : (g + 1) * width]
            sums = z.sum(axis=1, dtype=np.float64)
            self._gram[g, :width, :width] += z @ z.T
            self._gram[g, width, :width] += sums
            self._gram[g, :width, width] += sums
        self._gram[:, width, width] += columns.shape[1]
        self.rows += columns.shape[1]

    @staticmethod
    def bytes_of(groups: int, width: int) -> int:
        """Bytes of the sums of so many groups of so many inputs."""
        return 8 * groups * (width + 1) ** 2

    def shelve(self) -> None:
        """Move the sums to a temporary file, from which each use reads what it needs; nothing can be added any more."""
        with kept_aside():
            self._file = tempfile.TemporaryFile(prefix="onnx-amc-")  # noqa: SIM115  lives as long as the moments
            weakref.finalize(self, self._file.close)
            self._gram.tofile(self._file)
            self._file.flush()
        self._gram = self._gram[:0].copy()

    def __getstate__(self) -> dict[str, Any]:
        """Take the sums along to where the file is not."""
        state = self.__dict__.copy()
        if self._file is not None:
            state |= {"_gram": np.stack([self._sums(g) for g in range(self.groups)]), "_file": None}
        return state

    def _sums(self, group: int) -> np.ndarray:
        """(width + 1, width + 1), of one group; where they are in a file, a map of it that goes when it has been used."""
        if self._file is None:
            return np.asarray(self._gram[group])
        side = self.width + 1
        at = self.bytes_of(group, self.width)
        found: np.ndarray = np.memmap(self._file, np.float64, "r", offset=at, shape=(side, side))
        return found

    def _offset(self, group: int) -> np.ndarray:
        """E[x - c]."""
        return np.asarray(self._sums(group)[-1, :-1] / self.rows)

    def mean(self, group: int = 0) -> Float[np.ndarray, " width"]:
        """E[x]."""
        if self.centre is None:
            raise ValueError("no rows were added")
        centre = self.centre[group * self.width : (group + 1) * self.width].astype(np.float64)
        return np.asarray(centre + self._offset(group))

    def second(self, group: int = 0) -> Float[np.ndarray, "width width"]:
        """E[x x']."""
        mean = self.mean(group)
        return np.asarray(self.covariance(group) + np.outer(mean, mean))

    def covariance(self, group: int = 0) -> Float[np.ndarray, "width width"]:
        """E[x x'] - E[x] E[x]'."""
        offset = self._offset(group)
        return np.asarray(self._sums(group)[:-1, :-1] / self.rows - np.outer(offset, offset))
