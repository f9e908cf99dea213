"""Label-free distillation: the cut network is trained to answer what the original answers, on the same samples.

Weights start where the refit left them, norms keep the statistics that they have, and what is returned is never worse than the
start: after every epoch the weights are judged on samples that nothing is trained on, and the best ones are kept.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  its usual name

from onnx_amc.archive import ArchiveError, read_arrays
from onnx_amc.errors import ModelError
from onnx_amc.files import whole
from onnx_amc.recover.course import (
    Course,
    Judge,
    Progress,
    Replay,
    Standing,
    Values,
    augmented,
    channels_axis,
    one_cycle,
)
from onnx_amc.recover.dream import log_shares
from onnx_amc.recover.hints import Hint
from onnx_amc.recover.layout import STILL, MeanSquare, by_pixel, coarse_products, one_thread, variance
from onnx_amc.recover.reading import WITHOUT, Reading, in_onnxruntime
from onnx_amc.run.crew import usable_cores
from onnx_amc.run.data import Dataset
from onnx_amc.run.metrics import shown
from onnx_amc.run.samples import spread

Teacher = Callable[[Mapping[str, np.ndarray]], dict[str, Tensor]]
"""What goes in -> the original's outputs and the tensors inside that are looked at."""

PROBE = 3
"""Steps that are taken and forgotten, to see how long one takes."""

LOWEST, HIGHEST, RAMP = 1e-4, 0.1, 60
"""Learning rates that are tried to see where the loss blows up, in so many steps."""

BLOWN_UP = 1.25
"""The loss has blown up when it is so many times what it was at best."""

BELOW = 3.0
"""So many times below that, a peak rate is right."""

SHARDS, PIECE = 4, 2**18
"""Parts, at most, of a step's samples whose gradients are taken side by side, and numbers that go into one at least, if there are
two. How many there are does not depend on the cores, so that the sum is the same on any number of them. Threads within torch's
operators give a small network nothing, and small parts stay in the cache."""

ROUNDING = 1e-3
"""Squared error, relative to the variance of the original's answers, that coarse products may add: a fiftieth of what a training
leaves."""

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW knows of a weight."""

SAMPLED = 256
"""Samples by which the size of the original's outputs is judged."""

SHORTEST = 4
"""Epochs at least; where time allows of fewer passes over the samples than this, an epoch is a part of them."""


