"""How images are usually brought to a network: the settings of preprocess.json under the names that people know them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnx_amc.errors import OptionError
from onnx_amc.run.pixels import SCALE, Pixels, pixels

IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CIFAR10: dict[str, Any] = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616]}
SIGNED: dict[str, Any] = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
UNIT: dict[str, Any] = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
RAW: dict[str, Any] = {"scale": 1.0, **UNIT}

PRESETS = {"imagenet": IMAGENET, "torchvision": IMAGENET, "cifar10": CIFAR10, "tf": SIGNED, "yolo": UNIT}
"""Normalisation; `imagenet` and `torchvision` crop 224 of 256 besides, and `yolo` squeezes the whole image to the input's size."""

SIDE, COVERED = 224, 256
"""Of ImageNet's central crop, and of the shorter side of the image that it is cut from."""


def settings_of(name: str, height: int | None, width: int | None) -> dict[str, Any]:
    """Return a preset as preprocess.json would say it, for a network whose input has this size (None: any).

    Raises:
        OptionError: There is no such preset.

    """
    known = dict(_preset(name))
    if name in {"imagenet", "torchvision"}:
        h, w = height or SIDE, width or SIDE
        known |= {"size": round(min(h, w) * COVERED / SIDE), "crop": [h, w]}
    elif name == "yolo" and height and width:
        known |= {"size": [height, width]}
    return known


def normalise(name: str, channels: int, *, first: bool, dtype: np.dtype) -> Pixels:
    """How a preset feeds uint8 images of 1 or 3 channels; a network of integer input takes the pixels themselves."""
    return _pixels(_preset(name), channels, first=first, dtype=dtype, where=f"--preset {name}")


def raw(channels: int, *, first: bool, dtype: np.dtype) -> Pixels:
    """Feed pixels from 0 to 255 as they are."""
    return _pixels(RAW, channels, first=first, dtype=dtype, where="pixels")


def fitted(settings: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """The same settings for images of so many channels: grey ones have the mean of the colours'."""
    found = dict(settings)
    for key in {"mean", "std"} & found.keys():
        found[key] = found[key] if channels == 3 else [float(np.mean(found[key]))]
    return found


def _preset(name: str) -> Mapping[str, Any]:
    if name not in PRESETS:
        raise OptionError(f"unknown preset '{name}'", where="--preset", fix=f"choose {', '.join(PRESETS)}")
    return PRESETS[name]


def _pixels(known: Mapping[str, Any], channels: int, *, first: bool, dtype: np.dtype, where: str) -> Pixels:
    given = {} if dtype.kind != "f" else fitted(known, channels)
    scale = float(given.pop("scale", SCALE))
    return pixels(given, channels, first=first, dtype=dtype, where=where, scale=scale)
