"""The smallest network that stays within a drop of the score (AMC section 3.3, accuracy-guaranteed compression)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from scipy.special import stdtrit

from onnx_amc.compression import SHARED, Compression
from onnx_amc.config import Budget
from onnx_amc.delivery import Result
from onnx_amc.details import tried_json
from onnx_amc.errors import BudgetError
from onnx_amc.run.score import Score, Scorer
from onnx_amc.search.loop import CLOSED

HALVINGS = 6
"""Steps of the bisection by which the smallest plan in closed form is found: to a hundredth of the original."""

STEP = 0.95
"""What the search is to save from round to round, as long as that holds."""

ROUNDS = 3
"""Rounds of the search, between which its episodes are shared out."""

SHRINK = 0.7
"""Where training follows, the first step below what holds without: further than a training mostly makes up for, so that what is
looked for lies between."""

TRAININGS = 3
"""Networks that are trained at most."""

MARGIN = 0.1
"""Share of what lies between a ratio that holds and one that does not by which the next one keeps away from either."""

CONFIDENCE = 0.95

ROUNDING = 1e-9
"""Points that a difference of two scores may be off by."""


@dataclass(frozen=True)
class Drop:
    """What a network loses against the original.

    Args:
        points: Of the score, in hundredths.
        low: Lower end of the confidence interval.
        high: Its upper end.
        samples: By which it was measured.

    """

    points: float
    low: float
    high: float
    samples: int

    def within(self, allowed: float) -> bool:
        """Whether that is no more than so many points; a difference of two scores is not exact."""
        return self.points <= allowed + ROUNDING

    def __str__(self) -> str:
        """As a reader wants it."""
        return f"{self.points:+.2f} points lost ({self.low:+.2f} to {self.high:+.2f})"


def drop_of(found: Score, original: Score, samples: int, unit: float = 1.0) -> Drop:
    """The drop, with an interval from the paired differences on the parts of the samples (Student's t).

    Of a share it is no narrower than what samples without a difference leave open: three of them in a hundred per cent (the rule
    of three).

    Args:
        found: Of the compressed network.
        original: Of the original.
        samples: By which both were scored.
        unit: Of the metric, as in `run.metrics.scale_of`: 1 for shares; a decibel is a point.

    """
    each = 100 * (np.array(original.parts[::2]) - np.array(found.parts[::2])) / unit
    points = 100 * (original.value - found.value) / unit
    if len(each) < 2:
        return Drop(points, -np.inf, np.inf, samples)
    reach = float(stdtrit(len(each) - 1, (1 + CONFIDENCE) / 2) * each.std(ddof=1) / np.sqrt(len(each)))
    reach = max(reach, 300 / samples) if unit == 1.0 else reach
    return Drop(points, points - reach, points + reach, samples)


def between(held: tuple[float, float], missed: tuple[float, float], allowed: float) -> float:
    """The ratio between one that holds and one that does not at which the drop should be what is allowed.

    On the straight line between the two: drops grow ever faster, so the true curve lies below it.

    Args:
        held: A ratio and its drop.
        missed: The same of a smaller ratio.
        allowed: The drop, no less than that of `held` and less than that of `missed`.

    """
    share = (missed[1] - allowed) / (missed[1] - held[1])
    return missed[0] + float(np.clip(share, MARGIN, 1 - MARGIN)) * (held[0] - missed[0])


class Guarantee:
    """Looks for the smallest network whose score on held-out samples has dropped by no more than was allowed.

    First the smallest plan in closed form is found by bisection, then the search is asked for ever smaller ones. Where training
    follows, networks below that are trained and held to the drop afterwards.

    Args:
        first: A run whose budget's kind says what is to become small.
        allowed: The drop, in hundredths of the score.

    """

    def __init__(self, first: Compression, allowed: float) -> None:
        self.first, self.allowed = first, allowed
        self.judge = _judge(first)
        self.runs: list[Compression] = []
        self.trainings: list[tuple[float, float]] = []
        space, whole = first.search.space, first.units.wholes[first.settings.budget.kind]
        self.least = min(1.0, float(np.nextafter(space.price(space.smallest) / max(whole, 1), 2)))
        self.best: tuple[float, Compression, np.ndarray, Drop] | None = None

    def result(self) -> Result:
        """Find it, and deliver it as any other run does."""
        first, kind = self.first, self.first.settings.budget.kind
        if self.judge is None or not len(first.search.space):
            return self._told(first.deliver(first.search.space.full), Drop(0.0, 0.0, 0.0, 0), None)
        even = ratio = self._smallest(lambda ratio: self._closed(ratio, "uniform"))
        asked = first.settings.policy if first.settings.policy in CLOSED else None
        policy = asked or ("knapsack" if first.settings.refit else "uniform")
        if policy != "uniform":
            if asked:
                self._forget()
            ratio = self._smallest(lambda ratio: self._closed(ratio, policy))
        if asked is None:
            ratio = ratio if self.best is None else self.best[0]
            for _ in range(ROUNDS):
                if ratio * STEP < self.least or not self._searched(ratio * STEP):
                    break
                ratio *= STEP
        if first.trained is not None:
            trained = self._trained(ratio)
            if trained is not None:
                return self._told(*trained, even)
        if self.best is None:
            whole = first.again(budget=Budget(kind, 1.0), recover=False)
            return self._told(whole.deliver(whole.search.space.full), Drop(0.0, 0.0, 0.0, len(self.judge.index)), even)
        _, run, counts, drop = self.best
        return self._told(run.deliver(counts), drop, even)

    def _smallest(self, holds: Callable[[float], bool]) -> float:
        """The smallest ratio that holds, by bisection; 1 where none does."""
        low, high = self.least, 1.0
        for step in range(HALVINGS):
            self.first.listener.stage(f"bisection {step + 1} of {HALVINGS}", None)
            middle = (low + high) / 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        return high

    def _closed(self, ratio: float, policy: str) -> bool:
        return self._holds(ratio, {"policy": policy, "agent": None, "save_agent": None, "tensorboard": None})

    def _searched(self, ratio: float) -> bool:
        episodes = max(1, self.first.settings.episodes // ROUNDS)
        reward = self.first.settings.reward
        reward = self.first.settings.budget.kind if reward == "error" else reward
        return self._holds(ratio, {"episodes": episodes, "reward": reward})

    def _run(self, ratio: float, changes: Mapping[str, Any]) -> Compression:
        run = self.first.again(budget=Budget(self.first.settings.budget.kind, ratio), **changes)
        self.runs.append(run)
        return run

    def _holds(self, ratio: float, changes: Mapping[str, Any]) -> bool:
        """Whether the best plan of a run with other settings stays within the drop; the smallest that does is kept in mind."""
        try:
            run = self._run(ratio, {"recover": False, **changes})
            counts = run.choose()
        except BudgetError as error:  # the levels may not go so far, nor the model's time to where the table says
            policy = changes.get("policy", self.first.settings.policy)
            self.first.listener.note(f"{ratio:.1%} by {policy}: out of reach ({error.what})")
            return False
        drop = self._drop(run.search.model_of(counts))
        self.first.listener.note(f"{ratio:.1%} by {run.settings.policy}: {drop}")
        holds = drop.within(self.allowed)
        if holds and (self.best is None or ratio < self.best[0]):
            self._forget()
            self.best = ratio, run, counts, drop
        else:
            run.search.ready = None
        return holds

    def _forget(self) -> None:
        """Give up the best plan so far, and the model of it that was held."""
        if self.best is not None:
            self.best[1].search.ready = None
        self.best = None

    def _drop(self, model: onnx.ModelProto) -> Drop:
        if self.judge is None:
            raise RuntimeError("a run without data measures no drop")
        return drop_of(self.judge(model), self.judge.original, len(self.judge.index), self.judge.scale[1])

    def _trained(self, ratio: float) -> tuple[Result, Drop] | None:
        """The smallest network that is within the drop after training; None where none below the given ratio is.

        As long as none is, the whole network stands for one that is, but what is asked for stays in the lower half of the gap.
        """
        best: tuple[Result, Drop] | None = None
        held, missed, wanted = (1.0, 0.0), (self.least, np.inf), max(ratio * SHRINK, self.least)
        for _ in range(TRAININGS):
            if not missed[0] <= wanted < ratio:
                break
            try:
                run = self._run(wanted, {})
                result = run.deliver(run.choose())
            except BudgetError as error:
                self.first.listener.note(f"{wanted:.1%}, trained: out of reach ({error.what})")
                missed, wanted = (wanted, np.inf), (ratio + wanted) / 2
                continue
            drop = self._drop(result.model)
            self.trainings.append((wanted, drop.points))
            self.first.listener.note(f"{wanted:.1%}, trained: {drop}")
            if drop.within(self.allowed):
                best, held, ratio = (result, drop), (wanted, drop.points), wanted
            else:
                missed = wanted, drop.points
            if missed[1] == np.inf:
                wanted = max(ratio * SHRINK, self.least)
            else:
                wanted = between(held, missed, self.allowed)
                wanted = wanted if best else min(wanted, (ratio + missed[0]) / 2)
        return best

    def _told(self, result: Result, drop: Drop, even: float | None) -> Result:
        """The result, its record saying what was asked for and what holds."""
        told: dict[str, Any] = {
            "allowed": self.allowed,
            "points": drop.points,
            "interval": [drop.low, drop.high] if np.isfinite(drop.low) else None,
            "confidence": CONFIDENCE,
            "samples": drop.samples,
            "uniform": even,
            "trained": [{"ratio": ratio, "points": points} for ratio, points in self.trainings],
        }
        others = [r.search for r in self.runs if r.search.journal.trials is not result.trials]
        elsewhere = [tried for s in others for tried in tried_json(s, s.journal.trials)]
        asked = self.first.settings
        record = result.record | {
            "policy": asked.policy,
            "episodes": 0 if asked.policy in CLOSED else asked.episodes,
            "max_drop": told,
            "seconds": self._seconds(result.record["seconds"]),
        }
        return replace(result, record=record, details=result.details | {"elsewhere": elsewhere})

    def _seconds(self, own: Mapping[str, float]) -> dict[str, float]:
        """What all runs have taken together; what they share is counted once."""
        each: list[Mapping[str, float]] = [run.seconds for run in self.runs]
        each = each or [own]
        found = {name: own[name] if name in SHARED else sum(s[name] for s in each) for name in own}
        return found | {"int8": own["int8"], "total": time.perf_counter() - self.first.started}


def _judge(first: Compression) -> Scorer | None:
    """Scores on the held-out samples that the search does not see, if they are at least half of all; else on all."""
    scorer, trial = first.scorer, first.trial
    if scorer is None or trial is None:
        return None
    rest = np.setdiff1d(scorer.index, trial.index)
    if 2 * len(rest) < len(scorer.index):
        return scorer
    return scorer.on(rest)
