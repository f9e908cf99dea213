"""Data sets that Hugging Face `datasets` saved to a folder (`save_to_disk`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnx_amc.errors import DataError
from onnx_amc.run.images import decode
from onnx_amc.run.pixels import Pixels
from onnx_amc.run.recipe import Recipe
from onnx_amc.run.samples import InputSpec
from onnx_amc.run.shelf import Pictures
from onnx_amc.run.tables import LABELS, bind_columns

SPLITS, STATE = "dataset_dict.json", "state.json"


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a data set, or several splits of one."""
    return (folder / SPLITS).is_file() or ((folder / STATE).is_file() and (folder / "dataset_info.json").is_file())


def opened(folder: Path) -> Any:
    """Open the data set in a folder.

    Raises:
        DataError: `datasets` is not installed, the folder cannot be read, or it holds several splits.

    """
    where = str(folder)
    if (folder / SPLITS).is_file():
        splits = sorted(p.name for p in folder.iterdir() if is_saved(p))
        raise DataError(
            what=f"the folder holds {len(splits)} splits of a data set: {', '.join(splits)}",
            where=where,
            fix=f"give one of them, such as {folder / splits[0]}" if splits else "save it again with save_to_disk",
        )
    try:
        import datasets  # noqa: PLC0415  an extra
    except ModuleNotFoundError as error:
        raise DataError(
            what="the folder holds a Hugging Face data set, and the package datasets is not installed",
            where=where,
            fix="pip install 'onnx-amc[data]'",
        ) from error
    try:
        return datasets.load_from_disk(where).with_format(None)  # whatever it was saved with
    except Exception as error:  # datasets and Arrow raise kinds of their own
        raise DataError(
            what=f"the data set cannot be read ({type(error).__name__}: {error})",
            where=where,
            fix="save it again with save_to_disk",
        ) from error


def image_column(found: Any) -> str | None:
    """The name of the first column of images, if there is one."""
    names = [name for name, feature in found.features.items() if type(feature).__name__ == "Image"]
    return names[0] if names else None


def pictures(
    found: Any, column: str, how: Recipe, where: str
) -> tuple[np.ndarray | Pictures, np.ndarray | None, Pixels, dict[int, str]]:
    """Images as uint8 (N,H,W,C), labels, how they are fed, and what the classes are called where that is known."""
    from datasets import Image  # noqa: PLC0415  an extra

    found = found.cast_column(column, Image(decode=True))

    def read(row: int) -> np.ndarray:
        image = found[int(row)][column]
        if image is None:
            raise DataError(what="there is no image", where=f"{where}: row {row}", fix="remove the row")
        return how(image, f"{where}: row {row}")

    label = next((name for name in LABELS if name in found.column_names), None)
    labels = None if label is None else np.asarray(found.with_format("numpy")[label][:])
    names = getattr(found.features.get(label), "names", None) or []
    x = decode(range(len(found)), lambda row: f"{where}: row {row}", read)
    return x, labels, how.feed, dict(enumerate(names))


def columns(found: Any, inputs: Sequence[InputSpec], where: str) -> dict[str, np.ndarray]:
    """Arrays by input name, and `labels`, as a table gives them."""
    held = found.with_format("numpy")
    names = [n for n in found.column_names if n in {s.name for s in inputs} or n in LABELS]
    if not set(names) & {s.name for s in inputs}:
        names = found.column_names
    arrays = {name: np.asarray(held[name][:]) for name in names}
    for name, x in arrays.items():
        if x.dtype == object and len(x) and not isinstance(x[0], str):
            raise DataError(
                what="its rows have different lengths",
                where=f"{where}: column '{name}'",
                fix="pad them to one length before save_to_disk",
            )
    return bind_columns(arrays, inputs, where)
