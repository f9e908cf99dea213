"""Arrays out of `.npz` files that anybody may have written: no code is run, no more memory taken than the file accounts for."""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

LARGEST = 2**30
"""Bytes of arrays that any file may hold, however small it is."""

RATIO = 50
"""Bytes of arrays that each byte of a larger file may stand for: no real data is compressed that well, bombs are."""


DAMAGE = (
    ValueError,
    EOFError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
)
"""What zipfile and numpy raise at damaged files; the header of an array is Python text."""


class ArchiveError(Exception):
    """An archive that cannot be read.

    Args:
        what: What is wrong with it.
        name: The array it was found at, "" where it is the whole file.
        pickled: Whether the array holds Python objects.

    """

    def __init__(self, what: str, name: str = "", *, pickled: bool = False) -> None:
        self.what, self.name, self.pickled = what, name, pickled
        super().__init__(f"{what} (array '{name}')" if name else what)


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Every array of an `.npz` file, by name.

    Raises:
        ArchiveError: It is none, it is damaged, it holds pickled objects, or far more than its size.
        OSError: It cannot be opened.

    """
    arrays: dict[str, np.ndarray] = {}
    name = ""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_sizes(members, Path(path).stat().st_size)
            for member in members:
                name = member.filename.removesuffix(".npy")
                arrays[name] = _array(archive, member, name)
    except DAMAGE as error:
        raise ArchiveError(f"it cannot be read ({str(error) or type(error).__name__})", name) from error
    return arrays


def _check_sizes(members: list[zipfile.ZipInfo], size: int) -> None:
    declared = sum(member.file_size for member in members)
    if declared > max(LARGEST, RATIO * size):
        largest = max(members, key=lambda member: member.file_size)
        raise ArchiveError(
            f"the file has {size} bytes and would unpack to {declared}: refused", largest.filename.removesuffix(".npy")
        )


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> np.ndarray:
    """One array, once its header has been held against the bytes that are there: numpy takes the memory before it reads."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise ArchiveError(
                "it holds pickled Python objects, which could run code when read: refused", name, pickled=True
            )
        needed, there = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if needed != there or min(shape, default=0) < 0:
            raise ArchiveError(f"its shape {shape} of {dtype} needs {needed} bytes, the file holds {there}", name)
    with archive.open(member) as file:
        found: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        return found
