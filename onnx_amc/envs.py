"""Registers the Gymnasium environments: `gymnasium.make("onnx_amc/ChannelPruning-v0", model=..., data=..., flops=0.5)`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from onnx_amc.compression import Compression
from onnx_amc.config import Settings, choose_budget
from onnx_amc.intake import DataSource, ModelSource
from onnx_amc.listener import Listener
from onnx_amc.search.env import ChannelPruningEnv


def channel_pruning(
    model: ModelSource,
    data: DataSource | None = None,
    *,
    flops: float | None = None,
    params: float | None = None,
    size: float | None = None,
    **settings: Any,
) -> ChannelPruningEnv:
    """Build the environment of one model, budget and data set; each episode ends with an evaluation in onnxruntime.

    Args:
        model: Path of an ONNX file, or a model.
        data: As for `onnx_amc.compress`.
        flops: Fraction of the multiply-accumulates to be left.
        params: Fraction of the parameters to be left.
        size: Fraction of the file's bytes to be left.
        settings: Any other field of `onnx_amc.config.Settings`.

    """
    budget = choose_budget(flops=flops, params=params, size=size)
    return Compression(model, data, Settings(budget=budget, **{"recover": False, **settings}), Listener()).environment()


gym.register("onnx_amc/ChannelPruning-v0", entry_point="onnx_amc.envs:channel_pruning")
