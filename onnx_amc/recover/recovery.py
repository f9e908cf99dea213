"""Distillation of a cut model, from graph to graph: only the contents of initializers change."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_amc.graph.load import Model
from onnx_amc.recover.distil import Course, Distiller, Progress
from onnx_amc.run.capture import free_batch
from onnx_amc.run.data import Dataset


def recovered(
    original: Model, cut: onnx.ModelProto, data: Dataset, index: np.ndarray, score: Callable[[onnx.ModelProto], float],
    course: Course, *, seed: int, progress: Progress = lambda _done, _total, _note: None,
) -> onnx.ModelProto:  # fmt: skip
    """Return the cut model with weights trained towards the original's outputs, never worse than before by the score.

    Args:
        original: The model that was cut.
        cut: What is left of it, its constants in initializers.
        data: Samples.
        index: Which of them to train on.
        score: How good a model is on samples that are not among these; higher is better.
        course: How to train.
        seed: Of order and augmentation.
        progress: Told the epochs done, their number, and how it stands.

    Raises:
        ModelError: torch has no reading of the graph.

    """
    student, teacher = (onnx.ModelProto.FromString(m.SerializeToString()) for m in (cut, original.proto))
    for proto in (student, teacher):
        free_batch(proto, original)
    del teacher.graph.value_info[:]
    distiller = Distiller(student, teacher, data, index, course, seed=seed, where=original.source)
    found = distiller.train(lambda values: score(with_values(cut, values)), progress)
    return with_values(cut, found)


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
