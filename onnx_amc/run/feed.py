"""What a network is really fed, and signs that this is not what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from onnx_amc.errors import OptionError
from onnx_amc.run.finite import answered
from onnx_amc.run.metrics import METRICS, Outputs, mse, per_class, power, said
from onnx_amc.run.pixels import Pixels, channels_first
from onnx_amc.run.presets import IMAGENET, fitted
from onnx_amc.run.samples import MIN_SAMPLES, Dataset, InputSpec, show, spread
from onnx_amc.run.score import Scorer

LOOKED_AT, LARGE = 64, 2**20
"""Samples that the description is drawn from; numbers in one beyond which there are fewer of them."""

NEAR = 0.15
"""Share of the way from chance to perfect up to which an accuracy is near chance."""

CLEARLY = 2.0
"""Times that outputs must tell more of the inputs fed in one way than of those fed in another."""

TRIED = 128
"""Made-up images by which ways to feed them are compared."""

ABOUT = 1.1
"""Two ways to feed images are about as good where outputs tell no more than so many times as much of one."""

PIXELS = 50.0
"""Largest value, at least, of what may be pixels from 0 to 255."""

COMPARING, EITHER = frozenset({"agreement", "fidelity"}), frozenset({"mse", "psnr", "miou"})
"""Metrics that look at the original's outputs and at no labels, and those that do so where there are no targets."""

FIX = "check scale, mean, std and the order of colours (preprocess.json, --preset, or the array itself)"


