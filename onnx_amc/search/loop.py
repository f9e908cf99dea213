"""The search: baselines first, then the agent; the best plan seen is kept, whoever proposed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnx_amc.search import baselines
from onnx_amc.search.env import ChannelPruningEnv
from onnx_amc.search.space import Space
from onnx_amc.search.state import LayerFacts

if TYPE_CHECKING:
    from onnx_amc.search.agent import Transition

Evaluate = Callable[[np.ndarray], tuple[float, float]]
"""Counts -> (score, higher is better; loss against the original, lower is better)."""

AGENTS = ("ddpg", "td3", "sac")
CLOSED = ("uniform", "shallow", "deep", "knapsack")
POLICIES = (*AGENTS, "random", *CLOSED)


@dataclass(frozen=True)
class Tried:
    """One evaluated plan.

    Args:
        counts: int (groups,).
        score: Higher is better.
        loss: Breaks ties; lower is better.
        source: Who proposed it: a baseline's name or the policy's.

    """

    counts: np.ndarray
    score: float
    loss: float
    source: str

    @property
    def reward(self) -> float:
        """AMC's R_err = -Error, the error being what is missing to a score of 1."""
        return self.score - 1.0


@dataclass
class Journal:
    """Everything evaluated so far; a plan seen before is not evaluated again.

    Args:
        evaluate: What to ask.
        on_trial: Told of every trial.

    """

    evaluate: Evaluate
    on_trial: Callable[[Tried], None] = lambda _tried: None
    trials: list[Tried] = field(default_factory=list)
    seen: dict[bytes, tuple[float, float]] = field(default_factory=dict)

    def ask(self, counts: np.ndarray, source: str) -> Tried:
        """Score a plan and write it down."""
        key = counts.astype(np.int64).tobytes()
        if key not in self.seen:
            self.seen[key] = self.evaluate(counts)
        tried = Tried(counts.copy(), *self.seen[key], source)
        self.trials.append(tried)
        self.on_trial(tried)
        return tried

    @property
    def best(self) -> Tried:
        """Highest score, then lowest loss, then first seen."""
        return min(self.trials, key=lambda t: (-t.score, t.loss))


def propose(space: Space, name: str, errors: Sequence[np.ndarray]) -> np.ndarray:
    """Return the plan of a policy in closed form."""
    if name == "uniform":
        return baselines.uniform(space)
    if name in {"shallow", "deep"}:
        return baselines.slanted(space, name)
    return baselines.knapsack(space, list(errors))


def search(
    space: Space,
    facts: Sequence[LayerFacts],
    journal: Journal,
    *,
    policy: str,
    episodes: int,
    seed: int,
    starts: Sequence[Tried],
) -> None:
    """Spend `episodes` evaluations on finding a better plan; everything tried is in the journal.

    Args:
        space: Levels, price and budget.
        facts: Of each group, for the agent's features.
        journal: Where plans are evaluated.
        policy: `random`, or an agent: `ddpg`, `td3`, `sac`.
        episodes: Complete walks.
        seed: Of everything random.
        starts: Plans already tried (baselines); an agent gets them into its replay buffer before its first step.

    """
    if policy == "random":
        rng = np.random.default_rng(seed)
        for _ in range(episodes):
            journal.ask(baselines.random(space, rng), policy)
        return
    from onnx_amc.search.agent import AgentConfig, decay_for, make_agent, remember, train  # noqa: PLC0415  torch is heavy

    env = ChannelPruningEnv(space, facts, lambda counts: journal.ask(counts, policy).reward)
    warmup = min(100, max(1, episodes // 4))
    config = AgentConfig(warmup_episodes=warmup, sigma_decay=decay_for(episodes, warmup, AgentConfig.sigma))
    agent = make_agent(env, policy, config, seed)
    for start in starts:
        remember(agent, walk(space, facts, start.counts), start.reward)
    train(agent, episodes, env.steps)


def walk(space: Space, facts: Sequence[LayerFacts], counts: np.ndarray) -> list[Transition]:
    """Return the episode that leads to a given plan."""
    from onnx_amc.search.agent import Transition  # noqa: PLC0415  torch is heavy

    env = ChannelPruningEnv(space, facts, lambda _counts: 0.0)
    before, _ = env.reset()
    steps: list[Transition] = []
    for step, count in enumerate(counts):
        action = np.array([count / space.full[step]], dtype=np.float32)
        after, _, done, _, info = env.step(action)
        steps.append(Transition(before, info["executed_action"], after, done))
        before = after
    return steps
