"""Small data in every form, for the tests of what reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnx_amc.errors import DataError
from onnx_amc.run.data import Dataset, InputSpec, load

F32, F16, F64, I64, U8 = (np.dtype(t) for t in (np.float32, np.float16, np.float64, np.int64, np.uint8))
IMAGENETTE = Path(__file__).parents[1].parent / "shared" / "data" / "imagenette"
IMAGE = [InputSpec("input", F32, (None, 3, 6, 4))]
ROWS = [InputSpec("a", F32, (None, 5))]
TWO = [InputSpec("ids", I64, (None, None)), InputSpec("mask", F32, (None, 1, 2))]

Write = Callable[[str], str]


def photos(n: int = 10) -> dict[str, np.ndarray]:
    """Images of different height, width and channels, so that no wrong layout fits."""
    rng = np.random.default_rng(0)
    return {
        "x": rng.integers(0, 256, (n, 6, 4, 3), np.uint8),
        "y": np.arange(n) % 3,
        "mean": np.array([0.5, 0.4, 0.3]),
        "std": np.array([0.2, 0.3, 0.6]),
    }


def rows(n: int = 10) -> dict[str, np.ndarray]:
    return {"a": np.random.default_rng(0).standard_normal((n, 5)).astype(np.float32)}


def formula(z: Mapping[str, Any]) -> np.ndarray:
    """(x/255 - mean)/std as N,C,H,W, in float64 and the plainest way."""
    return np.moveaxis((z["x"].astype(np.float64) / 255 - z["mean"]) / z["std"], 3, 1)


def save(path: Path, arrays: Mapping[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def everything(data: Dataset) -> dict[str, np.ndarray]:
    return data.batch(np.arange(len(data)))


def refused(source: object, inputs: list[InputSpec], *words: str, classes: int | None = None) -> DataError:
    """Loading fails as the user's fault, and the text says `words`."""
    with pytest.raises(DataError) as caught:
        load(source, inputs, classes=classes)  # type: ignore[arg-type]
    error = caught.value
    assert error.exit_code == 2
    assert error.where
    assert error.fix
    for word in words:
        assert word in str(error), f"{word!r} is not in: {error}"
    return error


def paint(path: Path, seed: int, size: tuple[int, int] = (6, 4), *, mode: str = "RGB") -> np.ndarray:
    """Write an image of (height, width), lossless, and return its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels
