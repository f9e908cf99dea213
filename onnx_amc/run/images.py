"""Folders of images: decoded to uint8 once, normalised batch by batch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_amc.errors import DataError
from onnx_amc.run import shelf
from onnx_amc.run.shelf import Pictures

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from PIL import Image

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
SETTINGS = frozenset({"size", "crop", "color", "layout", "scale", "mean", "std"})
SCALE = 1 / 255


@dataclass(frozen=True, eq=False)
class Pixels:
    """How uint8 images become what the network is fed: (pixel * scale - mean) / std, in its layout and type.

    Args:
        scale: Factor of every pixel.
        mean: float64 (C,), after the scaling.
        std: float64 (C,), positive.
        first: Whether channels come before height and width.
        dtype: What the network takes; an integer type is fed the pixels themselves.

    """

    scale: float
    mean: np.ndarray
    std: np.ndarray
    first: bool
    dtype: np.dtype

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Feed uint8 (B,H,W,C): a new, contiguous (B,C,H,W), or (B,H,W,C) where `first` is false."""
        if self.first:
            x = x.transpose(0, 3, 1, 2)
        if self.dtype.kind != "f":
            return np.array(x, self.dtype, order="C")
        wide = np.float64 if self.dtype == np.float64 else np.float32
        out = np.multiply(x, wide(self.scale), dtype=wide, order="C")
        out -= self._per_channel(self.mean, out.dtype)
        out /= self._per_channel(self.std, out.dtype)
        fed: np.ndarray = out.astype(self.dtype, copy=False)
        return fed

    def fed(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what (N,H,W,C) becomes."""
        n, h, w, c = shape
        return (n, c, h, w) if self.first else shape

    def _per_channel(self, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
        value = value.astype(dtype)
        return value[:, None, None] if self.first else value


def pixels(
    given: Mapping[str, Any], channels: int, *, first: bool, dtype: np.dtype, where: str, scale: float = SCALE
) -> Pixels:
    """Make the normalisation from `mean` and `std`, one number or one per channel; 0 and 1 where not given.

    Raises:
        DataError: No finite numbers, of another count than there are channels, a std that is not positive, or any of
            them for a network that takes integers; an integer type that cannot hold 0 to 255.

    """
    if dtype.kind != "f":
        _check_raw(given, dtype, where)
    values = {}
    for name, default in (("mean", 0.0), ("std", 1.0)):
        raw = given.get(name, default)
        try:
            value = np.asarray(raw, np.float64).ravel()
        except (TypeError, ValueError):
            value = np.array([np.nan])
        if value.size not in {1, channels}:
            raise DataError(
                what=f"'{name}' has {value.size} values, the images have {channels} channels",
                where=where,
                fix=f"give {name} one value per channel (images are N,H,W,C: channels come last)",
            )
        if not np.isfinite(value).all() or (name == "std" and (value <= 0).any()):
            raise DataError(
                what=f"'{name}' is {raw}",
                where=where,
                fix=f"give {name} as {'positive' if name == 'std' else 'finite'} numbers, one per channel",
            )
        values[name] = np.broadcast_to(value, (channels,))
    return Pixels(scale, values["mean"], values["std"], first, dtype)


def _check_raw(given: Mapping[str, Any], dtype: np.dtype, where: str) -> None:
    """Refuse what a network of integer input cannot be fed."""
    if spare := sorted({"mean", "std", "scale"} & given.keys()):
        raise DataError(
            what=f"{', '.join(spare)} given, but the model takes {dtype} pixels as they are",
            where=where,
            fix=f"remove {', '.join(spare)}, or use a model of float input",
        )
    if dtype.kind not in "iu" or not np.can_cast(np.uint8, dtype):
        raise DataError(
            what=f"images are uint8, the model's input takes {dtype}",
            where=where,
            fix=f"give an .npz with {dtype} arrays named like the model's inputs",
        )


def channels_first(shape: tuple[int | None, ...], channels: Collection[int]) -> bool:
    """Tell the layout of a model's image input from its `shape`: N,C,H,W unless only the last axis can be channels."""
    return not (shape[3] in channels and shape[1] not in channels)


def read_folder(
    folder: Path, shape: tuple[int | None, ...], dtype: np.dtype, preset: Mapping[str, Any] | None = None
) -> tuple[np.ndarray | Pictures, np.ndarray | None, Pixels]:
    """Decode a folder of images for an input of `shape` (four axes) and `dtype`.

    Images are brought to size as preprocess.json says, and where it says nothing, as the settings `preset` do. Without `size`
    and `crop` there they are scaled to cover the model's own height and width, then centre-cropped; those that have the right size are left alone.

    Returns:
        uint8 (N,H,W,C) in the network's order of colours (decoded when asked for where it is large), int64 (N,) labels if there are
        class folders, and how the images are to be fed. Labels come from classes.json, otherwise from the place of the folder's
        name among the names, sorted as text ("10" before "2").

    Raises:
        DataError: No images, a class without images, a broken image, a wrong setting, or one that contradicts the preset.

    """
    given, where = _settings(folder)
    given = agreed(given, preset, where)
    files, labels = _files(folder)
    color = _choice(given, "color", ("RGB", "BGR", "L"), where)
    channels = {1: {1}, 3: {3}}[1 if color == "L" else 3] if color else {1, 3}
    layout = _choice(given, "layout", ("NCHW", "NHWC"), where)
    first = layout == "NCHW" if layout else channels_first(shape, channels)
    height, width, depth = shape[2:] + shape[1:2] if first else shape[1:]
    color = color or ("L" if depth == 1 else "RGB")
    size, crop = (_extent(given, key, where) for key in ("size", "crop"))
    if size is None and crop is None and height and width:
        fit = _Fit((height, width), exact=False, crop=(height, width))
    else:
        exact = isinstance(size, tuple)
        fit = _Fit(_square(size), exact=exact, crop=_square(crop) or _square(size))
    scale = given.get("scale", SCALE)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale) or scale == 0:
        raise DataError(
            what=f"'scale' is {scale!r}", where=where, fix="give a number such as 0.00392156862745098 (1/255)"
        )
    feed = pixels(given, 1 if color == "L" else 3, first=first, dtype=dtype, where=where, scale=scale)
    return _decode(files, fit, color), labels, feed


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


