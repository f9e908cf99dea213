"""What was tried in a search, and how good it was found to be."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_amc.search.racing import Bar, bar_of
from onnx_amc.search.reward import Rule
from onnx_amc.search.shaping import SHAPING, weight_of
from onnx_amc.search.space import Space

Evaluate = Callable[[np.ndarray], Sequence[float]]
"""Counts -> score, higher is better, and loss against the original, lower is better; then, if it can tell, the same two for each of
several parts of the samples."""

Later = Callable[[], Sequence[float]]
"""Waits for what an evaluation finds."""

PATIENCE = 20
"""Draws in which a plan that nobody has tried is looked for."""


def key_of(counts: np.ndarray) -> bytes:
    """A plan as a dictionary's key."""
    return counts.astype(np.int64).tobytes()


@dataclass(frozen=True)
class Tried:
    """One evaluated plan.

    Args:
        counts: int (groups,).
        score: Higher is better.
        loss: Of the outputs against the original's, relative; lower is better.
        source: Who proposed it: a baseline's name or the policy's.
        parts: Score and loss on each of several parts of the samples, in turn.
        rule: How good that is, as the search sees it by now.

    """

    counts: np.ndarray
    score: float
    loss: float
    source: str
    parts: tuple[float, ...] = ()
    rule: Rule = field(default_factory=Rule)

    @property
    def key(self) -> bytes:
        """The plan's counts, to be told from others by."""
        return key_of(self.counts)

    @property
    def reward(self) -> float:
        """What the search makes of it."""
        return self.rule(self.score, self.loss, self.counts)

    @property
    def rank(self) -> tuple[bool, float]:
        """To compare by: an estimate stands behind what was scored on all samples, whatever the loss counts for since.

        It is that of few samples, and many are stopped: the best of them is mostly luck.
        """
        return bool(self.parts), self.reward

    @property
    def error(self) -> float:
        """What is missing to a perfect score, and the weighted loss; lower is better, whatever the plan costs."""
        return -self.rule.short(self.score, self.loss)


@dataclass(eq=False)
class Asked:
    """A plan that is being evaluated, and what came of it once that is written down."""

    counts: np.ndarray
    source: str
    tried: Tried | None = None


@dataclass
class Journal:
    """Everything evaluated so far, in the order in which it was asked for; a plan seen before is not evaluated again.

    Args:
        evaluate: What to ask.
        on_trial: Told of every trial.
        rule: How good a plan is.
        begin: Begins an evaluation, where several can be under way.

    """

    evaluate: Evaluate
    on_trial: Callable[[Tried], None] = lambda _tried: None
    trials: list[Tried] = field(default_factory=list)
    seen: dict[bytes, Later] = field(default_factory=dict)
    rule: Rule = field(default_factory=Rule)
    begin: Callable[[np.ndarray], Later] | None = None
    waiting: deque[Asked] = field(default_factory=deque)
    _ranked: tuple[int, Tried | None, float] = (0, None, SHAPING)

    def put(self, counts: np.ndarray, source: str) -> Asked:
        """Begin to score a plan."""
        key, asked = key_of(counts), Asked(counts.copy(), source)
        if key not in self.seen:
            self.seen[key] = self._known(asked.counts) if self.begin is None else self.begin(asked.counts)
        self.waiting.append(asked)
        return asked

    def _known(self, counts: np.ndarray) -> Later:
        found = self.evaluate(counts)
        return lambda: found

    def settle(self, most: int = 0) -> None:
        """Wait until no more than so many plans are being scored, and write down the others, the first asked for first."""
        while len(self.waiting) > most:
            asked = self.waiting.popleft()
            score, loss, *parts = self.seen[key_of(asked.counts)]()
            asked.tried = Tried(asked.counts, score, loss, asked.source, tuple(parts), self.rule)
            self.trials.append(asked.tried)
            self.on_trial(asked.tried)

    def result(self, asked: Asked) -> Tried:
        """Wait for what came of a plan."""
        while asked.tried is None:
            self.settle(len(self.waiting) - 1)
        return asked.tried

    def ask(self, counts: np.ndarray, source: str) -> Tried:
        """Score a plan and write it down."""
        return self.result(self.put(counts, source))

    def knows(self, counts: np.ndarray) -> bool:
        """Whether a plan was evaluated, or is being so."""
        return key_of(counts) in self.seen

    def unseen(self, draw: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the first plan drawn that was not evaluated; the last one drawn where all were."""
        counts = draw()
        for _ in range(PATIENCE):
            if not self.knows(counts):
                break
            counts = draw()
        return counts

    def bars(self, rank: int, looks: Sequence[int]) -> dict[int, Bar]:
        """What a plan must reach on the first so many parts of the samples, if it is to be among so many best ones."""
        whole = [t for t in self.distinct if t.parts]
        level = sorted((t.reward for t in whole), reverse=True)[:rank]
        scores, parts = [(t.score, t.loss) for t in whole], [t.parts for t in whole]
        bars = {first: bar_of(self.rule, scores, parts, first, level[-1]) for first in looks if level}
        return {first: bar for first, bar in bars.items() if bar is not None}

    def weigh(self) -> None:
        """Choose what the loss counts for by what was tried so far; all of that is rewarded so from now on."""
        told = [t for t in self.distinct if t.parts]
        if told:
            parts = np.array([t.parts for t in told])
            self.rule.shaping = weight_of(self.rule.missing(parts[:, ::2]), parts[:, 1::2])

    @property
    def distinct(self) -> list[Tried]:
        """Each plan once, first seen first."""
        found: dict[bytes, Tried] = {}
        for tried in self.trials:
            found.setdefault(tried.key, tried)
        return list(found.values())

    @property
    def best(self) -> Tried:
        """Highest reward, then first seen; estimates only where there is nothing else."""
        if not self.trials:
            self.settle()
        looked, best, shaping = self._ranked
        if shaping != self.rule.shaping:
            looked, best = 0, None
        for tried in self.trials[looked:]:  # only what is new: agents may walk for tens of thousands of episodes
            if best is None or tried.rank > best.rank:
                best = tried
        self._ranked = len(self.trials), best, self.rule.shaping
        if best is None:
            raise RuntimeError("nothing was asked for")
        return best

    def best_in(self, space: Space) -> Tried:
        """The same of the plans within a budget; of all where none is."""
        return max((t for t in self.trials if space.feasible(t.counts)), key=lambda t: t.rank, default=self.best)
