"""What a network is scored by: outputs, labels or None and the original's outputs go in, one number comes out, higher is better.

Each metric works on any of the samples, one at least. Those that are no shares of 1 have a scale of their own, by which a search
can tell how much a difference is.
"""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onnx_amc.errors import AmcError, OptionError
from onnx_amc.run.finite import difference, levelled
from onnx_amc.run.samples import Dataset

Outputs = list[np.ndarray]
Metric = Callable[[Outputs, np.ndarray | None, Outputs], float]
"""(outputs, labels or None, the original network's outputs) -> score, higher is better."""

Scale = tuple[float, float]
"""Of a score: the best one, and the difference that counts as much as that between a share of 0 and one of 1."""

SHARE: Scale = (1.0, 1.0)

PERFECT = 100.0
"""Decibels of a copy that differs by less than 1e-5 of the target's range, a perfect one included."""

IGNORED = 255
"""Class number of the pixels that do not count, where the output has no more than so many classes."""

OWN = "or write a metric of your own: --metric module:function"


def top1(outputs: Outputs, labels: np.ndarray | None, _reference: Outputs) -> float:
    """Share of samples whose highest output is the label, or whose output is, where that is class numbers (N,)."""
    return float((said("top1", outputs[0]) == _class_numbers("top1", outputs[0], labels)).mean())


def top5(outputs: Outputs, labels: np.ndarray | None, _reference: Outputs) -> float:
    """Share of samples whose label is among the five highest outputs."""
    goal, rows = _class_numbers("top5", outputs[0], labels), per_class(outputs[0])
    if rows.shape[1] <= 5:
        raise OptionError(
            f"the first output {_shape(outputs[0])} has {rows.shape[1]} classes: the label is always among the five highest",
            where="--metric top5",
            fix="take top1",
        )
    best = np.argsort(-rows, axis=1, kind="stable")[:, :5]
    return float(((best == goal[:, None]).any(axis=1) & ~np.isnan(rows).any(axis=1)).mean())


def agreement(outputs: Outputs, _labels: np.ndarray | None, reference: Outputs) -> float:
    """Share of samples whose highest output is the original's, or whose output is, where that is class numbers (N,)."""
    same = said("agreement", outputs[0]) == said("agreement", reference[0])
    return float((same & ~np.isnan(per_class(reference[0])).any(axis=1)).mean())  # NaN agrees with nothing


def fidelity(outputs: Outputs, _labels: np.ndarray | None, reference: Outputs) -> float:
    """1 - |z - z0|^2 / |z0 - mean z0|^2 over all float outputs, averaged; 1 is a perfect copy.

    Where there are integers alone (a network that ends in an ArgMax) it is the share of them that are the original's.
    """
    return float(1.0 - np.mean(gaps(outputs, reference)))


def mse(outputs: Outputs, labels: np.ndarray | None, reference: Outputs) -> float:
    """Minus the mean squared error of the first output, E(z - t)^2, over all its elements; 0 is perfect.

    The target t is the labels where they have the output's shape, axes of length 1 aside; where there are none, or only class
    numbers, it is the original's first output.

    Raises:
        OptionError: Labels of another shape.

    """
    return 0.0 - _squared(outputs[0], _target("mse", outputs, labels, reference))


