"""The search: baselines first, then the agent; the best plan seen is kept, whoever proposed it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from onnx_amc.search import baselines, local
from onnx_amc.search.env import LaterEnv, PruningEnv
from onnx_amc.search.racing import Bar, bar_of
from onnx_amc.search.reward import Rule
from onnx_amc.search.shaping import weight_of
from onnx_amc.search.space import Space
from onnx_amc.search.state import LayerFacts

if TYPE_CHECKING:
    from onnx_amc.search.agent import Transition

MOVED_SIGMA = 0.15
"""Noise of an agent that was trained before: it is to use what it knows."""

Evaluate = Callable[[np.ndarray], Sequence[float]]
"""Counts -> score, higher is better, and loss against the original, lower is better; then, if it can tell, the same two for each of
several parts of the samples."""

Later = Callable[[], Sequence[float]]
"""Waits for what an evaluation finds."""

AHEAD = 4
"""Evaluations that are under way while the next plan is chosen: so many workers are kept busy, and what a plan teaches is known so
many plans later, whatever the number of workers."""

AGENTS = ("ddpg", "td3", "sac")
CLOSED = ("uniform", "shallow", "deep", "knapsack")
POLICIES = (*AGENTS, "random", "evolution", *CLOSED)

PLAIN = Rule()

REFINING = 0.4
"""Share of an agent's evaluations that are spent around the best plan at the end."""

DEPTH = 2
"""Levels that a group is lowered by to see what it is worth."""

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
        rule: How good that is.

    """

    counts: np.ndarray
    score: float
    loss: float
    source: str
    parts: tuple[float, ...] = ()
    rule: Rule = PLAIN

    @property
    def key(self) -> bytes:
        """The plan's counts, to be told from others by."""
        return key_of(self.counts)

    @property
    def reward(self) -> float:
        """What the search makes of it."""
        return self.rule(self.score, self.loss, self.counts)

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
        rule: How good a plan is that is tried from now on.
        begin: Begins an evaluation, where several can be under way.

    """

    evaluate: Evaluate
    on_trial: Callable[[Tried], None] = lambda _tried: None
    trials: list[Tried] = field(default_factory=list)
    seen: dict[bytes, Later] = field(default_factory=dict)
    rule: Rule = PLAIN
    begin: Callable[[np.ndarray], Later] | None = None
    waiting: deque[Asked] = field(default_factory=deque)

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
        """Choose what the loss counts for by what was tried so far, and reward all of that anew."""
        told = [t for t in self.distinct if t.parts]
        if told:
            parts = np.array([t.parts for t in told])
            self.rule = replace(self.rule, shaping=weight_of(self.rule.missing(parts[:, ::2]), parts[:, 1::2]))
            self.trials = [replace(t, rule=self.rule) for t in self.trials]

    @property
    def distinct(self) -> list[Tried]:
        """Each plan once, first seen first."""
        found: dict[bytes, Tried] = {}
        for tried in self.trials:
            found.setdefault(tried.key, tried)
        return list(found.values())

    @property
    def best(self) -> Tried:
        """Highest reward, then first seen."""
        if not self.trials:
            self.settle()
        return max(self.trials, key=lambda t: t.reward)


def propose(space: Space, name: str, errors: Sequence[np.ndarray]) -> np.ndarray:
    """Return the plan of a policy in closed form."""
    if name == "uniform":
        return baselines.uniform(space)
    if name in {"shallow", "deep"}:
        return baselines.slanted(space, name)
    return baselines.knapsack(space, list(errors))


def second_pass(
    space: Space, journal: Journal, errors: Sequence[np.ndarray], start: Tried
) -> tuple[Tried, list[np.ndarray]]:
    """Measure each group's worth once more around the knapsack's plan, by lowering it there, and solve the knapsack again.

    What the loss counts for in the reward is chosen on the way, by all that was tried by then.

    Returns:
        The better one of the two plans, and the table of errors with its rows scaled.

    """
    lowered = space.counts(np.maximum(space.indices(start.counts) - DEPTH, 0))
    asked: dict[int, Asked] = {}
    for group in np.flatnonzero(lowered < start.counts):
        counts = start.counts.copy()
        counts[group] = lowered[group]
        asked[int(group)] = journal.put(counts, start.source)
    found = {group: journal.result(one) for group, one in asked.items()}
    journal.weigh()
    start = replace(start, rule=journal.rule)
    added = np.zeros(len(space))
    for lower, tried in found.items():
        added[lower] = replace(tried, rule=journal.rule).error - start.error
    table = baselines.reweighed(space, errors, start.counts, lowered, added)
    again = journal.ask(baselines.knapsack(space, table), start.source)
    return max(start, again, key=lambda t: t.reward), table


@dataclass(frozen=True)
class Luggage:
    """What an agent brings along and leaves behind.

    Args:
        load: File of a trained agent to begin with.
        save: File that the agent is written to.
        log: Folder for TensorBoard.

    """

    load: str | None = None
    save: str | None = None
    log: str | None = None


NOTHING = Luggage()


def search(
    space: Space,
    facts: Sequence[LayerFacts],
    journal: Journal,
    *,
    policy: str,
    episodes: int,
    seed: int,
    starts: Sequence[Tried],
    errors: Sequence[np.ndarray] = (),
    refining: float = REFINING,
    luggage: Luggage = NOTHING,
    ahead: int = AHEAD,
) -> None:
    """Spend `episodes` evaluations on finding a better plan; everything tried is in the journal.

    Args:
        space: Levels, price and budget.
        facts: Of each group, for the agent's features.
        journal: Where plans are evaluated.
        policy: `random`, `evolution`, or an agent: `ddpg`, `td3`, `sac`.
        episodes: Plans to evaluate.
        seed: Of everything random.
        starts: Plans already tried (baselines); an agent gets them into its replay buffer before its first step.
        errors: For each group the error at each of its levels.
        refining: Share of an agent's evaluations that are spent around the best plan at the end.
        luggage: A trained agent to begin with, where to keep this one, and its log.
        ahead: Evaluations under way while the next plan is chosen.

    Raises:
        OptionError: The trained agent cannot be read, or this one not be kept.

    """
    rng = np.random.default_rng(seed)
    if policy == "random":
        for _ in range(episodes):
            journal.put(baselines.random(space, rng), policy)
            journal.settle(ahead)
    elif policy == "evolution":
        _evolve(space, journal, episodes, rng, ahead)
    else:
        walks = episodes - int(refining * episodes)
        from onnx_amc.search.agent import generators_kept  # noqa: PLC0415  torch is heavy

        with generators_kept():
            _learn(space, facts, journal, policy, walks, seed, starts, luggage, ahead)
        journal.settle()
        # The first trials were mostly neighbours of one plan, which tell the weights apart but poorly.
        journal.weigh()
        for step in range(episodes - walks):
            journal.put(_near(space, journal, errors if step % 4 < 3 else (), rng), policy)
            journal.settle(ahead)
    journal.settle()


def _learn(
    space: Space, facts: Sequence[LayerFacts], journal: Journal, policy: str, walks: int, seed: int,
    starts: Sequence[Tried], luggage: Luggage, ahead: int,
) -> None:  # fmt: skip
    """Let an agent walk, and learn from what its walks are worth."""
    from onnx_amc.search.agent import (  # noqa: PLC0415  torch is heavy
        AgentConfig,
        decay_for,
        load_agent,
        make_agent,
        remember,
        save_agent,
        train,
    )

    def begin(counts: np.ndarray) -> Callable[[], float]:
        asked = journal.put(counts, policy)
        return lambda: journal.result(asked).reward

    env = LaterEnv(space, facts, begin)
    warmup, sigma = min(100, max(1, walks // 4)), AgentConfig.sigma
    if luggage.load is not None:
        warmup, sigma = 0, MOVED_SIGMA
    decay = decay_for(walks, warmup, sigma)
    agent = make_agent(env, policy, AgentConfig(warmup, sigma, decay, log=luggage.log, ahead=ahead), seed)
    if luggage.load is not None:
        load_agent(agent, luggage.load)
    for start in starts:
        remember(agent, walk(space, facts, start.counts), start.reward)
    train(agent, walks, env.steps)
    if luggage.save is not None:
        save_agent(agent, luggage.save)


def explained(space: Space, journal: Journal, errors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the table of errors scaled to explain all trials."""
    tried = journal.distinct
    return local.relearned(space, errors, np.array([t.counts for t in tried]), np.array([t.error for t in tried]))


