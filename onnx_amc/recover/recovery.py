"""Distillation of a cut model, from graph to graph: only the contents of initializers change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_amc.prune.surgery import copies_of
from onnx_amc.recover.course import Progress, Replay, Standing, Task
from onnx_amc.recover.distil import Distiller
from onnx_amc.recover.hints import hints_of
from onnx_amc.recover.layout import float32_by_default
from onnx_amc.recover.reading import lighten
from onnx_amc.run.capture import free_batch


@float32_by_default()
def recovered(
    task: Task,
    score: Callable[[onnx.ModelProto], tuple[float, float]],
    progress: Progress = lambda _done, _total, _note: None,
    checkpoint: Path | None = None,
) -> tuple[onnx.ModelProto, Standing]:
    """Return the cut model with weights trained towards the original's outputs, and how the training went.

    Args:
        task: What is to be trained.
        score: Score and worth of a model on samples that are not trained on; the score never falls, the best worth is kept.
        progress: Told the epochs done, their number, and how it stands.
        checkpoint: A file in which the state is kept from epoch to epoch, and from which it is gone on.

    Raises:
        ModelError: torch has no reading of the graph.

    """
    found, standing = _distiller(task).train(lambda v: score(with_values(task.cut, v)), progress, checkpoint)
    return with_values(task.cut, found) if standing.best_epoch else task.cut, standing


@float32_by_default()
def repeated(task: Task, replay: Replay, progress: Progress = lambda _done, _total, _note: None) -> onnx.ModelProto:
    """Return what `recovered` gave, from what is known of that training."""
    return with_values(task.cut, _distiller(task).repeat(replay, progress))


def _distiller(task: Task) -> Distiller:
    model = task.analysis.model
    student, teacher = deepcopy(task.cut), deepcopy(model.proto)
    for proto in (student, teacher):
        free_batch(proto, model)
        lighten(proto)
    del teacher.graph.value_info[:]
    hints = hints_of(task.analysis, task.kept) if task.course.hints else []
    return Distiller(
        student, teacher, task.data, task.index, task.course, hints,
        seed=task.seed, where=model.source, thinned=task.thinned, copies=copies_of(task.analysis, task.cut),
    )  # fmt: skip


def with_values(proto: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy with other contents in some initializers."""
    result = deepcopy(proto)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            new = numpy_helper.from_array(values[tensor.name], tensor.name)
            if tensor.HasField("doc_string"):  # one that is set to nothing takes bytes too
                new.doc_string = tensor.doc_string
            tensor.CopyFrom(new)
    return result
