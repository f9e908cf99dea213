"""The search: baselines first, then the agent; the best plan seen is kept, whoever proposed it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnx_amc.errors import OptionError
from onnx_amc.search import baselines, local
from onnx_amc.search.env import LaterEnv, PruningEnv
from onnx_amc.search.journal import Asked, Journal, Tried
from onnx_amc.search.space import Space
from onnx_amc.search.state import LayerFacts

if TYPE_CHECKING:
    from onnx_amc.search.agent import Transition

MOVED_SIGMA = 0.15
"""Noise of an agent that was trained before: it is to use what it knows."""

Pace = Callable[[Space, np.ndarray], Space]
"""A space and a plan -> the same space with its budget moved to where such plans really cost what is allowed."""

AHEAD = 4
"""Evaluations that are under way while the next plan is chosen: so many workers are kept busy, and what a plan teaches is known so
many plans later, whatever the number of workers."""

AGENTS = ("ddpg", "td3", "sac")
CLOSED = ("uniform", "shallow", "deep", "knapsack")
POLICIES = (*AGENTS, "random", "evolution", *CLOSED)

REFINING = 0.4
"""Share of an agent's evaluations that are spent around the best plan at the end."""

DEPTH = 2
"""Levels that a group is lowered by to see what it is worth."""


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
    added = np.zeros(len(space))
    for lower, tried in found.items():
        added[lower] = tried.error - start.error
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
    pace: Pace = lambda space, _counts: space,
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
        pace: Corrects the budget by the best plan that the agent has walked to, before that is refined.

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
        from onnx_amc.search.agent import globals_kept  # noqa: PLC0415  torch is heavy

        with globals_kept():
            _learn(space, facts, journal, policy, walks, seed, starts, luggage, ahead)
        journal.settle()
        # The first trials were mostly neighbours of one plan, which tell the weights apart but poorly.
        journal.weigh()
        found = journal.best.counts
        space = pace(space, found)
        slow = int(episodes > walks and not space.feasible(found))
        if slow:
            journal.ask(local.below(space, errors, found), policy)
        refine(space, journal, errors, policy, episodes - walks - slow, rng, ahead)
    journal.settle()


def refine(
    space: Space, journal: Journal, errors: Sequence[np.ndarray], policy: str, plans: int, rng: np.random.Generator,
    ahead: int = 0,
) -> None:  # fmt: skip
    """Try so many plans near the best one within the budget; in each four, one is a random neighbour."""
    for step in range(plans):
        journal.put(_near(space, journal, errors if step % 4 < 3 else (), rng), policy)
        journal.settle(ahead)


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


def warm(policy: str) -> None:
    """Import what an agent needs, before any thread runs: in runs that did it beside them the interpreter crashed now and then."""
    if policy in AGENTS:
        drawn = random.getstate()  # something there draws from the caller's generator when it is imported
        for name in ("onnx_amc.search.agent", "torch._dynamo"):  # the latter an optimizer imports at its first use
            with suppress(ImportError):  # told where it is needed
                import_module(name)
        random.setstate(drawn)


def check_agent(path: str, policy: str) -> None:
    """Refuse what is no agent of this policy, whose networks are the same for every network that it walks over.

    Raises:
        OptionError: The file cannot be read, or holds something else.

    """
    warm(policy)
    from onnx_amc.search.agent import AgentConfig, globals_kept, load_agent, make_agent  # noqa: PLC0415  torch is heavy

    one = Space(("one",), (np.array([1]),), lambda plans: plans.sum(axis=1), 1)
    with globals_kept():
        env = PruningEnv(one, [LayerFacts(1, 1, 1, 1, 1, 1, 1)], lambda _counts: 0.0)
        load_agent(make_agent(env, policy, AgentConfig(), 0), path)


def check_log(folder: str) -> None:
    """Refuse early what the training could not be logged to late.

    Raises:
        OptionError: TensorBoard is not installed, or the folder cannot be written.

    """
    if find_spec("tensorboard") is None:
        fix = 'pip install "onnx-amc[research]"'
        raise OptionError("TensorBoard is not installed", where="--tensorboard", fix=fix)
    there = next(p for p in (Path(folder), *Path(folder).absolute().parents) if p.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        fix = "name a folder that you may write to"
        raise OptionError("cannot be written", where=f"--tensorboard {folder}", fix=fix)


def explained(space: Space, journal: Journal, errors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the table of errors scaled to explain all trials."""
    tried = journal.distinct
    return local.relearned(space, errors, np.array([t.counts for t in tried]), np.array([t.error for t in tried]))


def _near(space: Space, journal: Journal, errors: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A plan that was not tried: the best of all, or else near the best one, by the table of errors scaled to explain all trials.

    Without a table, or where it knows no other, a random neighbour of the best.
    """
    best = journal.best_in(space).counts
    if len(errors):
        table = explained(space, journal, errors)
        found = baselines.knapsack(space, table)
        if not journal.knows(found):
            return found
        near = baselines.exchanged(space, table, best, journal.knows)
        if near is not None:
            return near
    return journal.unseen(lambda: local.neighbour(space, best, rng))


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