def describe(data: Dataset, index: np.ndarray) -> list[dict[str, Any]]:
    """Say what each input is fed at some of these samples: name, type, shape, layout, range, mean and deviation.

    Mean and std are one number, or one per channel of an image; those of text are None.
    """
    each = sum(a.size for a in data.batch(index[:1]).values())
    count = int(np.clip(LOOKED_AT * LARGE // max(each, 1), 1, LOOKED_AT))
    fed = data.batch(spread(index, count))
    return [_row(spec, fed[spec.name]) for spec in data.inputs]


def _row(spec: InputSpec, x: np.ndarray) -> dict[str, Any]:
    shape = list(x.shape[1:])
    row: dict[str, Any] = {"name": spec.name, "type": str(x.dtype), "shape": shape, "layout": layout(x.shape)}
    if x.dtype.kind not in "fiub" or not x.size:
        return row | dict.fromkeys(("min", "max", "mean", "std"))
    axes = {"NCHW": (0, 2, 3), "NHWC": (0, 1, 2)}.get(row["layout"])
    wide = x.astype(np.float64)
    mean, std = (np.round(f(axis=axes), 6).tolist() for f in (wide.mean, wide.std))
    return row | {"min": float(wide.min()), "max": float(wide.max()), "mean": mean, "std": std}


def layout(shape: tuple[int, ...]) -> str | None:
    """NCHW or NHWC where an array of this shape looks like images, None where it does not."""
    if len(shape) != 4:
        return None
    first = channels_first(shape, {1, 3})
    return ("NCHW" if first else "NHWC") if shape[1 if first else 3] in {1, 3} else None


def sentence(row: dict[str, Any]) -> str:
    """A row of `describe` in words."""
    form = f"'{row['name']}' {show((None, *row['shape']))} {row['type']}" + (
        f" {row['layout']}" if row["layout"] else ""
    )
    if row["min"] is None:
        return form
    return (
        f"{form}, from {row['min']:.3g} to {row['max']:.3g}, mean {_numbers(row['mean'])}, std {_numbers(row['std'])}"
    )


def unheeded(scorer: Scorer, names: Sequence[str]) -> list[str]:
    """What a score does not look at though it is there: labels, and all outputs but the first.

    Args:
        scorer: Knows the metric, the labels and the outputs.
        names: Of the network's outputs.

    """
    found: list[str] = []
    given, name = scorer.data.labels is not None, scorer.name
    if given and (name in COMPARING or (name in EITHER and scorer.data.class_numbers is not None)):
        found.append(
            f"labels count for nothing: {name} compares with the original's outputs; --metric module:function takes any measure"
        )
    if name in {*METRICS} - {"fidelity"} and len(scorer.reference) > 1:
        found.append(
            f"{name} looks at '{names[0]}' alone, of {len(names)} outputs: --metric fidelity holds all of them against the "
            "original's, module:function may weigh them"
        )
    return found


def _numbers(value: float | Sequence[float]) -> str:
    return ", ".join(f"{v:.3g}" for v in (value if isinstance(value, list) else [value]))


def doubts(scorer: Scorer, original: onnx.ModelProto) -> list[str]:
    """Signs that the data is not what the network was trained on; none where it is made up.

    Answers that are no numbers, or always the same, are a sign, and so are classes that it cannot tell apart, targets that are
    nearer to their own mean, and pixels from 0 to 255 of which its outputs tell far less than of the same pixels normalised.

    Args:
        scorer: Knows the data and the original's outputs.
        original: The network.

    """
    found: list[str] = []
    data, outputs = scorer.data, scorer.reference
    unheard = [~answered(z) for z in outputs if z.dtype.kind == "f"]
    silent = np.any(unheard, axis=0).mean() if unheard else 0.0
    if silent and not data.synthetic:
        found.append(f"the original itself answers NaN or infinity to {silent:.1%} of the samples: {FIX}")
    many = len(scorer.index) >= MIN_SAMPLES and not data.synthetic
    if many and all(z.dtype.kind == "f" and (z == z[:1]).all() for z in outputs):
        found.append(
            f"the original itself answers the same to all samples, by which no two networks can be told apart: {FIX}"
        )
    if many and (strange := _missed(scorer)):
        found.append(strange)
    named = outputs[0].dtype.kind in "iu" and outputs[0].size == len(outputs[0])
    if data.synthetic or not (named or (outputs[0].ndim > 1 and outputs[0].dtype.kind == "f")):
        return found
    labels = None if data.class_numbers is None else data.class_numbers[scorer.index]
    scores = per_class(outputs[0])
    telling = labels is not None and len(labels) >= MIN_SAMPLES and len(np.unique(labels)) > 1
    if labels is not None and telling and (named or scores.shape[1] > 1):
        recall, chance = recalls(said("top1", outputs[0]), labels), 1 / len(np.unique(labels))
        if recall < chance + NEAR * (1 - chance):
            found.append(
                f"the original itself gets {recall:.1%} of a class right on average, and {chance:.1%} would be chance: what "
                f"it is fed is probably not what it was trained on; {FIX}, and the class numbers"
            )
    few = spread(scorer.index, LOOKED_AT)
    if len(data.inputs) == 1 and scores.shape[1] > 1 and (pair := _raw_and_normalised(data, few)):
        raw, better = (told(original, data, x, scorer.where) for x in pair)
        if better > CLEARLY * raw:
            found.append(
                "the network is fed values from 0 to 255, but its outputs tell its inputs apart far better when they are "
                f"normalised: {FIX}"
            )
    return found


def _missed(scorer: Scorer) -> str:
    """A warning where the targets that a network is scored on are nearer to their own mean than to what the original answers."""
    if scorer.name not in {"mse", "psnr"} or scorer.labels is None or scorer.labels.dtype.kind != "f":
        return ""
    error, variance = -mse(scorer.reference, scorer.labels, scorer.reference), power(scorer.labels)
    if error <= variance or not np.ptp(scorer.labels, axis=0).any():
        return ""
    return (
        f"the original itself is off from the labels by {error:.3g} (mean squared), and always answering their mean would be by "
        f"{variance:.3g}: what it answers is probably not what they are (logits and 0 or 1, another unit); give labels in the form "
        "of the output, or leave them to --metric fidelity, which compares with the original's outputs"
    )


def lost(outputs: Outputs, reference: Outputs) -> list[str]:
    """A warning where a network answers NaN or infinity to samples that the original answers a number to; else none."""
    gone = [np.isfinite(z0) & ~np.isfinite(z) for z, z0 in zip(outputs, reference, strict=True) if z0.dtype.kind == "f"]
    share = np.mean(np.any([g.reshape(len(g), -1).any(axis=1) for g in gone], axis=0)) if gone else 0.0
    what = f"the compressed model answers NaN or infinity to {share:.1%} of the samples, where the original does not"
    return [f"{what}: cut less, or export the model in float32 if it is in half precision"] if share else []


def recalls(found: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur of the share that is found; a network that looks at nothing gets 1 / classes."""
    return float(np.mean([(found[labels == c] == c).mean() for c in np.unique(labels)]))


def informed(outputs: Outputs) -> float:
    """How much the first output tells of which sample it belongs to, in nats: H(mean p) - mean H(p), p its softmax."""
    z = outputs[0][answered(outputs[0])]
    if not len(z):
        return 0.0
    z = z.reshape(len(z), -1).astype(np.float64)
    p = z
    if (z < 0).any() or not np.allclose(z.sum(axis=1), 1, atol=1e-3):
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
    return float(_entropy(p.mean(axis=0)) - _entropy(p).mean())


def _raw_and_normalised(data: Dataset, index: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """What an image input is fed and the same with ImageNet's statistics, if it is pixels from 0 to 255."""
    x = data.batch(index)[data.inputs[0].name]
    form = layout(x.shape)
    if form is None or x.dtype.kind != "f" or x.min() < 0 or not PIXELS < x.max() <= 255:
        return None
    known = fitted(IMAGENET, x.shape[1 if form == "NCHW" else 3])
    mean, std = (np.asarray(known[k], x.dtype) for k in ("mean", "std"))
    if form == "NCHW":
        mean, std = mean[:, None, None], std[:, None, None]
    return x, (x / np.asarray(255, x.dtype) - mean) / std


def told(model: onnx.ModelProto, data: Dataset, x: np.ndarray, where: str) -> float:
    """How much the outputs tell of the input when `x` is fed to the one input of the network; nothing where none is a number."""
    fed = replace(data, arrays={data.inputs[0].name: x}, labels=None, pixels=None)
    try:
        return informed(Scorer(model, fed, np.arange(len(x)), _nothing, "feed", where=where).reference)
    except OptionError:
        return 0.0


def best_feed(model: onnx.ModelProto, data: Dataset, feeds: Mapping[str, Pixels], where: str) -> str:
    """Which of several ways to feed the same images the outputs tell most of; of those that are about as good the first one."""
    x = data.arrays[data.inputs[0].name][np.arange(min(TRIED, len(data)))]
    found = {name: told(model, data, feed(x), where) for name, feed in feeds.items()}
    return next(name for name, value in found.items() if value * ABOUT >= max(found.values()))


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)  # type: ignore[no-any-return]


def _nothing(_outputs: Outputs, _labels: np.ndarray | None, _reference: Outputs) -> float:
    return 0.0
