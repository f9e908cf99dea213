"""The user's data: read from wherever it is, or made up."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnx_amc.archive import ArchiveError, read_arrays
from onnx_amc.errors import DataError
from onnx_amc.run import hugging, tables
from onnx_amc.run.calls import CALL, FORMS, array, call, drain, gather, importable
from onnx_amc.run.images import class_names, read_folder
from onnx_amc.run.madeup import synthesise
from onnx_amc.run.pixels import Pixels, channels_first, pixels
from onnx_amc.run.presets import fitted, settings_of
from onnx_amc.run.recipe import agreed, recipe, settings_in
from onnx_amc.run.samples import MIN_SAMPLES, Dataset, InputSpec, check, check_dataset, enough, missing, show

__all__ = ["MIN_SAMPLES", "Dataset", "InputSpec", "Source", "load", "sidecar", "synthesise"]

Source = str | os.PathLike[str] | Dataset | Mapping[str, np.ndarray]

FILES = frozenset({".npz", ".npy", *tables.SUFFIXES})
AGAIN = "write it again with np.savez(FILE, NAME=array, ...)"


def load(
    source: Source,
    inputs: Sequence[InputSpec],
    *,
    classes: int | None = None,
    preset: str | None = None,
    least: int = MIN_SAMPLES,
) -> Dataset:
    """Read the user's data and check it against the model.

    Args:
        source: A FILE.npz, .npy, .csv or .parquet, a folder of images or of a saved data set, "module:function", a mapping
            of arrays as in the .npz, or a dataset, which comes back as it is once checked. A path that exists is never
            taken for a module.
        inputs: What the model takes.
        classes: Number of classes the model tells apart; labels have to be below it.
        preset: How images are normalised and brought to size, by a name of `run.presets`.
        least: Samples that are needed: to split them into parts takes some, to score a model one.

    Raises:
        DataError: It cannot be read or does not fit the model, or there are fewer samples than that; a preset that the data
            contradicts or has no use for.
        OptionError: An unknown preset.

    """
    found = _load(source, inputs, classes, preset)
    enough(found, least)
    if preset is not None and (found.pixels is None or found is source):
        raise DataError(
            what="it is fed as it is: there are no images for --preset to normalise",
            where=found.source,
            fix="leave --preset out, or give a folder of images, or uint8 images N,H,W,C",
        )
    return found


def _load(
    source: Source,
    inputs: Sequence[InputSpec],
    classes: int | None,
    preset: str | None,
) -> Dataset:
    if isinstance(source, Dataset):
        return check_dataset(source, inputs, classes)
    if isinstance(source, Mapping):
        return _bind(source, inputs, "the given data", classes, preset=preset)
    if not isinstance(source, str | os.PathLike):
        raise DataError(what=f"data is a {type(source).__name__}", where="data", fix=f"{FORMS}, or a dict of arrays")
    name = os.fspath(source)
    path = Path(name).expanduser()
    try:
        if name and path.is_dir():
            return _folder(path, inputs, classes, preset)
        if path.is_file():
            return _bind(_read(path, inputs), inputs, name, classes, preset=preset)
    except OSError as error:
        raise DataError(
            what=f"it cannot be read ({error})", where=name, fix="check the path and its permissions"
        ) from error
    if (match := CALL.fullmatch(name)) and path.suffix.lower() not in FILES:
        return _from_call(match[1], match[2], inputs, classes, preset)
    raise DataError(
        what="there is no such file or folder", where=name or "''", fix=f"check the path from {Path.cwd()}; {FORMS}"
    )


def sidecar(model_path: str | os.PathLike[str]) -> Path | None:
    """MODEL.npz beside MODEL.onnx, None where there is none."""
    path = Path(model_path).with_suffix(".npz")
    return path if path.is_file() else None


def _read(path: Path, inputs: Sequence[InputSpec]) -> dict[str, np.ndarray]:
    """Read the arrays of a file by its kind."""
    kind = path.suffix.lower()
    if kind == ".npy":
        return _read_npy(path, inputs)
    if kind in tables.SUFFIXES:
        return tables.read_table(path, inputs)
    if kind != ".npz":
        raise DataError(
            what=f"data of the kind '{path.suffix}' cannot be read", where=str(path), fix=f"{FORMS}; {AGAIN}"
        )
    return _read_npz(path)


def _read_npy(path: Path, inputs: Sequence[InputSpec]) -> dict[str, np.ndarray]:
    """Read the samples of a model's one input."""
    if len(inputs) != 1:
        raise DataError(
            what=f"a .npy holds one array, the model takes {', '.join(repr(s.name) for s in inputs)}",
            where=str(path),
            fix=AGAIN,
        )
    try:
        return {inputs[0].name: np.load(path, allow_pickle=False)}
    except (ValueError, EOFError) as error:
        raise DataError(
            what=f"the array cannot be read ({error})", where=str(path), fix="write it with np.save, no Python objects"
        ) from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz."""
    where = str(path)
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            cut = file.read(2) == b"PK"
        raise DataError(what="the file is truncated" if cut else "the file is no .npz archive", where=where, fix=AGAIN)
    try:
        return read_arrays(path)
    except ArchiveError as error:
        at = f"{where}: array '{error.name}'" if error.name else where
        numeric = "save it as a numeric array: np.asarray(a, dtype=np.float32), not dtype=object"
        raise DataError(what=error.what, where=at, fix=numeric if error.pickled else AGAIN) from error


def _folder(path: Path, inputs: Sequence[InputSpec], classes: int | None, preset: str | None) -> Dataset:
    """Read a folder: of images, or of a saved data set."""
    saved = hugging.opened(path) if hugging.is_saved(path) else None
    column = None if saved is None else hugging.image_column(saved)
    if saved is not None and (column is None or inputs[0].name in saved.column_names):
        return _bind(hugging.columns(saved, inputs, str(path)), inputs, str(path), classes, preset=preset)
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        takes = ", ".join(f"'{s.name}' {show(s.shape)}" for s in inputs)
        raise DataError(
            what=f"a folder of images feeds a model with one input of four axes; this one takes {takes}",
            where=str(path),
            fix="give an .npz with arrays named like the model's inputs",
        )
    shape, dtype, settings = inputs[0].shape, inputs[0].dtype, None
    if preset is not None:
        first = channels_first(shape, {1, 3})
        settings = fitted(settings_of(preset, *(shape[2:] if first else shape[1:3])), shape[1 if first else 3] or 3)
    if saved is not None and column is not None:
        given, where = settings_in(path)
        how = recipe(agreed(given, settings, where), shape, dtype, where)
        x, labels, feed, names = hugging.pictures(saved, column, how, str(path))
    else:
        x, labels, feed = read_folder(path, shape, dtype, settings)
        names = {} if labels is None else class_names(path)
    data = Dataset(tuple(inputs), {inputs[0].name: x}, labels, str(path), pixels=feed, classes=names)
    return check(data, {inputs[0].name: "the images"}, classes)


def _bind(
    given: Mapping[str, np.ndarray],
    inputs: Sequence[InputSpec],
    source: str,
    classes: int | None,
    labels: np.ndarray | None = None,
    preset: str | None = None,
) -> Dataset:
    """Take the arrays that the inputs ask for out of `given`, and `labels` or `y` where labels are not given."""
    arrays = {str(name): array(value, f"{source}: array '{name}'") for name, value in given.items()}
    called = {spec.name: spec.name for spec in inputs}
    if len(inputs) == 1 and inputs[0].name not in arrays and "x" in arrays:
        called = {inputs[0].name: "x"}
    for spec in inputs:
        if called[spec.name] not in arrays:
            raise missing(spec, arrays, inputs, source)
    used = set(called.values())
    feed = None
    if len(inputs) == 1 and (feed := _pixels(inputs[0], arrays, called[inputs[0].name], source, preset)):
        used |= {"mean", "std"}
    if labels is None and (name := next((n for n in ("labels", "y") if n in arrays.keys() - used), None)):
        labels = arrays[name]
        used.add(name)
    data = Dataset(
        inputs=tuple(inputs),
        arrays={spec.name: arrays[called[spec.name]] for spec in inputs},
        labels=labels,
        source=source,
        pixels=feed,
        unused=tuple(sorted(arrays.keys() - used)),
    )
    return check(data, {name: f"array '{given}'" for name, given in called.items()}, classes)


def _pixels(
    spec: InputSpec, arrays: dict[str, np.ndarray], name: str, source: str, preset: str | None
) -> Pixels | None:
    """How the array `name` is normalised, if it is uint8 images (N,H,W,C) that the model does not take as they are."""
    x = arrays[name]
    if x.dtype != np.uint8 or x.ndim != 4 or len(spec.shape) != 4 or (spec.dtype.kind != "f" and spec.fits(x.shape)):
        return None
    where = f"{source}: array '{name}'"
    given = {key: value for key, value in arrays.items() if key in {"mean", "std"}}
    if preset is not None:
        named = fitted(settings_of(preset, *x.shape[1:3]), x.shape[3])
        given = agreed(given, {key: named[key] for key in ("mean", "std")}, where)
    absent = [key for key in ("mean", "std") if key not in given]
    if spec.dtype.kind == "f" and absent:
        raise DataError(
            what=f"uint8 images, but no {' and no '.join(absent)} to normalise them with",
            where=where,
            fix="add mean and std (C,), as in (x/255 - mean)/std, name a --preset, or give what the input takes, float32",
        )
    first = channels_first(spec.shape, {x.shape[3]} & {1, 3})
    return pixels(given, x.shape[3], first=first, dtype=spec.dtype, where=where)


def _from_call(
    module: str, function: str, inputs: Sequence[InputSpec], classes: int | None, preset: str | None
) -> Dataset:
    """Call `module:function` and gather its batches; modules in the current directory are found."""
    where = f"{module}:{function}"
    with importable(str(Path.cwd())):
        made = call(module, function, where)
        if isinstance(made, Dataset):
            return check_dataset(made, inputs, classes)
        if isinstance(made, Mapping):
            return _bind(made, inputs, where, classes, preset=preset)
        batches = drain(made, where)
    arrays, labels = gather(batches, inputs, where)
    return _bind(arrays, inputs, where, classes, labels, preset)
