"""Calls from Python: what they take, and what of the caller's they leave alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import onnx_amc
from onnx_amc.errors import OptionError, PlanError

MLP = Path(__file__).parents[1] / "models" / "digits_mlp.onnx"


def test_a_plan_in_memory_is_held_against_the_model_too() -> None:
    result = onnx_amc.compress(MLP, flops=0.5, policy="uniform", refit=False)
    other = onnx.load(MLP)
    weights = next(t for t in other.graph.initializer if len(t.dims) > 1)
    weights.raw_data = bytes(len(weights.raw_data))
    with pytest.raises(PlanError, match="sha256"):
        onnx_amc.apply(other, result.plan)
    assert onnx_amc.apply(MLP, result.plan) == result.model


def test_the_callers_random_numbers_stay_theirs() -> None:
    drawn = []
    for searched in (False, True):
        random.seed(7), np.random.seed(7), torch.manual_seed(7)  # noqa: NPY002
        if searched:
            onnx_amc.compress(MLP, flops=0.5, episodes=3, recover=False)
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))  # noqa: NPY002
    assert drawn[0] == drawn[1]


def test_numbers_of_numpy_and_names_as_the_command_line_has_them() -> None:
    how: dict[str, Any] = {"policy": "uniform", "refit": False, "keep": "/1/Gemm"}
    half: dict[str, Any] = {"flops": np.float32(0.5)}
    one = onnx_amc.compress(MLP, seed=np.int64(3), round_to="auto", **how, **half)
    assert one.model == onnx_amc.compress(MLP, flops=0.5, seed=3, **how).model
    assert one.record["seed"] == 3
    with pytest.raises(OptionError):
        onnx_amc.compress(MLP, flops=0.0, max_drop=1.0)
    assert onnx_amc.inspect(MLP, round_to="auto") == onnx_amc.inspect(MLP)
    thin: dict[str, Any] = {"params": 0.6, "granularity": "weight", "policy": "uniform", "refit": False}
    text, pair = (onnx_amc.compress(MLP, pattern=p, **thin) for p in ("2:4", (2, 4)))
    assert text.model == pair.model
    assert [r.model for r in onnx_amc.pareto(MLP, flops=0.5, **how)] == [one.model]
    with pytest.raises(OptionError, match="a budget of its own"):
        onnx_amc.pareto(MLP, flops=0.5, max_drop=1.0, **how)


def test_a_policy_in_closed_form_has_no_episodes() -> None:
    record = onnx_amc.compress(MLP, flops=0.5, policy="knapsack", recover=False).record
    assert (record["episodes"], record["rewards"], record["best_episode"]) == (0, [], None)
