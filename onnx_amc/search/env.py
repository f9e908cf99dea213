"""The Gymnasium environment: one episode is one walk over the units of a network, one evaluation at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from onnx_amc.search.space import Space
from onnx_amc.search.state import FEATURES, LayerFacts, State

Begin = Callable[[np.ndarray], Callable[[], float]]
"""Counts of a plan -> what waits for its reward."""

Reward = Callable[[np.ndarray], float]
"""Counts of a plan -> reward, at most 0 for AMC's R_err = -Error."""

BAR = 40
"""Characters of a drawn bar."""

ROW, GAP, WIDE = 9, 3, 320
"""Pixels of a drawn row, between two rows, and of the widest bar."""

KEPT, GONE, OPEN = (38, 110, 176), (222, 226, 230), (246, 204, 120)
"""Colours of what is kept, of what is removed, and of what is still to be decided."""


class PruningEnv(gym.Env[np.ndarray, np.ndarray]):
    """Choose the kept ratio of each unit in turn: of a group's channels, or of a layer's single weights (AMC section 3).

    Observation: Box(0, 1, (11,), float32), the features of `search.state` for the unit about to be decided.
    Action: Box(0, 1, (1,), float32), the fraction of the unit to keep. What is executed is the nearest level under Algorithm 1's
    bound; `info["executed_action"]`, float32 (1,), says which.
    Reward: 0, and after the last unit the reward of the whole network. `info` then holds `counts`, int (units,), and `ratio`, what
    the plan costs relative to the original, in units of the budget.
    Render: "ansi" gives text, "rgb_array" a picture (rows, columns, 3), uint8: a bar per unit with what is kept of it.

    Args:
        space: Levels, price and budget.
        facts: Of each unit, for the features.
        reward: Of a complete plan.
        render_mode: None, "ansi" or "rgb_array".

    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012  Gymnasium's own spelling

    def __init__(
        self, space: Space, facts: Sequence[LayerFacts], reward: Reward, render_mode: str | None = None
    ) -> None:
        if render_mode not in {None, *self.metadata["render_modes"]}:
            raise ValueError(f"render_mode is {render_mode!r}; choose None, 'ansi' or 'rgb_array'")
        self.space, self._reward, self.render_mode = space, reward, render_mode
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
        """Decide one unit; beyond 0 to 1 the nearer end counts.

        Raises:
            gym.error.ResetNeeded: The episode has ended.
            gym.error.InvalidAction: The action is not one number, or NaN: an agent that has diverged is no plan of everything cut.

        """
        if self._step == self.steps:
            raise gym.error.ResetNeeded("the episode has ended: call reset()")
        wanted = np.asarray(action, dtype=np.float64)
        if wanted.size != 1 or np.isnan(wanted).any():
            raise gym.error.InvalidAction(f"{action!r} is not the one number that a step takes, a ratio from 0 to 1")
        levels = self.space.levels[self._step]
        ratio = float(np.clip(wanted.item(), 0.0, 1.0))
        index = min(self.space.nearest(self._step, ratio), self.space.highest(self.counts, self._step))
        self.counts[self._step] = levels[index]
        self._previous = float(levels[index] / levels[-1])
        info: dict[str, Any] = {"executed_action": np.array([self._previous], dtype=np.float32)}
        self._step += 1
        done = self._step == self.steps
        reward = 0.0
        if done:
            info["counts"] = self.counts.copy()
            info["ratio"] = self.space.ratio(self.counts)
            reward = float(self._reward(self.counts.copy()))
        return self._observe(), reward, done, False, info

    def render(self) -> str | np.ndarray | None:
        """Draw the plan as far as it is decided."""
        if self.render_mode == "ansi":
            return "\n".join(self._lines())
        return self._picture() if self.render_mode == "rgb_array" else None

    def _lines(self) -> list[str]:
        width = max((len(name) for name in self.space.names), default=0)
        lines = []
        for i, (name, n, whole) in enumerate(zip(self.space.names, self.counts, self.space.full, strict=True)):
            filled = round(BAR * n / whole)
            bar = "█" * filled + "·" * (BAR - filled) if i < self._step else "?" * BAR
            lines.append(f"{name:<{width}} {bar} {n}/{whole}")
        return [*lines, f"{self.space.ratio(self.counts):.1%} of the {self.space.unit}"]

    def _picture(self) -> np.ndarray:
        picture = np.full(((ROW + GAP) * max(len(self.space), 1), WIDE, 3), 255, dtype=np.uint8)
        for i, (n, whole) in enumerate(zip(self.counts, self.space.full, strict=True)):
            rows = slice(i * (ROW + GAP), i * (ROW + GAP) + ROW)
            picture[rows] = GONE if i < self._step else OPEN
            if i < self._step:
                picture[rows, : round(WIDE * n / whole)] = KEPT
        return picture

    def _observe(self) -> np.ndarray:
        return self._state.observe(self._step, self.space.price(self.counts), self._previous)


class LaterEnv(PruningEnv):
    """The same walk for an agent that does not wait for the reward before it walks again.

    The last step's reward is 0; `info["later"]` is called for the true one.

    Args:
        space: Levels, price and budget.
        facts: Of each unit, for the features.
        begin: Begins the evaluation of a complete plan.

    """

    def __init__(self, space: Space, facts: Sequence[LayerFacts], begin: Begin) -> None:
        super().__init__(space, facts, lambda _counts: 0.0)
        self._begin = begin

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide one unit."""
        observation, reward, done, cut, info = super().step(action)
        if done:
            info["later"] = self._begin(self.counts.copy())
        return observation, reward, done, cut, info
