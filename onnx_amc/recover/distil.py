"""Label-free distillation: the cut network is trained to answer what the original answers, on the same samples.

Weights start where the refit left them, norms keep the statistics that they have, and what is returned is never worse than the
start: after every epoch the weights are judged on samples that nothing is trained on, and the best ones are kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  its usual name

from onnx_amc.recover.reading import Reading
from onnx_amc.run.data import Dataset
from onnx_amc.run.session import open_session, run_session

Values = dict[str, np.ndarray]
Judge = Callable[[Values], float]
"""Contents of initializers -> how good the network is with them, on held-out samples; higher is better."""

Progress = Callable[[int, int, str], None]
"""Told the epochs done, their number, and how it stands."""


@dataclass(frozen=True)
class Course:
    """How to train.

    Args:
        epochs: Passes over the samples, at most.
        minutes: Wall time, at most; the schedule is shortened so that it ends by then. None for no limit.
        batch: Samples per step.
        rate: Peak learning rate of AdamW's one-cycle schedule.
        decay: Weight decay.
        clip: Largest norm of the gradient.
        shift: Images are moved by up to this share of their sides, edges repeated.
        flip: Whether images may be mirrored left to right.
        labels: What cross-entropy with the labels counts for beside the distillation; 0 looks at no label.

    """

    epochs: int = 30
    minutes: float | None = None
    batch: int = 64
    rate: float = 2e-3
    decay: float = 1e-4
    clip: float = 1.0
    shift: float = 0.125
    flip: bool = False
    labels: float = 0.0


class Distiller:
    """Trains a cut network towards the original.

    Args:
        student: The cut graph, of free batch.
        teacher: The original graph, of free batch.
        data: Samples.
        index: Which samples to train on.
        course: How.
        seed: Of order, shifts and flips.
        where: What to call the model in messages.

    Raises:
        ModelError: torch has no reading of the graph.

    """

    def __init__(
        self, student: onnx.ModelProto, teacher: onnx.ModelProto, data: Dataset, index: np.ndarray, course: Course, *,
        seed: int = 0, where: str = "model",
    ) -> None:  # fmt: skip
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.reading = Reading(student, where).to(self.device)
        self.teacher = open_session(teacher, where=where)
        self.data, self.index, self.course, self.where = data, index, course, where
        self.rng = np.random.default_rng(seed)
        self.images = [spec.name for spec in data.inputs if _channels_axis(spec.shape) is not None]
        weights = list(self.reading.parameters())
        self.optimizer = torch.optim.AdamW(weights, lr=course.rate, weight_decay=course.decay)
        self.powers: dict[str, float] = {}

    def train(self, judge: Judge, progress: Progress = lambda _done, _total, _note: None) -> Values:
        """Return the best weights seen, by the judge; those of the start where none are better."""
        best, found = judge(self.reading.trained()), self._copied()
        began, epochs, done = time.monotonic(), self.course.epochs, 0
        while done < epochs:
            loss = self._epoch(done, epochs)
            done += 1
            if not math.isfinite(loss):
                break
            score = judge(self.reading.trained())
            if score > best:
                best, found = score, self._copied()
            spent = (time.monotonic() - began) / 60
            if self.course.minutes is not None:
                epochs = min(epochs, max(done, int(done * self.course.minutes / spent)))
            progress(done, epochs, f"loss {loss:.4f}, held-out {score:.4f}, best {best:.4f}")
        return found

    def _copied(self) -> Values:
        return {name: value.copy() for name, value in self.reading.trained().items()}

    def _epoch(self, done: int, epochs: int) -> float:
        order = self.rng.permutation(self.index)
        steps = -(-len(order) // self.course.batch)
        total = 0.0
        for step in range(steps):
            share = (done + step / steps) / max(epochs, 1)
            for group in self.optimizer.param_groups:
                group["lr"] = self.course.rate * one_cycle(share)
            total += self._step(order[step * self.course.batch : (step + 1) * self.course.batch])
        return total / steps

    def _step(self, part: np.ndarray) -> float:
        feed = self._moved(self.data.batch(part))
        names = [o.name for o in self.teacher.get_outputs()]
        goals = dict(zip(names, run_session(self.teacher, names, feed, where=self.where), strict=True))
        found = self.reading({name: torch.from_numpy(value).to(self.device) for name, value in feed.items()})
        loss = sum((self._loss(name, found[name], goal) for name, goal in goals.items()), torch.zeros(()))
        if self.course.labels and self.data.labels is not None:
            labels = torch.from_numpy(self.data.labels[part]).to(self.device)
            loss = loss + self.course.labels * F.cross_entropy(found[names[0]], labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.reading.parameters(), self.course.clip)
        self.optimizer.step()
        return float(loss.detach())

    def _loss(self, name: str, found: Tensor, goal: np.ndarray) -> Tensor:
        """Squared error relative to the variance of the original's output."""
        if goal.dtype.kind != "f":
            return torch.zeros((), device=self.device)
        if name not in self.powers:
            self.powers[name] = max(float(np.square(goal - goal.mean(axis=0, keepdims=True)).mean()), 1e-12)
        target = torch.from_numpy(goal).to(self.device)
        return F.mse_loss(found, target) / self.powers[name]

    def _moved(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: augmented(value, self.course, self.rng) if name in self.images else value
            for name, value in feed.items()
        }


def one_cycle(share: float, warm: float = 0.15) -> float:
    """The learning rate, relative to its peak, after this share of the training: up in a straight line, down in a cosine."""
    if share < warm:
        return 0.04 + 0.96 * share / warm
    return 0.5 * (1 + math.cos(math.pi * (share - warm) / (1 - warm)))


def augmented(images: np.ndarray, course: Course, rng: np.random.Generator) -> np.ndarray:
    """Images (N,C,H,W) or (N,H,W,C), each moved by a random offset, and mirrored where that is allowed."""
    first = 2 if _channels_axis(images.shape) == 1 else 1
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


def _channels_axis(shape: tuple[int | None, ...]) -> int | None:
    """Which axis of a batch of images holds the colours; None where these are no images."""
    if len(shape) != 4:
        return None
    return next((axis for axis in (1, 3) if shape[axis] in {1, 3, 4}), None)
