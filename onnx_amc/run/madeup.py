"""Samples made up where there are none: images that look natural to a network, and noise for everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnx_amc.run.pixels import channels_first
from onnx_amc.run.presets import normalise
from onnx_amc.run.samples import Dataset, InputSpec
from onnx_amc.run.scenes import scenes

USUAL = ("tf", "imagenet")
"""Presets by which most networks are fed, the one that drives them least first."""

GREY = np.array([0.299, 0.587, 0.114])
SMALLEST = 8
"""Height and width of what may be an image, at least."""


def synthesise(
    inputs: Sequence[InputSpec],
    samples: int,
    seed: int,
    sizes: Mapping[str, Sequence[int]] | None = None,
    preset: str | None = None,
) -> Dataset:
    """Make up `samples` samples, a stand-in for real ones: images, standard normal floats, integers and booleans of 0 and 1.

    Images go to inputs of four axes with one or three channels, normalised as `preset` says (to -1 to 1 without one). Dynamic
    axes have the lengths of `sizes` (input name to shape); where it says nothing, 1, but 224 for the height and width of
    N,C,H,W or N,H,W,C images.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    feed = None
    for spec in inputs:
        known = (sizes or {}).get(spec.name)
        shape = (samples, *(known[1:] if known else _sample_shape(spec.shape))) if spec.shape else ()
        if seen := _image(spec, shape):
            feed = normalise(preset or USUAL[0], seen[3], first=seen[0], dtype=spec.dtype)
            arrays[spec.name] = _pictures(samples, seen, seed)
            if len(inputs) > 1:
                arrays[spec.name], feed = feed(arrays[spec.name]), None
        elif spec.dtype.kind == "f":
            arrays[spec.name] = np.asarray(rng.standard_normal(shape, np.float32), spec.dtype)
        elif spec.dtype.kind in "iub":
            arrays[spec.name] = np.asarray(rng.integers(0, 2, shape), spec.dtype)
        else:
            arrays[spec.name] = np.full(shape, "", spec.dtype)
    return Dataset(tuple(inputs), arrays, None, f"made-up inputs, seed {seed}", synthetic=True, pixels=feed)


def _pictures(samples: int, seen: tuple[bool, int, int, int], seed: int) -> np.ndarray:
    """Images (N,H,W,C) as uint8."""
    _, height, width, channels = seen
    x = scenes(samples, height, width, seed)
    return x if channels == 3 else np.rint(x @ GREY).astype(np.uint8)[..., None]


def _image(spec: InputSpec, shape: tuple[int, ...]) -> tuple[bool, int, int, int] | None:
    """Whether channels come first, height, width and channels of an input that takes images; None where it takes something else."""
    if len(shape) != 4 or not (spec.dtype.kind == "f" or spec.dtype == np.uint8):
        return None
    first = channels_first(shape, {1, 3})
    height, width, channels = (*shape[2:], shape[1]) if first else shape[1:]
    return (first, height, width, channels) if channels in {1, 3} and min(height, width) >= SMALLEST else None


def _sample_shape(shape: tuple[int | None, ...]) -> list[int]:
    """Lengths for all axes but the first."""
    match shape:
        case (_, int(c), None, None):
            return [c, 224, 224]
        case (_, None, None, int(c)) if c in {1, 3, 4}:
            return [224, 224, c]
    return [s or 1 for s in shape[1:]]
