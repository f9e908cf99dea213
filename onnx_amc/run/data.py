"""The user's data: read, checked against the model's inputs, split by seed, fed batch by batch.

Samples stay in the form they came in (uint8 images stay uint8) and become what the network takes in `Dataset.batch`.
"""

from __future__ import annotations

import contextlib
import importlib
import operator
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from onnx_amc.errors import DataError
from onnx_amc.run.images import Pixels, channels_first, pixels, read_folder

MIN_SAMPLES = 8
KINDS = {"f": "floats", "i": "integers", "u": "integers", "b": "booleans", "U": "text", "O": "text"}
CALL = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*):([A-Za-z_]\w*(?:\.\w+)*)")
FORMS = "DATA is a FILE.npz, a folder of images or module:function"


@dataclass(frozen=True)
class InputSpec:
    """What the model takes at one input.

    Args:
        name: The input's name.
        dtype: Its numpy type.
        shape: Its axes, samples first, None where dynamic. () for a scalar, which all samples share.

    """

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether arrays of `shape` have the right sample shape; their number of samples is free."""
        pairs = zip(shape[1:], self.shape[1:], strict=False)
        return len(shape) == len(self.shape) and all(want in {None, have} for have, want in pairs)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples, and how the network is fed with them.

    Args:
        inputs: What `batch` makes.
        arrays: By input name, samples on the first axis, as they came.
        labels: int64 (N,), None where there are none.
        source: Where they came from, for messages.
        synthetic: Whether the samples are made up.
        pixels: How uint8 images (N,H,W,C) of a model's one input are fed; None where arrays are fed as they are.
        unused: Names of arrays that came along and that nothing reads.

    """

    inputs: tuple[InputSpec, ...]
    arrays: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    source: str
    synthetic: bool = False
    pixels: Pixels | None = None
    unused: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Count the samples."""
        return max((len(a) for a in self.arrays.values() if a.ndim), default=0)

    def batch(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Feed the samples at `index` (B,): new contiguous arrays (B, ...) of the network's dtype, by input name."""
        return {spec.name: self._feed(spec, np.asarray(index)) for spec in self.inputs}

    def _feed(self, spec: InputSpec, index: np.ndarray) -> np.ndarray:
        array = self.arrays[spec.name]
        if self.pixels:
            return self.pixels(array[index])
        return np.array(array[index] if array.ndim else array, spec.dtype, order="C")

    def split(self, seed: int, calibration: int, reward: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw disjoint calibration and reward parts by `seed`, each with the classes in proportion (to one sample).

        Where there are fewer samples than wished for, the reward part gets at most half of them and the calibration
        part at most the rest.

        Returns:
            Sorted int64 indices (at most `calibration`,) and (at most `reward`,).

        Raises:
            ValueError: A negative number.

        """
        if calibration < 0 or reward < 0:
            raise ValueError("cannot draw a negative number of samples")
        n = len(self)
        if calibration + reward > n:
            reward = min(reward, n // 2)
            calibration = min(calibration, n - reward)
        order = self._spread(np.random.default_rng(seed))
        return np.sort(order[reward : reward + calibration]), np.sort(order[:reward])

    def _spread(self, rng: np.random.Generator) -> np.ndarray:
        """Shuffle with the classes in proportion in every stretch: the k-th of n goes to (k + u) / n, u ~ U[0, 1)."""
        shuffled = rng.permutation(len(self))
        classes = np.zeros(len(self), np.int64) if self.labels is None else self.labels[shuffled]
        _, code, size = np.unique(classes, return_inverse=True, return_counts=True)
        rank = np.empty(len(self))
        rank[np.argsort(code, kind="stable")] = np.concatenate([np.arange(s) for s in size])
        return shuffled[np.argsort((rank + rng.random(len(self))) / size[code], kind="stable")]


def load(
    source: str | os.PathLike[str] | Dataset | Mapping[str, np.ndarray],
    inputs: Sequence[InputSpec],
    *,
    classes: int | None = None,
) -> Dataset:
    """Read the user's data and check it against the model.

    Args:
        source: A FILE.npz, a folder of images, "module:function", a mapping of arrays as in the .npz, or a dataset,
            which comes back as it is once checked. A path that exists is never taken for a module.
        inputs: What the model takes.
        classes: Number of classes the model tells apart; labels have to be below it.

    Raises:
        DataError: It cannot be read or does not fit the model, or there are fewer than `MIN_SAMPLES` samples.

    """
    if isinstance(source, Dataset):
        return _check_dataset(source, inputs, classes)
    if isinstance(source, Mapping):
        return _bind(source, inputs, "the given data", classes)
    if not isinstance(source, str | os.PathLike):
        raise DataError(what=f"data is a {type(source).__name__}", where="data", fix=f"{FORMS}, or a dict of arrays")
    name = os.fspath(source)
    path = Path(name).expanduser()
    try:
        if name and path.is_dir():
            return _folder(path, inputs, classes)
        if path.is_file():
            return _bind(_read_npz(path), inputs, name, classes)
    except OSError as error:
        raise DataError(
            what=f"it cannot be read ({error})", where=name, fix="check the path and its permissions"
        ) from error
    if (call := CALL.fullmatch(name)) and not name.endswith(".npz"):
        return _from_call(call[1], call[2], inputs, classes)
    raise DataError(
        what="there is no such file or folder", where=name or "''", fix=f"check the path from {Path.cwd()}; {FORMS}"
    )


def synthesise(inputs: Sequence[InputSpec], samples: int, seed: int) -> Dataset:
    """Make up `samples` samples, a stand-in for real ones: standard normal floats, integers and booleans of 0 and 1.

    Dynamic axes have length 1, but 224 for the height and width of N,C,H,W or N,H,W,C images.
    """
    rng = np.random.default_rng(seed)
    arrays = {}
    for spec in inputs:
        shape = (samples, *_sample_shape(spec.shape)) if spec.shape else ()
        if spec.dtype.kind == "f":
            arrays[spec.name] = np.asarray(rng.standard_normal(shape, np.float32), spec.dtype)
        elif spec.dtype.kind in "iub":
            arrays[spec.name] = np.asarray(rng.integers(0, 2, shape), spec.dtype)
        else:
            arrays[spec.name] = np.full(shape, "", spec.dtype)
    return Dataset(tuple(inputs), arrays, None, f"made-up inputs, seed {seed}", synthetic=True)


def _sample_shape(shape: tuple[int | None, ...]) -> list[int]:
    """Lengths for all axes but the first."""
    match shape:
        case (_, int(c), None, None):
            return [c, 224, 224]
        case (_, None, None, int(c)) if c in {1, 3, 4}:
            return [224, 224, c]
    return [s or 1 for s in shape[1:]]


def sidecar(model_path: str | os.PathLike[str]) -> Path | None:
    """MODEL.npz beside MODEL.onnx, None where there is none."""
    path = Path(model_path).with_suffix(".npz")
    return path if path.is_file() else None


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz."""
    where, again = str(path), "write it again with np.savez(FILE, NAME=array, ...)"
    if path.suffix.lower() != ".npz":
        raise DataError(what=f"data of the kind '{path.suffix}' cannot be read", where=where, fix=f"{FORMS}; {again}")
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            cut = file.read(2) == b"PK"
        raise DataError(what="the file is truncated" if cut else "the file is no .npz archive", where=where, fix=again)
    arrays: dict[str, np.ndarray] = {}
    name = ""
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                arrays[name] = archive[name]
    except (ValueError, OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise DataError(
                what="the array holds pickled Python objects, which could run code when read: refused",
                where=f"{where}: array '{name}'",
                fix="save it as a numeric array: np.asarray(a, dtype=np.float32), not dtype=object",
            ) from error
        raise DataError(
            what=f"the array cannot be read ({error})", where=f"{where}: array '{name}'", fix=again
        ) from error
    return arrays


def _folder(path: Path, inputs: Sequence[InputSpec], classes: int | None) -> Dataset:
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        takes = ", ".join(f"'{s.name}' {_show(s.shape)}" for s in inputs)
        raise DataError(
            what=f"a folder of images feeds a model with one input of four axes; this one takes {takes}",
            where=str(path),
            fix="give an .npz with arrays named like the model's inputs",
        )
    x, labels, feed = read_folder(path, inputs[0].shape, inputs[0].dtype)
    data = Dataset(tuple(inputs), {inputs[0].name: x}, labels, str(path), pixels=feed)
    return _check(data, {inputs[0].name: "the images"}, classes)


def _bind(
    given: Mapping[str, np.ndarray],
    inputs: Sequence[InputSpec],
    source: str,
    classes: int | None,
    labels: np.ndarray | None = None,
) -> Dataset:
    """Take the arrays that the inputs ask for out of `given`, and `labels` or `y` where labels are not given."""
    arrays = {str(name): _array(value, f"{source}: array '{name}'") for name, value in given.items()}
    called = {spec.name: spec.name for spec in inputs}
    if len(inputs) == 1 and inputs[0].name not in arrays and "x" in arrays:
        called = {inputs[0].name: "x"}
    for spec in inputs:
        if called[spec.name] not in arrays:
            raise _missing(spec, arrays, inputs, source)
    used = set(called.values())
    feed = None
    if len(inputs) == 1 and (feed := _pixels(inputs[0], arrays, called[inputs[0].name], source)):
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
    return _check(data, {name: f"array '{array}'" for name, array in called.items()}, classes)


def _pixels(spec: InputSpec, arrays: dict[str, np.ndarray], name: str, source: str) -> Pixels | None:
    """How the array `name` is normalised, if it is uint8 images (N,H,W,C) that the model does not take as they are."""
    x = arrays[name]
    if x.dtype != np.uint8 or x.ndim != 4 or len(spec.shape) != 4 or (spec.dtype.kind != "f" and spec.fits(x.shape)):
        return None
    where = f"{source}: array '{name}'"
    absent = [key for key in ("mean", "std") if key not in arrays]
    if spec.dtype.kind == "f" and absent:
        raise DataError(
            what=f"uint8 images, but no {' and no '.join(absent)} to normalise them with",
            where=where,
            fix="add mean and std (C,), as in (x/255 - mean)/std, or give normalised float32 (N,C,H,W)",
        )
    given = {key: value for key, value in arrays.items() if key in {"mean", "std"}}
    first = channels_first(spec.shape, {x.shape[3]} & {1, 3})
    return pixels(given, x.shape[3], first=first, dtype=spec.dtype, where=where)


def _array(value: object, where: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(what=f"it makes no array ({error})", where=where, fix="give a numpy array") from error


def _missing(spec: InputSpec, arrays: Mapping[str, np.ndarray], inputs: Sequence[InputSpec], source: str) -> DataError:
    floats = [name for name, a in arrays.items() if a.ndim > 1 and a.dtype.kind == spec.dtype.kind]
    rename = len(inputs) == 1 and len(floats) == 1
    return DataError(
        what=f"no array for the model's input '{spec.name}'; there are {', '.join(map(repr, arrays)) or 'none'}, "
        f"the model takes {', '.join(repr(s.name) for s in inputs)}",
        where=source,
        fix=f"rename '{floats[0]}' to '{spec.name}'" if rename else f"add an array '{spec.name}' {_show(spec.shape)}",
    )


def _from_call(module: str, function: str, inputs: Sequence[InputSpec], classes: int | None) -> Dataset:
    """Call `module:function` and gather its batches; modules in the current directory are found."""
    where = f"{module}:{function}"
    with _importable(str(Path.cwd())):
        made = _call(module, function, where)
        if isinstance(made, Dataset):
            return _check_dataset(made, inputs, classes)
        if isinstance(made, Mapping):
            return _bind(made, inputs, where, classes)
        batches = _drain(made, where)
    arrays, labels = _gather(batches, inputs, where)
    return _bind(arrays, inputs, where, classes, labels)


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _call(module: str, function: str, where: str) -> object:
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise DataError(
                what=f"there is no module '{error.name}'",
                where=where,
                fix=f"looked for in {Path.cwd()} and among the installed packages; {FORMS}",
            ) from error
        raise _raised("importing it", error, where) from error
    try:
        call = operator.attrgetter(function)(found)
    except AttributeError as error:
        public = [name for name, value in vars(found).items() if callable(value) and not name.startswith("_")]
        raise DataError(
            what=f"the module has no '{function}'", where=where, fix=f"it has {', '.join(public) or 'no functions'}"
        ) from error
    if not callable(call):
        raise DataError(what=f"'{function}' is a {type(call).__name__}", where=where, fix="name a function")
    try:
        return cast("object", call())
    except (Exception, SystemExit) as error:
        raise _raised("calling it without arguments", error, where) from error


def _drain(made: object, where: str) -> list[object]:
    """Take all batches out of an iterable or an onnxruntime CalibrationDataReader."""
    reader = getattr(made, "get_next", None)
    if reader is None and not isinstance(made, Iterable):
        raise DataError(
            what=f"it returned a {type(made).__name__}",
            where=where,
            fix="return an iterable of (inputs, labels or None), or a CalibrationDataReader",
        )
    try:
        return list(iter(reader, None) if reader else cast("Iterable[object]", made))
    except (Exception, SystemExit) as error:
        raise _raised("reading its batches", error, where) from error


def _raised(doing: str, error: BaseException, where: str) -> DataError:
    return DataError(what=f"{doing} raised {type(error).__name__}: {error}", where=where, fix="correct the function")


def _gather(
    batches: list[object], inputs: Sequence[InputSpec], where: str
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Join batches, each (inputs, labels or None) or inputs alone, into arrays by name and labels."""
    parts: dict[str, list[np.ndarray]] = {}
    labels: list[np.ndarray] = []
    again = "yield (inputs, labels) or (inputs, None) in every batch, inputs a dict of arrays by input name"
    for i, item in enumerate(batches):
        fed, label = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        if not isinstance(fed, Mapping):
            if len(inputs) != 1 or isinstance(fed, tuple | list):
                raise DataError(what=f"batch {i} has a {type(fed).__name__} for inputs", where=where, fix=again)
            fed = {inputs[0].name: fed}
        if i and fed.keys() != parts.keys():
            names = f"has {', '.join(map(repr, fed))}, those before it {', '.join(map(repr, parts))}"
            raise DataError(what=f"batch {i} {names}", where=where, fix=again)
        for name, value in fed.items():
            parts.setdefault(name, []).append(_array(value, f"{where}: batch {i}, '{name}'"))
        if label is not None:
            labels.append(np.atleast_1d(_array(label, f"{where}: batch {i}, labels")))
    if not batches:
        raise DataError(what="it gave no batches", where=where, fix=again + "; a used-up iterator starts empty")
    if labels and len(labels) != len(batches):
        raise DataError(what=f"{len(labels)} of {len(batches)} batches have labels", where=where, fix=again)
    arrays = {name: _join(values, f"{where}: '{name}'") for name, values in parts.items()}
    return arrays, _join(labels, f"{where}: labels") if labels else None


def _join(parts: list[np.ndarray], where: str) -> np.ndarray:
    """Concatenate batches; a scalar counts once."""
    for i, part in enumerate(parts):
        if part.shape[1:] != parts[0].shape[1:] or part.ndim != parts[0].ndim:
            raise DataError(
                what=f"batch {i} has shape {part.shape}, batch 0 {parts[0].shape}",
                where=where,
                fix="give all samples one shape, samples on the first axis",
            )
    return np.concatenate(parts) if parts[0].ndim else parts[0]


def _check(data: Dataset, called: Mapping[str, str], classes: int | None) -> Dataset:
    """Hold what was read, and what the user calls it, against the model; labels become int64."""
    for spec in data.inputs:
        array, where = data.arrays[spec.name], f"{data.source}: {called[spec.name]}"
        if data.pixels is None:
            _check_type(array, spec, where)
        _check_shape(array.shape, spec, where, data.pixels)
    lengths = {called[s.name]: len(data.arrays[s.name]) for s in data.inputs if s.shape}
    if len(set(lengths.values())) > 1:
        raise DataError(
            what="different numbers of samples: " + ", ".join(f"{n} in {name}" for name, n in lengths.items()),
            where=data.source,
            fix="give every input the same samples, in the same order",
        )
    _check_count(data)
    for spec in data.inputs:
        _check_finite(data.arrays[spec.name], spec, f"{data.source}: {called[spec.name]}")
    return replace(data, labels=_labels(data, classes))


def _check_dataset(data: Dataset, inputs: Sequence[InputSpec], classes: int | None) -> Dataset:
    """Hold a dataset, perhaps made for another model, against this one by feeding one sample."""
    _check_count(data)
    fed = data.batch(np.arange(1))
    for spec in inputs:
        if spec.name not in fed:
            raise _missing(spec, fed, inputs, data.source)
        where = f"{data.source}: '{spec.name}'"
        if fed[spec.name].dtype != spec.dtype:
            raise DataError(
                what=f"the dataset feeds {fed[spec.name].dtype}, the model takes {spec.dtype}",
                where=where,
                fix="load the data anew for this model",
            )
        _check_shape(fed[spec.name].shape, spec, where, None)
    _labels(data, classes)
    return data


def _check_count(data: Dataset) -> None:
    if len(data) < MIN_SAMPLES:
        raise DataError(
            what=f"only {len(data)} samples",
            where=data.source,
            fix=f"give {MIN_SAMPLES} or more; some hundreds are good",
        )


def _check_type(array: np.ndarray, spec: InputSpec, where: str) -> None:
    """Floats may become other floats and integers other integers, nothing else."""
    have, want = KINDS.get(array.dtype.kind), KINDS.get(spec.dtype.kind)
    if array.dtype != spec.dtype and (have is None or have != want):
        raise DataError(
            what=f"it is {array.dtype}, the model's input '{spec.name}' takes {spec.dtype}",
            where=where,
            fix=f"give what the model was trained on, as {spec.dtype}",
        )
    if want == "integers" and array.size:
        low, high, limit = int(array.min()), int(array.max()), np.iinfo(spec.dtype)
        if low < limit.min or high > limit.max:
            raise DataError(
                what=f"values from {low} to {high} do not fit {spec.dtype}",
                where=where,
                fix=f"give values from {limit.min} to {limit.max}",
            )


def _check_shape(shape: tuple[int, ...], spec: InputSpec, where: str, feed: Pixels | None) -> None:
    fed = feed.fed(shape) if feed else shape
    if spec.fits(fed):
        return
    have, hint, fix = f"{shape}, fed as {fed}" if feed else shape, "", f"give it as {_show(spec.shape)}, samples first"
    if feed:
        fix = "give images of that size and number of channels (for a folder: size, crop and color in preprocess.json)"
        if spec.fits(shape):
            hint = "; it would fit as it is, but uint8 images are N,H,W,C"
            fix = "use x.transpose(0, 2, 3, 1) if they are N,C,H,W; otherwise give normalised float32"
    elif spec.fits((1, *shape)):
        hint, fix = "; it looks like one sample without a sample axis", f"stack {MIN_SAMPLES} or more samples"
    elif len(shape) == 4:
        for axes, text in (((0, 3, 1, 2), "N,H,W,C and not N,C,H,W"), ((0, 2, 3, 1), "N,C,H,W and not N,H,W,C")):
            if spec.fits(tuple(shape[a] for a in axes)):
                hint, fix = f"; it looks like {text}", f"use x.transpose{axes}"
    raise DataError(
        what=f"shape {have}, the model's input '{spec.name}' is {_show(spec.shape)}{hint}",
        where=where,
        fix=fix,
    )


def _check_finite(array: np.ndarray, spec: InputSpec, where: str) -> None:
    """Refuse what is not finite once it has the network's float type."""
    if array.dtype.kind != "f":
        return
    count, rows = 0, np.atleast_1d(array)
    first: tuple[int, ...] = ()
    for start in range(0, len(rows), 64):
        with np.errstate(over="ignore"):
            bad = np.argwhere(~np.isfinite(rows[start : start + 64].astype(spec.dtype, copy=False)))
        if len(bad) and not count:
            first = (start + int(bad[0, 0]), *map(int, bad[0, 1:]))
        count += len(bad)
    if count:
        raise DataError(
            what=f"{count} values are NaN, infinite or beyond {spec.dtype}: the first, {rows[first]}, at index {first}",
            where=where,
            fix="remove these samples or mend what made them",
        )


def _labels(data: Dataset, classes: int | None) -> np.ndarray | None:
    """Check the labels and return them as int64 (N,)."""
    labels, where = data.labels, f"{data.source}: labels"
    if labels is None:
        return None
    if labels.shape != (len(data),):
        raise DataError(
            what=f"labels of shape {labels.shape} for {len(data)} samples",
            where=where,
            fix=f"give shape ({len(data)},)",
        )
    if labels.dtype.kind not in "iu":
        raise DataError(
            what=f"labels are {labels.dtype}, not integers",
            where=where,
            fix="give class numbers as int64, or no labels",
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= (np.inf if classes is None else classes)))
    if len(wrong):
        top = f"0 to {classes - 1}, the model's {classes} classes" if classes else "0 or more"
        raise DataError(
            what=f"label {labels[wrong[0]]} at index {wrong[0]} ({len(wrong)} such labels); labels are {top}",
            where=where,
            fix="use the class numbers the model was trained with (in a folder: classes.json)",
        )
    return labels.astype(np.int64)


def _show(shape: tuple[int | None, ...]) -> str:
    """Write a shape out, the sample axis as N: (N, 3, ?, ?)."""
    return f"({', '.join(['N', *('?' if s is None else str(s) for s in shape[1:])])})" if shape else "()"
