"""Samples, what the model takes, and whether the two fit.

Samples stay in the form they came in (uint8 images stay uint8) and become what the network takes in `Dataset.batch`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from onnx_amc.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx_amc.run.pixels import Pixels
    from onnx_amc.run.shelf import Pictures

MIN_SAMPLES = 8
STREAMED = 64
"""Samples by which a data set that is not in memory is known."""

KINDS = {"f": "floats", "i": "integers", "u": "integers", "b": "booleans", "U": "text", "O": "text"}


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
        labels: Class numbers int64 (N,), or what else a metric takes, integers or finite floats (N, ...); None without.
        source: Where they came from, for messages.
        synthetic: Whether the samples are made up.
        pixels: How uint8 images (N,H,W,C) of a model's one input are fed; None where arrays are fed as they are.
        unused: Names of arrays that came along and that nothing reads.
        classes: What class numbers are called, where that is known.

    """

    inputs: tuple[InputSpec, ...]
    arrays: Mapping[str, np.ndarray | Pictures]
    labels: np.ndarray | None
    source: str
    synthetic: bool = False
    pixels: Pixels | None = None
    unused: tuple[str, ...] = ()
    classes: Mapping[int, str] = field(default_factory=dict)

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

    def only(self, index: np.ndarray) -> Dataset:
        """The samples at `index` alone, under the numbers that they have here."""
        numbers = np.unique(index)
        arrays = {k: np.asarray(a[numbers] if a.ndim else a) for k, a in self.arrays.items()}
        labels = None if self.labels is None else self.labels[numbers]
        given = {f.name: getattr(self, f.name) for f in fields(Dataset)} | {"arrays": arrays, "labels": labels}
        return Excerpt(**given, numbers=numbers)

    def digest(self) -> str:
        """SHA-256 of how many samples there are, of the labels, of the arrays in memory, and of a few samples as they are fed.

        Of what is decoded when it is asked for, the names and sizes of all files count as well: reading them all would take long.
        """
        found = hashlib.sha256(f"{len(self)}".encode())
        if len(self):
            few = np.unique(np.linspace(0, len(self) - 1, STREAMED).astype(np.int64))
            fed = (a for at in few[:, None] for a in self.batch(at).values())  # one at a time: they may be large
            for streamed in (a for a in self.arrays.values() if not isinstance(a, np.ndarray)):
                found.update(streamed.listing().encode(errors="surrogateescape"))
            whole = (a for a in [*self.arrays.values(), self.labels] if isinstance(a, np.ndarray))
            for array in chain(fed, whole):
                if array.dtype.hasobject:
                    array = array.astype("U")  # noqa: PLW2901  text
                found.update(f"{array.dtype.str}{array.shape}".encode())
                found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return found.hexdigest()

    @property
    def class_numbers(self) -> np.ndarray | None:
        """The labels where they are one class number per sample, int64 (N,)."""
        known = self.labels is not None and self.labels.ndim == 1 and self.labels.dtype.kind in "iu"
        return self.labels if known else None

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
        classes = np.zeros(len(self), np.int64) if self.class_numbers is None else self.class_numbers[shuffled]
        _, code, size = np.unique(classes, return_inverse=True, return_counts=True)
        rank = np.empty(len(self))
        rank[np.argsort(code, kind="stable")] = np.concatenate([np.arange(s) for s in size])
        return shuffled[np.argsort((rank + rng.random(len(self))) / size[code], kind="stable")]