def psnr(outputs: Outputs, labels: np.ndarray | None, reference: Outputs) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(peak^2 / E(z - t)^2), the mean over all samples at once, not image by image.

    The target t is that of `mse`. The peak is its range, largest less smallest element over the samples given (1 where it is
    constant). From -100 to 100 dB, the latter for a perfect copy.

    Raises:
        OptionError: Labels of another shape.

    """
    target = _target("psnr", outputs, labels, reference)
    known = target[np.isfinite(target)]
    peak = (float(known.max()) - float(known.min()) if known.size else 0.0) or 1.0
    error = _squared(outputs[0], target)
    if not np.isfinite(error):
        return -PERFECT
    least = peak**2 * 10 ** (-PERFECT / 10)
    return float(np.clip(10 * np.log10(peak**2 / max(error, least)), -PERFECT, PERFECT))


def miou(outputs: Outputs, labels: np.ndarray | None, reference: Outputs) -> float:
    """Mean over classes of intersection / union, in pixels of all samples given.

    Classes are the highest of the first output's axis 1, (N,C,H,W), or the output itself where it is integers (N,H,W); they are
    held against labels (N,H,W), or where there are none, or only one number per sample, against the original's. A class that
    occurs in neither is left out, as are pixels of the label 255 (where there are at most 255 classes). 0 where nothing is left.

    Raises:
        OptionError: Output or labels are no class maps, or of different sizes.

    """
    found = _class_map(outputs[0])
    dense = labels is not None and labels.ndim > 1
    goal = _labelled(outputs[0], labels) if labels is not None and dense else _class_map(reference[0])
    drop = dense and (outputs[0].dtype.kind != "f" or outputs[0].shape[1] <= IGNORED)
    classes = 1 + max(int(found.max()), int(goal.max()))
    both, either = np.zeros(classes), np.zeros(classes)
    for one, other in zip(found, goal, strict=True):
        counted = other != IGNORED if drop else np.ones(other.shape, bool)
        mine, theirs = one[counted], other[counted]
        shared = np.bincount(theirs[mine == theirs], minlength=classes)
        both += shared
        either += np.bincount(mine, minlength=classes) + np.bincount(theirs, minlength=classes) - shared
    seen = either > 0
    return float((both[seen] / either[seen]).mean()) if seen.any() else 0.0


METRICS: dict[str, Metric] = {
    "top1": top1, "top5": top5, "agreement": agreement, "fidelity": fidelity, "mse": mse, "psnr": psnr, "miou": miou,
}  # fmt: skip


def find_metric(name: str | None, data: Dataset, classes: int | None, *, named: bool = False) -> tuple[str, Metric]:
    """Return the metric asked for, or what suits the data.

    What suits: with class numbers top1 for a classifier; with class maps miou; with float targets mse; otherwise agreement for a
    classifier, and fidelity, as where the output is as long as an input.

    Args:
        name: Of the metric, or `module:function`; modules in the current directory are found.
        data: The samples.
        classes: How many the model tells apart, None where it is no classifier.
        named: Whether its first output is class numbers themselves.

    Raises:
        OptionError: Unknown name, a function that does not exist, labels wanted where there are none, or labels that suit nothing.

    """
    name = name or _suited(data, classes, named=named)
    if name in {"top1", "top5"} and data.labels is None:
        raise OptionError(
            f"metric '{name}' needs labels", where="--metric", fix="give labels, or take --metric agreement"
        )
    if name in METRICS:
        return name, METRICS[name]
    if ":" not in name:
        raise OptionError(
            f"unknown metric '{name}'", where="--metric", fix=f"choose {', '.join(METRICS)}, or module:function"
        )
    return name, _guarded(name, imported(name, "--metric"))


def scale_of(metric: Metric, labels: np.ndarray | None, reference: Outputs, original: float) -> Scale:
    """On what scale a metric's scores are.

    Shares: 1, 1. `mse`: 0, the target's variance from sample to sample. `psnr`: 100, 100. Of a function of the user's nothing is
    known: where the original scores above 0 and up to 1 it is taken for a share; above 1 the original's score is best and unit; at
    0 and below the best is 0, and the unit what the original is below it, at least 1.
    """
    if metric is mse:
        return 0.0, power(_target("mse", reference, labels, reference)) or 1.0
    if metric is psnr:
        return PERFECT, PERFECT
    if metric in METRICS.values():
        return SHARE
    unit = max(1.0, abs(original))
    return unit if original > 0 else 0.0, unit


def shown(score: float) -> str:
    """Write a score out: four decimals, three digits where these would hide it."""
    return f"{score:.4f}" if abs(score) >= 1e-3 or score == 0 else f"{score:.3g}"


def confusion(outputs: Outputs, labels: np.ndarray) -> list[list[int]]:
    """How often a class was taken for another: label, class with the highest output, samples; pairs that occur only."""
    pairs = np.stack([labels, said("top1", outputs[0])], axis=1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    return np.column_stack([found, counts]).tolist()  # type: ignore[no-any-return]


def gaps(outputs: Outputs, reference: Outputs) -> list[float]:
    """How far each float output is from the original's, by `relative`; where there is none, the share of the others that differ."""
    pairs = list(zip(outputs, reference, strict=True))
    found = [relative(z, z0) for z, z0 in pairs if z0.dtype.kind == "f"]
    return found or [float(np.mean(z != z0)) for z, z0 in pairs]


