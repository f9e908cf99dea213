"""Folders of images: decoded to uint8 once, normalised batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_amc.errors import DataError
from onnx_amc.run import shelf
from onnx_amc.run.pixels import Pixels
from onnx_amc.run.recipe import Recipe, agreed, json_in, recipe, settings_in
from onnx_amc.run.shelf import Pictures

if TYPE_CHECKING:
    from pathlib import Path

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)


def read_folder(
    folder: Path, shape: tuple[int | None, ...], dtype: np.dtype, preset: Mapping[str, Any] | None = None
) -> tuple[np.ndarray | Pictures, np.ndarray | None, Pixels]:
    """Decode a folder of images for an input of `shape` (four axes) and `dtype`.

    Images are brought to size as preprocess.json says, and where it says nothing, as the settings `preset` do. Without `size`
    and `crop` there they are scaled to cover the model's own height and width, then centre-cropped; those that have the right
    size are left alone.

    Returns:
        uint8 (N,H,W,C) in the network's order of colours (decoded when asked for where it is large), int64 (N,) labels if there are
        class folders, and how the images are to be fed. Labels come from classes.json, otherwise from the place of the folder's
        name among the names, sorted as text ("10" before "2").

    Raises:
        DataError: No images, a class without images, a broken image, a wrong setting, or one that contradicts the preset.

    """
    given, where = settings_in(folder)
    how = recipe(agreed(given, preset, where), shape, dtype, where)
    files, labels = _files(folder)
    return decode(files, str, lambda file: _open(file, how)), labels, how.feed


def decode(
    items: Sequence[Any], called: Callable[[Any], str], read: Callable[[Any], np.ndarray]
) -> np.ndarray | Pictures:
    """Read all items into one uint8 array (N,H,W,C), or when they are asked for where they are too many.

    Args:
        items: One per image.
        called: What messages call one.
        read: Gives (H,W,C), or raises a DataError.

    """
    first = read(items[0]).shape

    def alike(item: Any) -> np.ndarray:
        image = read(item)
        if image.shape != first:
            raise DataError(
                what=f"the image has shape {image.shape}, those before it {first}",
                where=called(item),
                fix='say what size the model needs in preprocess.json, such as {"size": [224, 224]}',
            )
        return image

    pictures = Pictures(items, alike, first)
    if math.prod(pictures.shape) > shelf.MEMORY:
        return pictures
    out = np.empty(pictures.shape, np.uint8)
    for i, item in enumerate(items):
        out[i] = alike(item)
    return out


def _open(file: Path, how: Recipe) -> np.ndarray:
    """Read one image as uint8 (H,W,C)."""
    from PIL import Image  # noqa: PLC0415 (only folders of images need it)

    try:
        with Image.open(file) as handle:
            image = how.convert(handle, str(file))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            what=f"the image cannot be decoded ({error})", where=str(file), fix="replace or remove the file"
        ) from error
    return how(image, str(file))


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
    table, _ = json_in(folder, "classes.json")
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
    table, where = json_in(folder, "classes.json")
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
