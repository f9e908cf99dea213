"""How a cut network is trained, how far that has come, and what of it has to be known to do it again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_amc.graph.groups import Analysis
from onnx_amc.run.data import Dataset

Values = dict[str, np.ndarray]
Judge = Callable[[Values], tuple[float, float]]
"""Contents of initializers -> how good the network is with them on held-out samples: its score, which must not fall, and its
worth, by which the best is chosen; higher is better."""

Progress = Callable[[int, int, str], None]
"""Told the epochs done, their number, and how it stands."""


@dataclass(frozen=True)
class Course:
    """How to train.

    Args:
        epochs: Passes over the samples, at most.
        minutes: Wall time, at most; the schedule is shortened so that it ends by then. None for no limit.
        batch: Samples per step.
        rate: Peak learning rate of AdamW's one-cycle schedule, in units of each weight's size; None for what suits the network.
        decay: Weight decay.
        clip: Largest norm of the gradient.
        shift: Images are moved by up to this share of their sides, edges repeated.
        flip: Whether images may be mirrored left to right.
        hints: What the mean error of the tensors inside counts for at first, beside the outputs' error.
        labels: What cross-entropy with the labels counts for beside the distillation; 0 looks at no label.

    """

    epochs: int = 30
    minutes: float | None = None
    batch: int = 32
    rate: float | None = None
    decay: float = 1e-4
    clip: float = 1.0
    shift: float = 0.125
    flip: bool = False
    hints: float = 30.0
    labels: float = 0.0

    def hints_at(self, share: float) -> float:
        """What the hints count for after this share of the training.

        Without labels the original is all there is to learn from, to the end. With them it leads at first, and then fades: where it
        is wrong, it would hold the student back.
        """
        return self.hints * (1.0 - share) ** 2 if self.labels else self.hints


@dataclass(frozen=True)
class Task:
    """What is to be trained on what.

    Args:
        analysis: Of the original model.
        kept: The channels that each group keeps.
        cut: What is left of the model, its constants in initializers.
        data: Samples.
        index: Which of them to train on.
        course: How to train.
        seed: Of order and augmentation.
        thinned: Initializers whose zeros stay zeros.

    """

    analysis: Analysis
    kept: Mapping[str, Sequence[int]]
    cut: onnx.ModelProto
    data: Dataset
    index: np.ndarray
    course: Course
    seed: int
    thinned: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Replay:
    """What of a training has to be known, beside its course and seed, to find the same weights again.

    Args:
        steps: Of one epoch.
        rate: Peak learning rate.
        shares: Of the schedule that were through at the end of each epoch, up to where the weights were best.

    """

    steps: int
    rate: float
    shares: tuple[float, ...]


@dataclass
class Standing:
    """How far a training has come: with this and the weights it can be gone on with, and repeated.

    Args:
        steps: Of one epoch.
        rate: Peak learning rate.
        before: Score and worth of the start.
        best: Score and worth of the best so far.
        best_epoch: After which it was reached; 0 is the start.
        shares: Of the learning-rate schedule that were through at the end of each epoch; the last one is 1 when all is done.
        prelude: Wall time before the first epoch, in seconds.
        seconds: Wall time of the epochs so far.
        diverged: Whether the loss was no number in the end.
        held: Score on held-out samples after each epoch.

    """

    steps: int
    rate: float
    before: tuple[float, float]
    best: tuple[float, float]
    best_epoch: int = 0
    shares: list[float] = field(default_factory=list)
    prelude: float = 0.0
    seconds: float = 0.0
    diverged: bool = False
    held: list[float] = field(default_factory=list)

    @property
    def replay(self) -> Replay:
        """What leads to the best weights again."""
        return Replay(self.steps, self.rate, tuple(self.shares[: self.best_epoch]))


def one_cycle(share: float, warm: float = 0.15) -> float:
    """The learning rate, relative to its peak, after this share of the training: up in a straight line, down in a cosine."""
    if share < warm:
        return 0.04 + 0.96 * share / warm
    return 0.5 * (1 + math.cos(math.pi * (share - warm) / (1 - warm)))


def augmented(images: np.ndarray, course: Course, rng: np.random.Generator) -> np.ndarray:
    """Images (N,C,H,W) or (N,H,W,C), each moved by a random offset, and mirrored where that is allowed."""
    first = 2 if channels_axis(images.shape) == 1 else 1
    sides = images.shape[first : first + 2]
    reach = [int(course.shift * n) for n in sides]
    pads = [(0, 0)] * images.ndim
    pads[first], pads[first + 1] = (reach[0], reach[0]), (reach[1], reach[1])
    wide, result = np.pad(images, pads, mode="edge"), np.empty_like(images)
    for i, image in enumerate(wide):
        top, left = (int(rng.integers(2 * r + 1)) for r in reach)
        view = [slice(None)] * image.ndim
        view[first - 1], view[first] = slice(top, top + sides[0]), slice(left, left + sides[1])
        moved = image[tuple(view)]
        result[i] = np.flip(moved, axis=first) if course.flip and rng.random() < 0.5 else moved
    return result


def channels_axis(shape: tuple[int | None, ...]) -> int | None:
    """Which axis of a batch of images holds the colours; None where these are no images."""
    if len(shape) != 4:
        return None
    return next((axis for axis in (1, 3) if shape[axis] in {1, 3, 4}), None)
