"""Registers the Gymnasium environments.

    gymnasium.make("onnx_amc/ChannelPruning-v0", model="model.onnx", data="calibration.npz", flops=0.5)
    gymnasium.make("onnx_amc/WeightPruning-v0", model="model.onnx", data="calibration.npz", params=0.3)

Several environments of one network can share its calibration and what plans scored: give them the `run` of the first,
`first.unwrapped.run`, in place of a model.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import replace
from numbers import Real
from typing import Any

import gymnasium as gym
import numpy as np
from threadpoolctl import threadpool_limits

from onnx_amc.compression import Compression
from onnx_amc.config import Settings, choose_budget
from onnx_amc.delivery import Result, outcome
from onnx_amc.errors import BudgetError, OptionError
from onnx_amc.intake import DataSource, ModelSource
from onnx_amc.listener import Listener
from onnx_amc.search.env import PruningEnv
from onnx_amc.search.journal import Tried

SOURCE = "environment"
"""Who proposes the plans, for the record: whatever agent walks, the environment does not know it."""

UNREAD = (
    "max_drop", "ray", "agent", "save_agent", "tensorboard", "policy", "episodes", "ahead", "workers", "finalists",
)  # fmt: skip
"""Settings that only a search by `onnx_amc.compress` looks at."""


class ModelEnv(PruningEnv):
    """The walk over a real network, each episode evaluated in onnxruntime; see `PruningEnv`.

    At the end of an episode `info` holds, beside `counts` and `ratio`, `score` (the metric, higher is better) and `loss` (relative
    error of the outputs).

    Args:
        run: Of the network, calibrated.
        render_mode: None, "ansi" or "rgb_array".

    Raises:
        OptionError: The network has nothing to decide.

    """

    def __init__(self, run: Compression, render_mode: str | None = None) -> None:
        if not len(run.search.space):
            what = "nothing of it can be removed, so there is nothing to decide"
            raise OptionError(what, where=run.model.source, fix="see `onnx-amc inspect` for what is in the way")
        self.run = run
        run.search.source = SOURCE
        self._last: Tried | None = None
        super().__init__(run.search.space, run.units.facts, self._judged, render_mode)

    def _judged(self, counts: np.ndarray) -> float:
        with threadpool_limits(limits=1, user_api="blas"):  # as `compress` and `apply` do: the last bits depend on it
            self._last = self.run.search.journal.ask(counts, SOURCE)
        return self._last.reward

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide one unit."""
        observation, reward, done, cut, info = super().step(action)
        if done and self._last is not None:
            info |= {"score": self._last.score, "loss": self._last.loss}
        return observation, reward, done, cut, info

    @property
    def best(self) -> Tried:
        """The best plan of all episodes so far, of all environments that share the run.

        Raises:
            OptionError: No episode has ended yet.

        """
        if not self.run.search.journal.trials:
            raise OptionError("no episode has ended yet", where="environment", fix="walk to the end of one first")
        return self.run.search.journal.best

    def deliver(self, counts: np.ndarray | None = None) -> Result:
        """Refit, check and measure a plan, the best one unless another is given, as `onnx_amc.compress` does.

        Where the model of the best one costs more than the budget allows, as measured, plans like it are tried that cost less.

        Args:
            counts: int (units,), what each keeps: that very plan is delivered, or none.

        Raises:
            OptionError: They are no counts of these units, or no episode has ended yet.
            BudgetError: They, or their model as measured, cost more than the budget allows.

        """
        run, search = copy(self.run), self.run.search
        run.seconds = dict(run.seconds)  # what is told of an earlier delivery stays as it was
        chosen = None if counts is None else self._checked(np.asarray(counts))
        with threadpool_limits(limits=1, user_api="blas"):
            result = run.deliver(search.within(self.best.counts, fill=False) if chosen is None else chosen)
        kept = np.array([g["kept"] for g in result.record["groups"]])
        found = outcome(search.journal, SOURCE, run.units, kept)
        result.record.update(found | {"policy": SOURCE, "episodes": len(found["rewards"])})
        return replace(result, trials=list(result.trials))  # the walks to come are no part of it

    def _checked(self, counts: np.ndarray) -> np.ndarray:
        least, full, fix = self.space.smallest, self.space.full, "take `info['counts']` of an episode"
        if counts.shape != full.shape or counts.dtype.kind not in "iu" or ((counts < least) | (counts > full)).any():
            what = f"{counts.tolist()} are no whole numbers from {least.tolist()} to {full.tolist()}"
            raise OptionError(what, where="counts", fix=fix)
        if not self.space.feasible(counts):
            what = f"they leave {self.space.ratio(counts):.1%} of the {self.space.unit}"
            raise BudgetError(what, where="counts", fix=fix)
        return counts.astype(np.int64)


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
    shaping: float | None = None,
    **settings: Any,
) -> ModelEnv:
    """Build the environment of one model, budget and data set.

    Args:
        model: Path of an ONNX file, or a model.
        data: As for `onnx_amc.compress`.
        granularity: `channel` or `weight`; set by the id, and that of a run must be the same.
        flops: Fraction of the multiply-accumulates to be left.
        params: Fraction of the parameters to be left.
        size: Fraction of the file's bytes to be left.
        latency: Fraction of the measured latency to be left.
        run: That of another environment, in place of all else but the render mode.
        listener: Hears of every evaluation.
        render_mode: None, "ansi" or "rgb_array".
        shaping: What the error of the outputs counts for in the reward, -(1 - score) - shaping min(loss, 1), 4 unless given; 0 is
            AMC's R_err.
        settings: Any other field of `onnx_amc.config.Settings`, `reward` among them.

    Raises:
        OptionError: Settings that an environment cannot heed.

    """
    budgets = {"flops": flops, "params": params, "size": size, "latency": latency}
    if run is not None:
        given = {"model": model, "data": data, "listener": listener, "shaping": shaping, **budgets, **settings}
        if wrong := [name for name, value in given.items() if value is not None]:
            what = f"{', '.join(wrong)} beside the run of another environment, which has its own"
            raise OptionError(what, where="settings", fix="leave that out, or give a model in place of the run")
    else:
        if model is None:
            raise TypeError("give a model, or the run of another environment")
        unread = [name for name in UNREAD if settings.get(name) is not None]
        if unread:
            what = f"an environment does not heed {', '.join(unread)}"
            raise OptionError(what, where="settings", fix="leave that out, or call onnx_amc.compress")
        budget = choose_budget(**budgets)
        wanted = Settings(budget=budget, granularity=granularity, **{"recover": False, **settings})
        with threadpool_limits(limits=1, user_api="blas"):
            run = Compression(model, data, wanted, listener or Listener())
        if shaping is not None:
            _shape(run, shaping)
    if run.settings.granularity != granularity:
        what = f"it is the run of an environment of {run.settings.granularity}s, this one is of {granularity}s"
        raise OptionError(what, where="run", fix=f"make onnx_amc/{run.settings.granularity.title()}Pruning-v0 of it")
    return ModelEnv(run, render_mode)


def _shape(run: Compression, shaping: float) -> None:
    """Choose what the error of the outputs counts for in the reward."""
    rule = run.search.journal.rule
    if rule.own is not None:
        what = f"the reward '{run.settings.reward}' counts the error of the outputs as it likes"
        raise OptionError(what, where="shaping", fix="leave that out, or the reward")
    if not isinstance(shaping, Real) or not 0 <= shaping < math.inf:
        raise OptionError(f"{shaping!r} is no weight", where="shaping", fix="give 0 or more")
    rule.shaping = float(shaping)


for _granularity in ("channel", "weight"):
    gym.register(
        f"onnx_amc/{_granularity.title()}Pruning-v0",
        entry_point="onnx_amc.envs:pruning",
        kwargs={"granularity": _granularity},
    )
