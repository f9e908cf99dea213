"""What preprocess.json and presets say of images: the size they are brought to, their colours, and how they are fed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_amc.errors import DataError
from onnx_amc.run.pixels import SCALE, Pixels, channels_first, pixels

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from PIL import Image

SETTINGS = frozenset({"size", "crop", "color", "layout", "scale", "mean", "std"})

LARGEST = 2**28
"""Pixels that an image is scaled to, at most."""


@dataclass(frozen=True)
class Fit:
    """How an image is brought to size: resized to (H, W), exactly or to cover it, then centre-cropped to (H, W)."""

    resize: tuple[int, int] | None
    exact: bool
    crop: tuple[int, int] | None

    def __call__(self, image: Image.Image, where: str) -> Image.Image:
        """Return the image in its size; a DataError where it is smaller than the crop."""
        width, height = image.size
        if self.crop is None or (height, width) == self.crop:
            return image
        if self.resize:
            h, w = self.resize
            if not self.exact and h * width >= w * height:
                w = h * width // height
            elif not self.exact:
                h = w * height // width
            if h * w > LARGEST:
                raise DataError(
                    what=f"the image of {height} x {width} would become one of {h} x {w}",
                    where=where,
                    fix="give a smaller 'size' in preprocess.json, or remove the image",
                )
            image = image.resize((w, h), 2)  # PIL.Image.Resampling.BILINEAR
            width, height = w, h
        h, w = self.crop
        if height < h or width < w:
            raise DataError(
                what=f"the image is {height} x {width}, smaller than the crop of {h} x {w}",
                where=where,
                fix="set 'size' in preprocess.json to at least the crop, or remove the image",
            )
        left, top = round((width - w) / 2), round((height - h) / 2)
        return image.crop((left, top, left + w, top + h))


@dataclass(frozen=True)
class Recipe:
    """How an image becomes an array, and the array what the network is fed.

    Args:
        fit: Brings it to size.
        color: RGB, BGR or L.
        feed: Normalises it.

    """

    fit: Fit
    color: str
    feed: Pixels

    def __call__(self, image: Image.Image, where: str) -> np.ndarray:
        """Return uint8 (H,W,C) in the network's order of colours.

        Raises:
            DataError: The image is smaller than the crop.

        """
        image = self.fit(self.convert(image, where), where)
        array = np.atleast_3d(np.asarray(image, np.uint8))
        return array[..., ::-1] if self.color == "BGR" else array

    def convert(self, image: Image.Image, where: str) -> Image.Image:
        """Return the image in RGB, or in grey.

        Raises:
            DataError: Its pixels have more than 8 bits: what is above 255 would be white.

        """
        if image.mode.startswith(("I", "F")):
            raise DataError(
                what=f"the image has pixels of more than 8 bits (mode {image.mode})",
                where=where,
                fix="convert the images to 8 bits, or give an .npz with the arrays that the network takes",
            )
        return image.convert("L" if self.color == "L" else "RGB")


def recipe(given: dict[str, Any], shape: tuple[int | None, ...], dtype: np.dtype, where: str) -> Recipe:
    """Make a recipe of settings, for a network's input of this shape (four axes) and type.

    Without `size` and `crop` images are scaled to cover the model's own height and width, then centre-cropped; those that have
    the right size are left alone.

    Raises:
        DataError: A wrong setting.

    """
    color = _choice(given, "color", ("RGB", "BGR", "L"), where)
    channels = {1: {1}, 3: {3}}[1 if color == "L" else 3] if color else {1, 3}
    layout = _choice(given, "layout", ("NCHW", "NHWC"), where)
    first = layout == "NCHW" if layout else channels_first(shape, channels)
    height, width, depth = shape[2:] + shape[1:2] if first else shape[1:]
    color = color or ("L" if depth == 1 else "RGB")
    size, crop = (_extent(given, key, where) for key in ("size", "crop"))
    if size is None and crop is None and height and width:
        fit = Fit((height, width), exact=False, crop=(height, width))
    else:
        exact = isinstance(size, tuple)
        fit = Fit(_square(size), exact=exact, crop=_square(crop) or _square(size))
    scale = given.get("scale", SCALE)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale) or scale == 0:
        raise DataError(
            what=f"'scale' is {scale!r}", where=where, fix="give a number such as 0.00392156862745098 (1/255)"
        )
    feed = pixels(given, 1 if color == "L" else 3, first=first, dtype=dtype, where=where, scale=scale)
    return Recipe(fit, color, feed)


def agreed(given: Mapping[str, Any], preset: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """Settings that came with the data, and those of a preset besides.

    Raises:
        DataError: They contradict each other.

    """
    for key in sorted(given.keys() & (preset or {}).keys()):
        mine, named = given[key], (preset or {})[key]
        if not _equal(mine, named):
            raise DataError(
                what=f"'{key}' is {_short(mine)} here and {_short(named)} in --preset",
                where=where,
                fix="leave --preset out, or take that setting away here",
            )
    return {**(preset or {}), **given}


def _equal(mine: object, named: object) -> bool:
    try:
        a, b = (np.ravel(np.asarray(v, np.float64)) for v in (mine, named))
    except (TypeError, ValueError):
        return False
    return a.shape == b.shape and np.allclose(a, b)


def _short(value: object) -> str:
    return np.array2string(value, separator=", ") if isinstance(value, np.ndarray) else str(value)


def settings_in(folder: Path) -> tuple[dict[str, Any], str]:
    """Read what preprocess.json says, and where it is (the folder itself where there is none)."""
    given, where = json_in(folder, "preprocess.json")
    if unknown := sorted((given or {}).keys() - SETTINGS):
        raise DataError(
            what=f"unknown setting '{unknown[0]}'", where=where, fix=f"the settings are {', '.join(sorted(SETTINGS))}"
        )
    return {key: value for key, value in (given or {}).items() if value is not None}, where


def json_in(folder: Path, name: str) -> tuple[dict[str, Any] | None, str]:
    """Read the object in `name`, in the folder or the one above it."""
    for file in (folder / name, folder.resolve().parent / name):
        if file.is_file():
            try:
                value = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(what=f"it is no JSON ({error})", where=str(file), fix="correct the file") from error
            if not isinstance(value, dict):
                raise DataError(
                    what=f"it holds a {type(value).__name__}", where=str(file), fix="write an object: {...}"
                )
            return value, str(file)
    return None, str(folder)


def _choice(given: dict[str, Any], key: str, choices: tuple[str, ...], where: str) -> str | None:
    value = given.get(key)
    if value is not None and value not in choices:
        raise DataError(what=f"'{key}' is {value!r}", where=where, fix=f"give one of {', '.join(choices)}")
    return value


def _extent(given: dict[str, Any], key: str, where: str) -> int | tuple[int, int] | None:
    """Read a side in pixels, or [H, W]."""
    value = given.get(key)
    if value is None:
        return None
    sides = value if isinstance(value, list) else [value]
    if len(sides) not in {1, 2} or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sides):
        raise DataError(what=f"'{key}' is {value!r}", where=where, fix="give [HEIGHT, WIDTH] or one side, in pixels")
    return (sides[0], sides[1]) if len(sides) == 2 else sides[0]


def _square(extent: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (extent, extent) if isinstance(extent, int) else extent