@dataclass(frozen=True)
class _Fit:
    """How an image is brought to size: resized to (H, W), exactly or to cover it, then centre-cropped to (H, W)."""

    resize: tuple[int, int] | None
    exact: bool
    crop: tuple[int, int] | None

    def __call__(self, image: Image.Image, where: str) -> Image.Image:
        width, height = image.size
        if self.crop is None or (height, width) == self.crop:
            return image
        if self.resize:
            h, w = self.resize
            if not self.exact and h * width >= w * height:
                w = h * width // height
            elif not self.exact:
                h = w * height // width
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


def _decode(files: list[Path], fit: _Fit, color: str) -> np.ndarray | Pictures:
    """Read all `files` into one uint8 array (N,H,W,C), or when they are asked for where they are too many."""
    first = _open(files[0], fit, color).shape

    def read(file: Path) -> np.ndarray:
        image = _open(file, fit, color)
        if image.shape != first:
            raise DataError(
                what=f"the image has shape {image.shape}, those before it {first}",
                where=str(file),
                fix='say what size the model needs in preprocess.json, such as {"size": [224, 224]}',
            )
        return image

    pictures = Pictures(files, read, first)
    if math.prod(pictures.shape) > shelf.MEMORY:
        return pictures
    out = np.empty(pictures.shape, np.uint8)
    for i, file in enumerate(files):
        out[i] = read(file)
    return out


def _open(file: Path, fit: _Fit, color: str) -> np.ndarray:
    """Read one image as uint8 (H,W,C)."""
    from PIL import Image  # noqa: PLC0415 (only folders of images need it)

    try:
        with Image.open(file) as handle:
            image = handle.convert("L" if color == "L" else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            what=f"the image cannot be decoded ({error})", where=str(file), fix="replace or remove the file"
        ) from error
    array = np.atleast_3d(np.asarray(fit(image, str(file)), np.uint8))
    return array[..., ::-1] if color == "BGR" else array


def _files(folder: Path) -> tuple[list[Path], np.ndarray | None]:
    """Every image, sorted by class and name, and the labels; none where the images lie in `folder` itself."""
    classes = _classes(folder)
    loose = _images(folder)
    if not classes and not loose:
        raise DataError(
            what="the folder holds no images",
            where=str(folder),
            fix=f"give a folder with a sub-folder of images per class ({', '.join(sorted(SUFFIXES))})",
        )
    if not classes:
        return loose, None
    if loose:
        raise DataError(
            what=f"{len(loose)} images, such as {loose[0].name}, lie beside the {len(classes)} class folders",
            where=str(folder),
            fix="move them into the folder of their class, or give a folder that has no sub-folders",
        )
    found = [_images(c) for c in classes]
    for path, images in zip(classes, found, strict=True):
        if not images:
            inner = any(p.is_dir() for p in path.iterdir())
            raise DataError(
                what=f"the class folder '{path.name}' holds no images" + (", only folders" if inner else ""),
                where=str(path),
                fix=f"give {path} itself as the data" if inner else "add its images or remove the empty folder",
            )
    labels = np.repeat(np.array(_codes(folder, [c.name for c in classes]), np.int64), [len(f) for f in found])
    return [file for images in found for file in images], labels


def _classes(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))), key=_name)


def class_names(folder: Path) -> dict[int, str]:
    """What the classes of a folder of images are called: as classes.json says, otherwise like their folders."""
    table, _ = _json(folder, "classes.json")
    folders = [c.name for c in _classes(folder)]
    entries = [(table or {}).get(name) for name in folders]
    said = [str(e.get("name", n)) if isinstance(e, dict) else n for e, n in zip(entries, folders, strict=True)]
    return dict(zip(_codes(folder, folders), said, strict=True))


def _images(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())
    return sorted(found, key=_name)


def _name(path: Path) -> str:
    return path.name


def _codes(folder: Path, names: list[str]) -> list[int]:
    """Give each class folder its label."""
    table, where = _json(folder, "classes.json")
    if table is None:
        return list(range(len(names)))
    codes = []
    for name in names:
        entry = table.get(name)
        code = entry.get("index") if isinstance(entry, dict) else entry
        if isinstance(code, bool) or not isinstance(code, int):
            raise DataError(
                what=f"no index for the class folder '{name}' ({entry!r})"
                if entry is not None
                else f"'{name}' is not in it",
                where=where,
                fix=f'add "{name}": {{"index": LABEL, "name": "..."}}',
            )
        codes.append(code)
    return codes


def _settings(folder: Path) -> tuple[dict[str, Any], str]:
    """Read what preprocess.json says, and where it is (the folder itself where there is none)."""
    given, where = _json(folder, "preprocess.json")
    if unknown := sorted((given or {}).keys() - SETTINGS):
        raise DataError(
            what=f"unknown setting '{unknown[0]}'", where=where, fix=f"the settings are {', '.join(sorted(SETTINGS))}"
        )
    return {key: value for key, value in (given or {}).items() if value is not None}, where


def _json(folder: Path, name: str) -> tuple[dict[str, Any] | None, str]:
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
