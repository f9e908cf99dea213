"""The Gymnasium environment: one episode is one walk over the groups, one evaluation at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from onnx_amc.search.space import Space
from onnx_amc.search.state import FEATURES, LayerFacts, State

Reward = Callable[[np.ndarray], float]
"""Counts of a plan -> reward, at most 0 for AMC's R_err = -Error."""


class ChannelPruningEnv(gym.Env[np.ndarray, np.ndarray]):
    """Choose the kept ratio of each group in turn (AMC section 3).

    Observation: Box(0, 1, (11,), float32), the features of `search.state` for the group about to be decided.
    Action: Box(0, 1, (1,), float32), the fraction of the group's channels to keep. What is executed is the nearest level under
    Algorithm 1's bound; `info["executed_action"]`, float32 (1,), says which.
    Reward: 0, and after the last group the reward of the whole network. `info` then holds `counts`.

    Args:
        space: Levels, price and budget.
        facts: Of each group, for the features.
        reward: Of a complete plan.

    """

    metadata = {"render_modes": []}  # noqa: RUF012  Gymnasium's own spelling

    def __init__(self, space: Space, facts: Sequence[LayerFacts], reward: Reward) -> None:
        self.space, self._reward = space, reward
        self.observation_space = gym.spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
        self._state = State(facts, space.price(space.full))
        self.counts = space.full.copy()
        self._step = 0
        self._previous = 1.0

    @property
    def steps(self) -> int:
        """Steps of an episode, T."""
        return len(self.space)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start again from the whole network."""
        super().reset(seed=seed, options=options)
        self.counts = self.space.full.copy()
        self._step, self._previous = 0, 1.0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide one group."""
        wanted = float(np.clip(np.asarray(action, dtype=np.float64).reshape(-1)[0], 0.0, 1.0))
        levels = self.space.levels[self._step]
        index = min(self.space.nearest(self._step, wanted), self.space.highest(self.counts, self._step))
        self.counts[self._step] = levels[index]
        self._previous = float(levels[index] / levels[-1])
        info: dict[str, Any] = {"executed_action": np.array([self._previous], dtype=np.float32)}
        self._step += 1
        done = self._step == self.steps
        reward = 0.0
        if done:
            info["counts"] = self.counts.copy()
            reward = float(self._reward(self.counts.copy()))
        return self._observe(), reward, done, False, info

    def _observe(self) -> np.ndarray:
        return self._state.observe(self._step, self.space.price(self.counts), self._previous)