def relative(z: np.ndarray, z0: np.ndarray) -> float:
    """E|z - z0|^2 relative to the variance of z0; 1e6 at most, and where z is not finite."""
    gap = _squared(z, z0)
    return min(gap / max(power(z0), 1e-300), 1e6) if np.isfinite(gap) else 1e6


def power(z0: np.ndarray) -> float:
    """Variance of each element from sample to sample, averaged; the mean square where there is none. Infinities are left out."""
    z0 = levelled(z0)
    return float(np.mean(np.square(z0 - z0.mean(axis=0, keepdims=True), dtype=np.float64))) or float(
        np.mean(np.square(z0, dtype=np.float64))
    )


def _squared(z: np.ndarray, target: np.ndarray) -> float:
    gap = difference(z, target)
    return float(np.mean(np.square(gap, out=gap)))


def per_class(z: np.ndarray) -> np.ndarray:
    """What a classifier says of each sample, (N, classes); of a sequence (N, steps, classes) what it says last."""
    return z[:, -1] if z.ndim == 3 and z.shape[2] > 1 else z.reshape(len(z), -1)


def said(metric: str, z: np.ndarray) -> np.ndarray:
    """The class that a classifier names for each sample, int (N,); -1 where what it says is NaN.

    Raises:
        OptionError: It tells no classes apart.

    """
    if z.dtype.kind in "iu" and z.size == len(z):
        return z.reshape(len(z)).astype(np.int64)
    rows = per_class(z)
    if rows.shape[1] < 2:
        raise OptionError(
            f"the first output is {_shape(z)}: one number per sample names no class",
            where=f"--metric {metric}",
            fix=f"take fidelity, or mse with float labels; {OWN}",
        )
    return np.where(np.isnan(rows).any(axis=1), -1, rows.argmax(axis=1))


def _suited(data: Dataset, classes: int | None, *, named: bool) -> str:
    """The metric that suits the labels, and the model where there are none."""
    if data.labels is None:
        copied = any(i.dtype.kind == "f" and i.shape[1:] == (classes,) for i in data.inputs)  # an autoencoder's
        return "fidelity" if classes is None or copied else "agreement"
    if data.class_numbers is not None:
        return "top1" if named or classes is not None else "fidelity"
    if data.labels.dtype.kind == "f":
        return "mse"
    if data.labels.ndim in {3, 4}:
        return "miou"
    raise OptionError(
        f"labels {_shape(data.labels)} suit no metric by themselves",
        where=f"{data.source}: labels",
        fix=f"give class numbers (N,), class maps (N, H, W) or float targets; {OWN}",
    )


