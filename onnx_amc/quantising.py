"""Eight bits within a run: the delivered network quantised with the run's own calibration samples, counted and scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from onnx_amc.config import Settings
from onnx_amc.errors import DataError, ModelError
from onnx_amc.graph import light
from onnx_amc.listener import Listener
from onnx_amc.prune.sparse import store
from onnx_amc.run.quantise import quantised
from onnx_amc.run.score import Scorer

EIGHT = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.UINT8})
"""Types of quantised weights."""


def in_int8(
    model: onnx.ModelProto, counted: Mapping[str, Any], scorer: Scorer, calibration: np.ndarray, settings: Settings,
    listener: Listener,
) -> tuple[onnx.ModelProto | None, dict[str, Any]]:  # fmt: skip
    """Return the int8 network and what the record says of it; None, and why, where onnxruntime cannot quantise or run it.

    Args:
        model: What is delivered in float.
        counted: Its MACs, parameters and those that are not zero: int8 has as many, in fewer bits.
        scorer: Scores it as it does the float model.
        calibration: Samples that ranges are taken from.
        settings: Of the run.
        listener: Hears what went wrong.

    """
    listener.stage("int8", None)
    try:
        found = quantised(model, scorer.data, calibration, provider=settings.provider)
        if model.graph.sparse_initializer:  # else zeros would take a byte each, and the file more than the float one
            store(found, frozenset(t.name for t in found.graph.initializer if t.data_type in EIGHT and len(t.dims) > 1))
        light.check(found)
        score = scorer(found).value
    except (ModelError, DataError, onnx.checker.ValidationError) as error:
        why = error.what if isinstance(error, ModelError | DataError) else str(error).splitlines()[0]
        listener.note(f"no int8 model, only the float one: {why}")
        return None, {"refused": why}
    return found, {**counted, "bytes": light.size(found), "score": score}
