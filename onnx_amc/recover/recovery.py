"""Distillation of a cut model, from graph to graph: only the contents of initializers change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_amc.graph.load import Model
from onnx_amc.recover.course import Course, Progress, Replay, Standing
from onnx_amc.recover.distil import Distiller
from onnx_amc.run.capture import free_batch
from onnx_amc.run.data import Dataset


def recovered(
    original: Model, cut: onnx.ModelProto, data: Dataset, index: np.ndarray,
    score: Callable[[onnx.ModelProto], tuple[float, float]], course: Course, *, seed: int,
    progress: Progress = lambda _done, _total, _note: None, checkpoint: Path | None = None,
) -> tuple[onnx.ModelProto, Standing]:  # fmt: skip
    """Return the cut model with weights trained towards the original's outputs, and how the training went.

    Args:
        original: The model that was cut.
        cut: What is left of it, its constants in initializers.
        data: Samples.
        index: Which of them to train on.
        score: Score and worth of a model on samples that are not among these; the score never falls, the best worth is kept.
        course: How to train.
        seed: Of order and augmentation.
        progress: Told the epochs done, their number, and how it stands.
        checkpoint: A file in which the state is kept from epoch to epoch, and from which it is gone on.

    Raises:
        ModelError: torch has no reading of the graph.

    """
    distiller = _distiller(original, cut, data, index, course, seed)
    found, standing = distiller.train(lambda values: score(with_values(cut, values)), progress, checkpoint)
    return with_values(cut, found) if standing.best_epoch else cut, standing


def repeated(
    original: Model, cut: onnx.ModelProto, data: Dataset, index: np.ndarray, course: Course, replay: Replay, *, seed: int,
    progress: Progress = lambda _done, _total, _note: None,
) -> onnx.ModelProto:  # fmt: skip
    """Return what `recovered` gave, from what is known of that training."""
    return with_values(cut, _distiller(original, cut, data, index, course, seed).repeat(replay, progress))


def _distiller(
    original: Model, cut: onnx.ModelProto, data: Dataset, index: np.ndarray, course: Course, seed: int
) -> Distiller:
    student, teacher = (onnx.ModelProto.FromString(m.SerializeToString()) for m in (cut, original.proto))
    for proto in (student, teacher):
        free_batch(proto, original)
    del teacher.graph.value_info[:]
    return Distiller(student, teacher, data, index, course, seed=seed, where=original.source)


def with_values(proto: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy with other contents in some initializers."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            new = numpy_helper.from_array(values[tensor.name], tensor.name)
            new.doc_string = tensor.doc_string
            tensor.CopyFrom(new)
    return result