def _class_numbers(name: str, z: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Labels (N,), one integer for each sample of the output."""
    if labels is None or labels.shape != (len(z),) or labels.dtype.kind not in "iu":
        raise OptionError(
            f"the first output is {_shape(z)}, labels are {_shape(labels)}: it takes one class number per sample",
            where=f"--metric {name}",
            fix=f"give labels (N,) as int64; take mse or psnr for targets, miou for class maps; {OWN}",
        )
    return labels


def _target(name: str, outputs: Outputs, labels: np.ndarray | None, reference: Outputs) -> np.ndarray:
    """What the first output is held against, of its shape."""
    z = outputs[0]
    numbers = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu" and z.size != len(z)
    target = reference[0] if labels is None or numbers else labels
    if z.dtype.kind not in "fiu" or _long(z) != _long(target):
        raise OptionError(
            f"the first output is {_shape(z)}, the target {_shape(target)}",
            where=f"--metric {name}",
            fix=f"give labels of the output's shape, or none to compare with the original; {OWN}",
        )
    return target.reshape(z.shape)


def _long(z: np.ndarray) -> tuple[int, ...]:
    """The shape without axes of length 1, samples aside."""
    return (len(z), *(d for d in z.shape[1:] if d != 1))


def _class_map(z: np.ndarray) -> np.ndarray:
    """The class of each pixel, int64 (N,H,W), from logits (N,C,H,W) or integers (N,H,W)."""
    if z.ndim == 4 and z.dtype.kind == "f" and z.shape[1] > 1:
        return np.asarray(z.argmax(axis=1))
    whole = z.dtype.kind in "iu" and (z.ndim == 3 or (z.ndim == 4 and z.shape[1] == 1))
    if not whole or int(z.min()) < 0:
        raise OptionError(
            f"the first output is {_shape(z)}" + (f" with values from {z.min()}" if whole else ""),
            where="--metric miou",
            fix=f"it takes logits (N, C, H, W) of two classes or more, or class numbers (N, H, W) from 0; {OWN}",
        )
    return np.asarray(z.reshape(len(z), *z.shape[-2:]), np.int64)


def _labelled(z: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels as int64 (N,H,W), of the output's size and classes."""
    goal = labels[:, 0] if labels.ndim == 4 and labels.shape[1] == 1 else labels
    if goal.dtype.kind not in "iu" or goal.shape != (len(z), *z.shape[-2:]):
        raise OptionError(
            f"the first output is {_shape(z)}, labels are {_shape(labels)}",
            where="--metric miou",
            fix="give labels as integers (N, H, W) of the output's height and width; for targets take mse or psnr",
        )
    logits = z.dtype.kind == "f"
    known = (goal >= 0) & (goal < z.shape[1]) if logits else goal >= 0
    strange = goal[~known & (goal != IGNORED)]
    if len(strange):
        raise OptionError(
            f"label {strange[0]} ({len(strange)} such pixels)" + (f"; {z.shape[1]} classes" if logits else ""),
            where="--metric miou",
            fix=f"give the class numbers that the model was trained with, and {IGNORED} where a pixel does not count",
        )
    return goal.astype(np.int64)


def _shape(z: np.ndarray | None) -> str:
    """Type and shape, the samples as N."""
    return "none" if z is None else f"{z.dtype} ({', '.join(['N', *map(str, z.shape[1:])])})"


def imported(name: str, where: str) -> Callable[..., Any]:
    """The function that `module:function` names; modules in the working folder are found.

    Raises:
        OptionError: It cannot be imported, or is no function.

    """
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = operator.attrgetter(function)(importlib.import_module(module))
    except (Exception, SystemExit) as error:  # whatever a user's module raises
        raise OptionError(
            f"cannot import '{name}': {type(error).__name__}: {error}",
            where=where,
            fix=f"check the names of module and function; looked for in {Path.cwd()} and among the installed packages",
        ) from error
    if not callable(found):
        raise OptionError(f"'{name}' is a {type(found).__name__}", where=where, fix="name a function")
    return found  # type: ignore[no-any-return]


def _guarded(name: str, function: Callable[..., object]) -> Metric:
    """The user's function; whatever it raises, and what is no number, becomes an OptionError."""
    where, takes = f"--metric {name}", "it is called with (outputs, labels or None, the original's outputs)"

    def scored(outputs: Outputs, labels: np.ndarray | None, reference: Outputs) -> float:
        known = None if labels is None else _locked(labels)
        try:
            value = function(list(map(_locked, outputs)), known, list(map(_locked, reference)))
        except AmcError:
            raise
        except (Exception, SystemExit) as error:
            shapes = f"outputs {', '.join(map(_shape, outputs))}; labels {_shape(labels)}"
            what = f"it raised {type(error).__name__}: {error}"
            raise OptionError(what, where=where, fix=f"correct the function; {takes}, here {shapes}") from error
        if (number := _number(value)) is None:
            what = f"it returned {_brief(value)}, no number"
            raise OptionError(what, where=where, fix=f"return one float, higher is better; {takes}")
        return number

    return scored


def _locked(z: np.ndarray) -> np.ndarray:
    """A view that cannot be written to: the original's outputs are needed again."""
    z = z.view()
    z.flags.writeable = False
    return z


def _number(value: Any) -> float | None:
    """The value as a float if it is a single real number."""
    if isinstance(value, str | bytes) or np.iscomplexobj(value) or getattr(value, "ndim", None):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _brief(value: object) -> str:
    """A value and its type, on one line."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