class Distiller:
    """Trains a cut network towards the original.

    Args:
        student: The cut graph, of free batch.
        teacher: The original graph, of free batch.
        data: Samples.
        index: Which samples to train on.
        course: How.
        hints: Tensors inside both that the student is held to as well.
        seed: Of order, shifts and flips.
        where: What to call the model in messages.
        thinned: Initializers whose zeros stay zeros.
        copies: Sets of initializers that stay equal.

    Raises:
        ModelError: torch has no reading of the graph, or nothing in it to train.

    """

    def __init__(
        self, student: onnx.ModelProto, teacher: onnx.ModelProto, data: Dataset, index: np.ndarray, course: Course,
        hints: Sequence[Hint] = (), *, seed: int = 0, where: str = "model", thinned: Collection[str] = (),
        copies: Collection[Collection[str]] = (),
    ) -> None:  # fmt: skip
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.reading = Reading(student, where, copies).to(self.device)
        if not self.reading.weights:
            raise ModelError("it has no float32 weight that torch could train", where=where, fix=WITHOUT)
        for weight in self.reading.parameters():
            weight.data = by_pixel(weight.data)
        self.alive = [(weight, weight.detach() != 0) for name, weight in self.reading.named() if name in thinned]
        self.hints = {hint.name: hint for hint in hints}
        self.outputs = [o.name for o in teacher.graph.output]
        teacher.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in self.hints)
        self.teacher = (
            self._in_torch(teacher, where) if self.device.type == "cuda" else self._in_onnxruntime(teacher, where)
        )
        self.data, self.index, self.course, self.where, self.seed = data, index, course, where, seed
        self.images = [spec.name for spec in data.inputs if channels_axis(spec.shape) is not None]
        self.optimizer = torch.optim.AdamW(self.reading.parameters(), weight_decay=course.decay)
        cores = usable_cores() if self.device.type == "cpu" else 1
        self.pool = ThreadPoolExecutor(min(cores, SHARDS), "onnx-amc-train")
        facts = [
            student.SerializeToString(deterministic=True),
            repr((course, seed, index.tolist(), sorted(thinned), *copies)).encode(),
        ]
        first = data.batch(index[:2])
        self.reading.hold(student, first, self._sent(first))
        self._print = hashlib.sha256(b"".join(facts)).hexdigest()
        self.coarse = self.device.type == "cpu" and coarse_products() and self._bears_rounding()

    @one_thread()
    def train(
        self, judge: Judge, progress: Progress = lambda _done, _total, _note: None, checkpoint: Path | None = None
    ) -> tuple[Values, Standing]:
        """Return the best weights seen, by the judge, and how they came about; those of the start where none are better.

        Args:
            judge: Of weights.
            progress: Told after every epoch.
            checkpoint: Where the state is written after every epoch, and gone on from if it is there.

        """
        standing, found = self._resumed(checkpoint) or self._begun(judge)
        while left := self._left(standing):
            began, done = time.monotonic(), len(standing.shares)
            last = standing.shares[-1] if done else 0.0
            share = last + (1.0 - last) / left
            loss = self._epoch(done, standing.steps, standing.rate, last, share)
            standing.shares.append(share)
            standing.diverged = not math.isfinite(loss)
            score = (-math.inf, -math.inf) if standing.diverged else judge(self.reading.trained())
            if score[0] >= standing.before[0] and score[1] > standing.best[1]:
                standing.best, standing.best_epoch, found = score, done + 1, self._copied()
            standing.held.append(score[0])
            standing.seconds += time.monotonic() - began
            self._save(checkpoint, standing, found)
            held, best, before = (shown(s) for s in (score[0], standing.best[0], standing.before[0]))
            note = f"loss {loss:.4f}, held-out {held}, best {best}, before {before}"
            progress(done + 1, done + 1 + self._left(standing), note)
        return found, standing

    @one_thread()
    def repeat(self, replay: Replay, progress: Progress = lambda _done, _total, _note: None) -> Values:
        """Return the weights that a training found, by training in the same way up to where they were found."""
        for number, (start, end) in enumerate(pairwise((0.0, *replay.shares))):
            loss = self._epoch(number, replay.steps, replay.rate, start, end)
            progress(number + 1, len(replay.shares), f"loss {loss:.4f}")
        return self._copied()

    def _begun(self, judge: Judge) -> tuple[Standing, Values]:
        began = time.monotonic()
        before = judge(self.reading.trained())
        judged = time.monotonic() - began
        rate = self.course.rate or self._suited_rate()
        steps = -(-len(self.index) // self.course.batch)
        if self.course.minutes is not None:
            afforded = (60 * self.course.minutes - SHORTEST * judged) / self._seconds_of_a_step()
            steps = min(steps, max(1, int(afforded / SHORTEST)))
        return Standing(steps, rate, before, before, prelude=time.monotonic() - began), self._copied()

    def _left(self, standing: Standing) -> int:
        """How many epochs are still to come, as far as can be told now."""
        done = len(standing.shares)
        if standing.diverged or (done and standing.shares[-1] >= 1.0 - 1e-9):
            return 0
        left = max(1, self.course.epochs - done)
        if self.course.minutes is None:
            return left
        each = standing.seconds / done if done else self._seconds_of_a_step() * standing.steps
        return min(left, max(1, int((60 * self.course.minutes - standing.prelude - standing.seconds) / each)))

    def _seconds_of_a_step(self) -> float:
        """Wall time of a step, by the fastest of a few that change nothing."""
        taken = []
        for _ in range(PROBE):
            began = time.monotonic()
            self._gradients(self.index[: self.course.batch], np.random.default_rng(0), self.course.hints)
            taken.append(time.monotonic() - began)
        self.optimizer.zero_grad(set_to_none=True)
        return min(taken)

    def _copied(self) -> Values:
        return {name: value.copy() for name, value in self.reading.trained().items()}

    def _suited_rate(self) -> float:
        """A fraction of the learning rate at which the loss blows up, by a trial in which it grows from step to step.

        The weights are then what they were. After L. Smith, Cyclical Learning Rates for Training Neural Networks, 2017.
        """
        start = [weight.detach().clone() for weight in self.reading.parameters()]
        trial = torch.optim.AdamW(self.reading.parameters())
        rng, rate, smooth, least = np.random.default_rng([self.seed, len(self.index)]), LOWEST, 0.0, math.inf
        for step in range(RAMP):
            rate = LOWEST * (HIGHEST / LOWEST) ** (step / (RAMP - 1))
            part = rng.choice(self.index, min(self.course.batch, len(self.index)), replace=False)
            loss = self._stepped(trial, rate, part, rng, self.course.hints)
            smooth = loss if step == 0 else 0.7 * smooth + 0.3 * loss
            least = min(least, smooth)
            if not smooth <= BLOWN_UP * least:
                break
        with torch.no_grad():
            for weight, value in zip(self.reading.parameters(), start, strict=True):
                weight.copy_(value)
        return rate / BELOW

    def _epoch(self, number: int, steps: int, rate: float, start: float, end: float) -> float:
        """Train on a new order of the samples between two shares of the schedule, and return the mean loss."""
        rng = np.random.default_rng([self.seed, number])
        order, total = rng.permutation(self.index), 0.0
        for step in range(steps):
            part = order[step * self.course.batch : (step + 1) * self.course.batch]
            share = start + (end - start) * step / steps
            total += self._stepped(self.optimizer, rate * one_cycle(share), part, rng, self.course.hints_at(share))
            if not math.isfinite(total):
                break
        return total / steps

    def _stepped(
        self, optimizer: torch.optim.Optimizer, rate: float, part: np.ndarray, rng: np.random.Generator, hints: float
    ) -> float:
        """Take one step on some samples, the hints counting for so much, and return the loss before it."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradients(part, rng, hints)
        for weight, alive in self.alive:
            if weight.grad is not None:
                weight.grad *= alive
        torch.nn.utils.clip_grad_norm_(self.reading.parameters(), self.course.clip)
        optimizer.step()
        return loss

    def _gradients(self, part: np.ndarray, rng: np.random.Generator, hints: float) -> float:
        """Leave the gradients of the mean loss of some samples at the weights, and return the loss."""
        feed = {
            name: augmented(value, self.course, rng) if name in self.images else value
            for name, value in self.data.batch(part).items()
        }
        weights = list(self.reading.parameters())

        def work(places: np.ndarray) -> tuple[float, Sequence[Tensor | None]]:
            mine = {name: value[places] if value.ndim else value for name, value in feed.items()}  # scalars are shared
            loss = self._loss_of(mine, part[places], hints)
            loss = loss * (len(places) / len(part))
            return float(loss.detach()), torch.autograd.grad(loss, weights, allow_unused=True)

        self.powers  # noqa: B018  computed once, not by every thread at once
        losses, gradients = zip(*self.pool.map(work, self._shards(len(part), feed)), strict=True)
        for weight, *found in zip(weights, *gradients, strict=True):
            known = [g for g in found if g is not None]
            weight.grad = functools.reduce(torch.add, known) if known else None
        return math.fsum(losses)

    def _shards(self, samples: int, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Which of a step's samples go together."""
        wanted = min(SHARDS, max(2, sum(value.size for value in feed.values()) // PIECE), samples)
        return np.array_split(np.arange(samples), wanted if self.device.type == "cpu" else 1)

    def _loss_of(self, feed: Mapping[str, np.ndarray], part: np.ndarray, hints: float) -> Tensor:
        """The loss on samples that have been read.

        Args:
            feed: What goes in.
            part: Which samples these are.
            hints: What the mean error of the tensors inside counts for.

        """
        goals = self._answers(feed)
        found = self._computed(self._sent(feed), coarse=self.coarse)
        loss = torch.zeros((), device=self.device)
        for name, goal in goals.items():
            weight = hints / len(self.hints) if name in self.hints else 1.0
            loss = loss + weight * self._gap(name, found[name], goal)
        if self.course.labels and self.data.labels is not None:
            labels = torch.from_numpy(self.data.labels[part]).to(self.device)
            loss = loss + self.course.labels * F.nll_loss(log_shares(found[self.outputs[0]]), labels)
        return loss

    def _computed(self, feed: Mapping[str, Tensor], *, coarse: bool) -> dict[str, Tensor]:
        """What the cut network has of its outputs and of the tensors inside, products in bfloat16 if they may be coarse."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=coarse):
            return self.reading(feed, self.hints)  # type: ignore[no-any-return]

    @one_thread()
    def _bears_rounding(self) -> bool:
        """Whether the cut network, as it was given, answers much the same with products in bfloat16."""
        feed = self._sent(self.data.batch(self.index[: self.course.batch]))
        with torch.no_grad():
            exact = self._computed(feed, coarse=False)
            try:
                found = self._computed(feed, coarse=True)
            except ModelError:  # an operator that wants all its inputs of one type
                return False
        floats = [name for name, value in exact.items() if value.is_floating_point()]
        return all(float(self._gap(name, found[name], exact[name])) < ROUNDING for name in floats)

    def _answers(self, feed: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The original's float outputs, and what the cut network has of the tensors inside."""
        found = self.teacher(feed)
        found |= {name: hint.of(found[name]) for name, hint in self.hints.items()}
        return {name: value for name, value in found.items() if value.is_floating_point()}

    def _in_onnxruntime(self, proto: onnx.ModelProto, where: str) -> Teacher:
        """The original as onnxruntime computes it: the faster one on a CPU."""
        names = [o.name for o in proto.graph.output]
        computed = in_onnxruntime(proto, names, where, threads=1)
        return lambda feed: {n: by_pixel(torch.from_numpy(v)) for n, v in zip(names, computed(feed), strict=True)}

    def _in_torch(self, proto: onnx.ModelProto, where: str) -> Teacher:
        """The original as torch computes it, where the cut network is trained."""
        reading = Reading(proto, where).to(self.device)

        def answers(feed: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
            with torch.no_grad():
                return reading(self._sent(feed))  # type: ignore[no-any-return]

        return answers

    def _sent(self, feed: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {name: by_pixel(torch.from_numpy(value).to(self.device)) for name, value in feed.items()}

    @cached_property
    def powers(self) -> dict[str, float]:
        """Variance of what the original answers from sample to sample, by name."""
        few = spread(self.index, SAMPLED)
        found: dict[str, list[float]] = {}
        for part in np.array_split(few, -(-len(few) // self.course.batch)):
            for name, value in self._answers(self.data.batch(part)).items():
                found.setdefault(name, []).append(variance(value))
        return {name: float(np.mean(values)) or STILL for name, values in found.items()}

    def _save(self, path: Path | None, standing: Standing, found: Values) -> None:
        """Write all that is needed to go on, beside its place first: an interrupt leaves the state of the epoch before."""
        if path is None:
            return
        arrays = {"state": np.array(json.dumps({"print": self._print, **asdict(standing)}))}
        state = self.optimizer.state
        for i, (name, weight) in enumerate(self.reading.named()):
            arrays |= {f"now{i}": weight.detach().cpu().numpy(), f"best{i}": found[name]}
            arrays |= {f"{key}{i}": value.cpu().numpy() for key, value in state.get(weight, {}).items()}
        with whole(path) as beside, beside.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def _resumed(self, path: Path | None) -> tuple[Standing, Values] | None:
        """What `_save` wrote, if it is of this very training and whole."""
        if path is None or not path.is_file():
            return None
        try:
            arrays = read_arrays(path)
            known = json.loads(str(arrays["state"]))
            if known.pop("print") != self._print:
                return None
            standing = Standing(**known)
            standing.before, standing.best = tuple(known["before"]), tuple(known["best"])
            named = list(self.reading.named())
            found = {name: arrays[f"best{i}"] for i, (name, _) in enumerate(named)}
            values = [torch.from_numpy(arrays[f"now{i}"]).view(w.shape) for i, (_, w) in enumerate(named)]
            moments = [
                {k: torch.from_numpy(arrays[f"{k}{i}"]) for k in MOMENTS if f"{k}{i}" in arrays}
                for i in range(len(named))
            ]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ArchiveError):
            return None
        for (_, weight), value, moment in zip(named, values, moments, strict=True):
            with torch.no_grad():
                weight.copy_(value)
            if moment:  # AdamW keeps none of a weight that no gradient reaches
                self.optimizer.state[weight] = {k: m if k == "step" else m.to(weight.device) for k, m in moment.items()}
        return standing, found

    def _gap(self, name: str, found: Tensor, goal: Tensor) -> Tensor:
        """Squared error relative to the variance of the original's tensor."""
        error: Tensor = MeanSquare.apply(found, goal.to(self.device))  # type: ignore[no-untyped-call]
        return error / self.powers[name]
