"""Registers the Gymnasium environments.

    gymnasium.make("onnx_amc/ChannelPruning-v0", model="model.onnx", data="calibration.npz", flops=0.5)
    gymnasium.make("onnx_amc/WeightPruning-v0", model="model.onnx", data="calibration.npz", params=0.3)

Several environments of one network can share its calibration and what plans scored: give them the `run` of the first,
`first.unwrapped.run`, in place of a model.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from onnx_amc.compression import Compression
from onnx_amc.config import Settings, choose_budget
from onnx_amc.delivery import Result
from onnx_amc.intake import DataSource, ModelSource
from onnx_amc.listener import Listener
from onnx_amc.search.env import PruningEnv
from onnx_amc.search.loop import Tried


class ModelEnv(PruningEnv):
    """The walk over a real network, each episode evaluated in onnxruntime; see `PruningEnv`.

    At the end of an episode `info` holds besides `score` (the metric, higher is better) and `loss` (relative error of the outputs).

    Args:
        run: Of the network, calibrated.
        render_mode: None, "ansi" or "rgb_array".

    """

    def __init__(self, run: Compression, render_mode: str | None = None) -> None:
        self.run = run
        self._last: Tried | None = None
        super().__init__(run.search.space, run.units.facts, self._judged, render_mode)

    def _judged(self, counts: np.ndarray) -> float:
        self._last = self.run.search.journal.ask(counts, "environment")
        return self._last.reward

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide one unit."""
        observation, reward, done, cut, info = super().step(action)
        if done and self._last is not None:
            info |= {"score": self._last.score, "loss": self._last.loss}
        return observation, reward, done, cut, info

    @property
    def best(self) -> Tried:
        """The best plan of all episodes so far, of all environments that share the run."""
        return self.run.search.journal.best

    def deliver(self, counts: np.ndarray | None = None) -> Result:
        """Refit, check and measure a plan, the best one unless another is given, as `onnx_amc.compress` does."""
        return self.run.deliver(self.run.search.within(self.best.counts if counts is None else np.asarray(counts)))


def pruning(
    model: ModelSource | None = None,
    data: DataSource | None = None,
    *,
    granularity: str,
    flops: float | None = None,
    params: float | None = None,
    size: float | None = None,
    latency: float | None = None,
    run: Compression | None = None,
    listener: Listener | None = None,
    render_mode: str | None = None,
    **settings: Any,
) -> ModelEnv:
    """Build the environment of one model, budget and data set.

    Args:
        model: Path of an ONNX file, or a model.
        data: As for `onnx_amc.compress`.
        granularity: `channel` or `weight`; set by the id.
        flops: Fraction of the multiply-accumulates to be left.
        params: Fraction of the parameters to be left.
        size: Fraction of the file's bytes to be left.
        latency: Fraction of the measured latency to be left.
        run: That of another environment, in place of all of these.
        listener: Hears of every evaluation.
        render_mode: None, "ansi" or "rgb_array".
        settings: Any other field of `onnx_amc.config.Settings`, `reward` among them.

    """
    if run is None:
        if model is None:
            raise TypeError("give a model, or the run of another environment")
        budget = choose_budget(flops=flops, params=params, size=size, latency=latency)
        wanted = Settings(**{"budget": budget, "granularity": granularity, "recover": False, **settings})
        run = Compression(model, data, wanted, listener or Listener())
    return ModelEnv(run, render_mode)


for _granularity in ("channel", "weight"):
    gym.register(
        f"onnx_amc/{_granularity.title()}Pruning-v0",
        entry_point="onnx_amc.envs:pruning",
        kwargs={"granularity": _granularity},
    )