def _near(space: Space, journal: Journal, errors: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A plan that was not tried: the best of all, or else near the best one, by the table of errors scaled to explain all trials.

    Without a table, or where it knows no other, a random neighbour of the best.
    """
    if len(errors):
        table = explained(space, journal, errors)
        found: np.ndarray | None = baselines.knapsack(space, table)
        if found is None or journal.knows(found):
            found = baselines.exchanged(space, table, journal.best.counts, journal.knows)
        if found is not None:
            return found
    return journal.unseen(lambda: local.neighbour(space, journal.best.counts, rng))


def _evolve(space: Space, journal: Journal, episodes: int, rng: np.random.Generator, ahead: int) -> None:
    """Steady-state evolution as in neural architecture search: a parent of the best few, or two, and one child at a time."""
    for step in range(episodes):
        journal.settle(ahead)
        if step < episodes // 4:
            journal.put(baselines.random(space, rng), "evolution")
            continue
        if not journal.trials:
            journal.settle()
        best = sorted(journal.trials, key=lambda t: -t.reward)[:10]
        one, other = (best[int(i)].counts for i in rng.integers(len(best), size=2))
        child = local.crossed(space, one, other, rng) if rng.random() < 0.5 else one
        journal.put(journal.unseen(lambda c=child: local.neighbour(space, c, rng)), "evolution")  # type: ignore[misc]


def walk(space: Space, facts: Sequence[LayerFacts], counts: np.ndarray) -> list[Transition]:
    """Return the episode that leads to a given plan."""
    from onnx_amc.search.agent import Transition  # noqa: PLC0415  torch is heavy

    env = PruningEnv(space, facts, lambda _counts: 0.0)
    before, _ = env.reset()
    steps: list[Transition] = []
    for step, count in enumerate(counts):
        action = np.array([count / space.full[step]], dtype=np.float32)
        after, _, done, _, info = env.step(action)
        steps.append(Transition(before, info["executed_action"], after, done))
        before = after
    return steps
