"""Recovery within a run: which samples are trained on and which only judge, and how a plan tells it to who replays it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx

from onnx_amc.config import Settings
from onnx_amc.errors import ModelError, OptionError, PlanError
from onnx_amc.graph.load import Model
from onnx_amc.listener import Listener
from onnx_amc.recover.course import Course, Progress, Replay, Task
from onnx_amc.run.data import Dataset

ENOUGH = 300
"""Samples from which on a cut network is trained unless that was refused."""

JUDGES = 200
"""Samples that judge instead of being trained on, at least, if they are no more than half."""

HELD_OUT = 0.2
"""Share of the samples that does so where there are many."""

VISITS = 250_000
"""Samples that a training sees, counted as often as it sees them, unless told otherwise."""

MOST_EPOCHS = 50

LONG, LARGER = 1_000_000, 128
"""A training that sees so many samples takes so many of them at a step: there are steps enough, and larger ones are faster."""


@dataclass(frozen=True)
class Parts:
    """Which samples do what.

    Args:
        calibration: Moments and refits are taken from them.
        reward: Plans, and the weights of each epoch, are scored on them and on nothing else.
        trained: What recovery trains on: all but the reward part. None where there is no recovery.

    """

    calibration: np.ndarray
    reward: np.ndarray
    trained: np.ndarray | None


def parts_of(data: Dataset | None, settings: Settings, model: Model | None = None) -> Parts:
    """Split the samples; where most are to be trained on, fewer are left to judge.

    Args:
        data: Samples.
        settings: Of the run.
        model: What they go into; None where its outputs are not to be held against the labels.

    Raises:
        OptionError: Labels are to count in the training, but are no class numbers, or none of the model's classes.

    """
    if data is None:
        return Parts(np.zeros(0, np.int64), np.zeros(0, np.int64), None)
    if settings.recover_labels:
        _check_labels(data, model)
    held = min(settings.judged, max(JUDGES, int(HELD_OUT * len(data))), len(data) // 2)
    wanted = settings.recover
    if wanted is None:
        wanted = settings.refit and not data.synthetic and len(data) - held >= ENOUGH
    calibration, reward = data.split(settings.seed, settings.calibration, held if wanted else settings.judged)
    return Parts(calibration, reward, np.setdiff1d(np.arange(len(data)), reward) if wanted else None)


def untrained(data: Dataset, settings: Settings, parts: Parts) -> list[str]:
    """A warning where it was said how to train, and nothing will be; else none."""
    asked = ", ".join(settings.asked_of_training)
    if parts.trained is not None or not asked:
        return []
    there = f"{len(data)} samples, {'made up' if data.synthetic else 'too few'}"
    return [
        f"{asked} is of no effect: there are {there}, and without --recover it takes {ENOUGH + JUDGES} real ones to train"
    ]


def _check_labels(data: Dataset, model: Model | None) -> None:
    """Refuse labels that could not count in the training."""
    if data.class_numbers is None:
        there = (
            "there are no labels" if data.labels is None else f"the labels are {data.labels.dtype} {data.labels.shape}"
        )
        raise _no_labels(f"it takes class numbers (N,), {there}")
    shape = None if model is None else model.shapes.get(model.proto.graph.output[0].name)
    if shape is None:
        return
    classes = shape[2] if len(shape) == 3 and shape[2] > 1 else math.prod(shape[1:])  # as `log_shares` reads them
    if classes < 2:
        raise _no_labels(f"the first output is ({', '.join(['N', *map(str, shape[1:])])}): it tells no classes apart")
    low, high = int(data.class_numbers.min()), int(data.class_numbers.max())
    if low < 0 or high >= classes:
        raise _no_labels(f"the labels go from {low} to {high}, the model's {classes} classes from 0 to {classes - 1}")


def _no_labels(what: str) -> OptionError:
    return OptionError(what, where="--recover-labels", fix="leave it out: the training follows the original's outputs")


def course_of(settings: Settings, samples: int) -> Course:
    """How long, and by what, a network is trained."""
    epochs = settings.recover_epochs or int(np.clip(VISITS // max(samples, 1), 1, MOST_EPOCHS))
    return Course(
        epochs=epochs,
        minutes=settings.recover_minutes,
        batch=Course.batch if epochs * samples < LONG else LARGER,
        flip=settings.recover_flip,
        labels=1.0 if settings.recover_labels else 0.0,
    )


def train(
    task: Task, score: Callable[[onnx.ModelProto], tuple[float, float]], listener: Listener, checkpoint: Path | None
) -> tuple[onnx.ModelProto, dict[str, Any], dict[str, Any]]:
    """Train a cut network, if torch can read it.

    Returns:
        The network, what the run's record says of the training, and what the plan does; both empty where there was none.

    """
    from onnx_amc.recover.recovery import recovered  # noqa: PLC0415  torch takes seconds to import

    listener.stage("recover", task.course.epochs)
    try:
        model, standing = recovered(task, score, _told(listener), checkpoint)
    except ModelError as error:
        listener.note(f"no recovery: {error.what}")
        return task.cut, {}, {}
    told = {"samples": len(task.index), "epochs": len(standing.shares), "best_epoch": standing.best_epoch,
            "before": standing.before[0], "after": standing.best[0],
            "held_out": [score if math.isfinite(score) else None for score in standing.held]}  # fmt: skip
    known = {"course": asdict(task.course), **asdict(standing.replay)} if standing.best_epoch else {}
    return model, told, known


def replay_of(known: Mapping[str, Any]) -> tuple[Course, Replay]:
    """What a plan says of a training.

    Raises:
        PlanError: It cannot be read.

    """
    try:
        course = Course(**known["course"])
        replay = Replay(
            _number(known["steps"], 1, MOST_STEPS),
            float(_number(known["rate"], 0.0, 1e6)),
            tuple(float(_number(share, 0.0, 1.0)) for share in known["shares"]),
        )
        for name, (low, high) in BOUNDS.items():
            _number(getattr(course, name), low, high)
        for before, after in pairwise(replay.shares):
            _number(after, before, 1.0)
    except (TypeError, ValueError, KeyError) as error:
        raise PlanError(
            f"its settings of the recovery are damaged: {str(error)[:200]!r}",
            where="plan",
            fix="give a plan written by onnx-amc",
        ) from error
    return course, replay


BOUNDS: dict[str, tuple[float, float]] = {
    "epochs": (1, 10**5), "batch": (1, 2**20), "decay": (0.0, 1e3), "clip": (0.0, 1e9), "shift": (0.0, 1.0),
    "hints": (0.0, 1e9), "labels": (0.0, 1e9),
}  # fmt: skip
"""What the numbers of a training may be."""

MOST_STEPS = 10**7
"""Steps of an epoch, at most."""

Number = TypeVar("Number", int, float)


def _number(value: Any, low: Number, high: Number) -> Number:
    """The value, if it is a number, whole where the least is, and within its bounds."""
    kinds = (int,) if isinstance(low, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise ValueError(f"{str(value)[:60]} is no number from {low} to {high}")
    return value


def train_again(task: Task, replay: Replay, listener: Listener) -> onnx.ModelProto:
    """Train as it was done before."""
    from onnx_amc.recover.recovery import repeated  # noqa: PLC0415  torch takes seconds to import

    listener.stage("recover", len(replay.shares))
    return repeated(task, replay, _told(listener))


def _told(listener: Listener) -> Progress:
    return lambda done, total, note: listener.advance(done, note, total)
