"""Samples that are more than memory should hold: on disk, or decoded when they are asked for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnx_amc.errors import kept_aside

MEMORY = 2**30
"""Bytes of samples that are kept in memory, at most."""


class Shelf:
    """Batches of one array as they come: in memory, from `MEMORY` bytes on in a temporary file.

    The parts have one shape but for their first axis, and the type of the first.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = MEMORY if limit is None else limit
        self.parts: list[np.ndarray] = []
        self._file: tempfile._TemporaryFileWrapper[bytes] | None = None
        self._rows, self._bytes = 0, 0

    def add(self, part: np.ndarray) -> None:
        """Take one more batch."""
        self._rows += len(part) if part.ndim else 1
        self._bytes += part.nbytes
        self.parts.append(part)
        if self._bytes > self.limit and part.ndim and not self.parts[0].dtype.hasobject:
            with kept_aside():
                self._file = self._file or tempfile.NamedTemporaryFile(prefix="onnx-amc-")  # noqa: SIM115  lives as long as the array
                self._write(self._file)
            self.parts = [self.parts[0][:0]]

    def array(self) -> np.ndarray:
        """Return all batches as one array, a map of the file where there is one; it goes with the array."""
        if self._file is None:
            return np.concatenate(self.parts) if self.parts[0].ndim else self.parts[0]
        with kept_aside():
            self._write(self._file)
            self._file.flush()
        shape = (self._rows, *self.parts[0].shape[1:])
        return np.memmap(self._file, self.parts[0].dtype, "r", shape=shape)

    def _write(self, file: tempfile._TemporaryFileWrapper[bytes]) -> None:
        for held in self.parts:
            np.ascontiguousarray(held, self.parts[0].dtype).tofile(file)


class Pictures:
    """Looks like a uint8 array (N,H,W,C) of which only what is asked for is decoded.

    Args:
        files: One per sample, or what else names one.
        read: Gives (H,W,C) for one of them, or raises a DataError.
        shape: (H, W, C) of each.

    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, files: Sequence[Any], read: Callable[[Any], np.ndarray], shape: tuple[int, ...]) -> None:
        self.files, self.read = files, read
        self.shape = (len(files), *shape)

    def __len__(self) -> int:
        """Count the images."""
        return len(self.files)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """Decode the images at `index` (B,) to (B,H,W,C)."""
        return np.stack([self.read(self.files[i]) for i in np.asarray(index).tolist()])

    def listing(self) -> str:
        """Name and size of each file, a line each; nothing where images are no files of their own."""
        files = [file for file in self.files if isinstance(file, Path)]
        top = os.path.commonpath([file.parent for file in files]) if files else ""
        return "".join(f"{file.relative_to(top).as_posix()} {file.stat().st_size}\n" for file in files)
