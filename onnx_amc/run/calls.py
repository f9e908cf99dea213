"""Data from a Python function: `module:function` called, its batches gathered."""

from __future__ import annotations

import contextlib
import importlib
import operator
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from onnx_amc.errors import DataError
from onnx_amc.run.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_amc.run.samples import InputSpec

CALL = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*):([A-Za-z_]\w*(?:\.\w+)*)")
FORMS = "DATA is a FILE.npz, .npy, .csv or .parquet, a folder of images or of a saved data set, or module:function"


@contextlib.contextmanager
def importable(folder: str) -> Iterator[None]:
    """Put `folder` on the module path for a while."""
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def call(module: str, function: str, where: str) -> object:
    """Call `module:function` without arguments; whatever it raises becomes a DataError."""
    try:
        module_ = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise DataError(
                what=f"there is no module '{error.name}'",
                where=where,
                fix=f"looked for in {Path.cwd()} and among the installed packages; {FORMS}",
            ) from error
        raise _raised("importing it", error, where) from error
    try:
        found = operator.attrgetter(function)(module_)
    except AttributeError as error:
        public = [name for name, value in vars(module_).items() if callable(value) and not name.startswith("_")]
        raise DataError(
            what=f"the module has no '{function}'", where=where, fix=f"it has {', '.join(public) or 'no functions'}"
        ) from error
    if not callable(found):
        raise DataError(what=f"'{function}' is a {type(found).__name__}", where=where, fix="name a function")
    try:
        return cast("object", found())
    except (Exception, SystemExit) as error:
        raise _raised("calling it without arguments", error, where) from error


def drain(made: object, where: str) -> Iterator[object]:
    """Take one batch after the other out of an iterable or an onnxruntime CalibrationDataReader."""
    reader = getattr(made, "get_next", None)
    if reader is None and not isinstance(made, Iterable):
        raise DataError(
            what=f"it returned a {type(made).__name__}",
            where=where,
            fix="return an iterable of (inputs, labels or None), or a CalibrationDataReader",
        )
    try:
        yield from iter(reader, None) if reader else cast("Iterable[object]", made)
    except (Exception, SystemExit) as error:
        raise _raised("reading its batches", error, where) from error


def _raised(doing: str, error: BaseException, where: str) -> DataError:
    return DataError(what=f"{doing} raised {type(error).__name__}: {error}", where=where, fix="correct the function")


def gather(
    batches: Iterable[object], inputs: Sequence[InputSpec], where: str
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Join batches, each (inputs, labels or None) or inputs alone, into arrays by name and labels; large ones go to disk."""
    shelves: dict[Any, Shelf] = {}
    labels: list[np.ndarray] = []
    again = "yield (inputs, labels) or (inputs, None) in every batch, inputs a dict of arrays by input name"
    count = 0
    for count, item in enumerate(batches, start=1):
        fed, label = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        if not isinstance(fed, Mapping):
            if len(inputs) != 1 or isinstance(fed, tuple | list):
                raise DataError(what=f"batch {count - 1} has a {type(fed).__name__} for inputs", where=where, fix=again)
            fed = {inputs[0].name: fed}
        if shelves and fed.keys() != shelves.keys():
            names = f"has {', '.join(map(repr, fed))}, those before it {', '.join(map(repr, shelves))}"
            raise DataError(what=f"batch {count - 1} {names}", where=where, fix=again)
        for name, value in fed.items():
            part = array(value, f"{where}: batch {count - 1}, '{name}'")
            _put(shelves.setdefault(name, Shelf()), part, count - 1, f"{where}: '{name}'")
        if label is not None:
            labels.append(np.atleast_1d(array(label, f"{where}: batch {count - 1}, labels")))
    if not count:
        raise DataError(what="it gave no batches", where=where, fix=again + "; a used-up iterator starts empty")
    if labels and len(labels) != count:
        raise DataError(what=f"{len(labels)} of {count} batches have labels", where=where, fix=again)
    joined = Shelf()
    for i, label in enumerate(labels):
        _put(joined, label, i, f"{where}: labels")
    return {name: shelf.array() for name, shelf in shelves.items()}, joined.array() if labels else None


def _put(shelf: Shelf, part: np.ndarray, i: int, where: str) -> None:
    """Add a batch that is shaped like those before it; a scalar counts once."""
    first = shelf.parts[0] if shelf.parts else part
    if part.shape[1:] != first.shape[1:] or part.ndim != first.ndim:
        raise DataError(
            what=f"batch {i} has shape {part.shape}, batch 0 {first.shape}",
            where=where,
            fix="give all samples one shape, samples on the first axis",
        )
    if part.ndim or not shelf.parts:
        shelf.add(part.copy())  # whose buffer the function may fill again


def array(value: object, where: str) -> np.ndarray:
    """Make a numpy array of what the user gave, or raise a DataError."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(what=f"it makes no array ({error})", where=where, fix="give a numpy array") from error
