"""What a run takes: a model from wherever it is, and data for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx

from onnx_amc.delivery import class_count, input_specs
from onnx_amc.graph.load import Model, load
from onnx_amc.run import data as sources

DataSource = str | os.PathLike[str] | sources.Dataset | Mapping[str, np.ndarray]
ModelSource = str | os.PathLike[str] | onnx.ModelProto

SYNTHETIC_SAMPLES = 256
"""Samples of noise that stand in where there is no data."""


def load_model(model: ModelSource) -> Model:
    """Read a model from wherever it is."""
    return load(model if isinstance(model, onnx.ModelProto) else Path(model))


def sidecar(model: ModelSource) -> Path | None:
    """The data that lies beside a model's file."""
    return None if isinstance(model, onnx.ModelProto) else sources.sidecar(model)


def find_data(
    loaded: Model, model: ModelSource, data: DataSource | None, seed: int, note: Callable[[str], None]
) -> sources.Dataset:
    """Return the user's data, the sidecar, or noise with a remark."""
    specs = input_specs(loaded.proto)
    source = data if data is not None else sidecar(model)
    if source is not None:
        return sources.load(source, specs, classes=class_count(loaded))
    note(
        "no data: calibration inputs are synthetic noise and the score is fidelity to the original. Expect a worse result "
        "than with a few hundred real inputs (--data)"
    )
    return sources.synthesise(specs, SYNTHETIC_SAMPLES, seed, loaded.shapes)