@dataclass(frozen=True, eq=False)
class Excerpt(Dataset):
    """Some samples of a larger set, which `batch` knows by the numbers that they have there.

    Args:
        numbers: Which ones, ascending.

    """

    numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def batch(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Feed some of the samples."""
        return super().batch(np.searchsorted(self.numbers, index))


def spread(index: np.ndarray, most: int) -> np.ndarray:
    """So many samples at most, evenly spread over those there are."""
    return index[:: max(1, len(index) // most)][:most]


def check(data: Dataset, called: Mapping[str, str], classes: int | None) -> Dataset:
    """Hold what was read, and what the user calls it, against the model; class numbers become int64."""
    for spec in data.inputs:
        array, where = data.arrays[spec.name], f"{data.source}: {called[spec.name]}"
        if data.pixels is None and isinstance(array, np.ndarray):
            _check_type(array, spec, where)
        _check_shape(array.shape, spec, where, data.pixels)
    lengths = {called[s.name]: len(data.arrays[s.name]) for s in data.inputs if s.shape}
    if len(set(lengths.values())) > 1:
        raise DataError(
            what="different numbers of samples: " + ", ".join(f"{n} in {name}" for name, n in lengths.items()),
            where=data.source,
            fix="give every input the same samples, in the same order",
        )
    enough(data)
    for spec in data.inputs:
        if isinstance(array := data.arrays[spec.name], np.ndarray):
            _check_finite(array, spec, f"{data.source}: {called[spec.name]}")
    return replace(data, labels=_labels(data, classes))


def check_dataset(data: Dataset, inputs: Sequence[InputSpec], classes: int | None) -> Dataset:
    """Hold a dataset, perhaps made for another model, against this one by feeding one sample."""
    enough(data)
    fed = data.batch(np.arange(1))
    for spec in inputs:
        if spec.name not in fed:
            raise missing(spec, fed, inputs, data.source)
        where = f"{data.source}: '{spec.name}'"
        if fed[spec.name].dtype != spec.dtype:
            raise DataError(
                what=f"the dataset feeds {fed[spec.name].dtype}, the model takes {spec.dtype}",
                where=where,
                fix="load the data anew for this model",
            )
        _check_shape(fed[spec.name].shape, spec, where, None)
    labels = _labels(data, classes)
    same = labels is None or data.labels is None or labels.dtype == data.labels.dtype
    return data if same else replace(data, labels=labels)


def enough(data: Dataset, least: int = 1) -> None:
    """Refuse fewer samples than are needed.

    Raises:
        DataError: There are fewer.

    """
    if len(data) < least:
        fix = f"give {least} or more; some hundreds are good"
        raise DataError(what=f"only {len(data)} samples", where=data.source, fix=fix)


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
    have, hint, fix = f"{shape}, fed as {fed}" if feed else shape, "", f"give it as {show(spec.shape)}, samples first"
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
        what=f"shape {have}, the model's input '{spec.name}' is {show(spec.shape)}{hint}",
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
    """Check the labels: class numbers (N,) come back as int64, maps and targets (N, ...) as they are."""
    labels, where = data.labels, f"{data.source}: labels"
    if labels is None:
        return None
    if labels.shape[:1] != (len(data),) or (classes and labels.ndim == 2 and labels.dtype.kind in "iu"):
        raise DataError(
            what=f"labels of shape {labels.shape} for {len(data)} samples",
            where=where,
            fix=f"give shape ({len(data)},)" + ("" if classes else f", or maps or targets ({len(data)}, ...)"),
        )
    if labels.dtype.kind not in "iufb" or (classes and labels.ndim == 1 and labels.dtype.kind not in "iu"):
        raise DataError(
            what=f"labels are {labels.dtype}, not integers",
            where=where,
            fix="give class numbers as int64, targets as floats of the output's shape, or no labels",
        )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise DataError(
            what=f"{np.count_nonzero(~np.isfinite(labels))} values are NaN or infinite",
            where=where,
            fix="remove these samples or mend what made them",
        )
    if labels.dtype.kind == "b":
        return labels.astype(np.uint8)
    if labels.ndim > 1 or labels.dtype.kind == "f":
        return labels
    wrong = np.flatnonzero((labels < 0) | (labels >= (np.inf if classes is None else classes)))
    if len(wrong):
        top = f"0 to {classes - 1}, the model's {classes} classes" if classes else "0 or more"
        raise DataError(
            what=f"label {labels[wrong[0]]} at index {wrong[0]} ({len(wrong)} such labels); labels are {top}",
            where=where,
            fix="use the class numbers the model was trained with (in a folder: classes.json)",
        )
    return labels.astype(np.int64)


def show(shape: tuple[int | None, ...]) -> str:
    """Write a shape out, the sample axis as N: (N, 3, ?, ?)."""
    return f"({', '.join(['N', *('?' if s is None else str(s) for s in shape[1:])])})" if shape else "()"


def missing(spec: InputSpec, arrays: Mapping[str, np.ndarray], inputs: Sequence[InputSpec], source: str) -> DataError:
    """Say which array is missing, and which one it might be under another name."""
    floats = [name for name, a in arrays.items() if a.ndim > 1 and a.dtype.kind == spec.dtype.kind]
    rename = len(inputs) == 1 and len(floats) == 1
    return DataError(
        what=f"no array for the model's input '{spec.name}'; there are {', '.join(map(repr, arrays)) or 'none'}, "
        f"the model takes {', '.join(repr(s.name) for s in inputs)}",
        where=source,
        fix=f"rename '{floats[0]}' to '{spec.name}'" if rename else f"add an array '{spec.name}' {show(spec.shape)}",
    )
