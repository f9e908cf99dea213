"""The environment keeps Gymnasium's and Stable-Baselines3's contracts and shows the paper's features of the step to decide."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_gymnasium
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_sb3

from onnx_amc.search.env import PruningEnv
from onnx_amc.search.space import Space, levels_of
from onnx_amc.search.state import FEATURES, LayerFacts, State

if TYPE_CHECKING:
    from collections.abc import Callable

CHANNELS = np.array([16, 24, 7, 40])
FACTS = [
    LayerFacts(outputs=24, inputs=16, height=32, width=30, stride=1, kernel=3, flops=4_000),
    LayerFacts(outputs=7, inputs=24, height=16, width=15, stride=2, kernel=5, flops=9_000),
    LayerFacts(outputs=40, inputs=7, height=8, width=8, stride=1, kernel=1, flops=1_000),
    LayerFacts(outputs=10, inputs=40, height=1, width=1, stride=1, kernel=1, flops=2_000),
]
RATIOS = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4)


def prices(plans: np.ndarray) -> np.ndarray:
    sides = np.pad(plans, ((0, 0), (1, 1)), constant_values=((0, 0), (3, 10)))
    return np.asarray((sides[:, :-1] * sides[:, 1:]).sum(axis=1))


def price(counts: np.ndarray) -> int:
    return int(prices(counts[None])[0])


def environment(budget: float = 0.5, reward: Callable[[np.ndarray], float] = lambda _counts: -0.25) -> PruningEnv:
    levels = tuple(levels_of(int(c), None, 0.2) for c in CHANNELS)
    return PruningEnv(Space(tuple("abcd"), levels, prices, int(budget * price(CHANNELS))), FACTS, reward)


def walk(env: PruningEnv, ratios: list[float]) -> tuple[list[np.ndarray], list[float], list[float], np.ndarray]:
    """Observations, executed ratios, rewards and final counts of one episode."""
    seen, executed, rewards = [env.reset()[0]], [], []
    for ratio in ratios:
        observation, reward, terminated, truncated, info = env.step(np.array([ratio], dtype=np.float32))
        seen.append(observation)
        rewards.append(reward)
        executed.append(float(info["executed_action"][0]))
        assert not truncated
        assert terminated == ("counts" in info) == (len(executed) == env.steps)
    return seen, executed, rewards, info["counts"]


def complaints(check: Callable[[PruningEnv], None], env: PruningEnv) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check(env)
        except AssertionError as error:
            return [str(error)]
    return [str(w.message) for w in caught]


CHECKERS = [
    pytest.param(check_gymnasium, "not having a spec", id="gymnasium"),  # it was not built by gymnasium.make
    pytest.param(check_sb3, "symmetric and normalized", id="sb3"),  # AMC's action is a ratio in [0, 1]
]


@pytest.mark.parametrize(("check", "known"), CHECKERS)
def test_the_checkers_have_one_known_remark(check: Callable[[PruningEnv], None], known: str) -> None:
    (said,) = complaints(check, environment())
    assert known in said


@pytest.mark.parametrize(("check", "known"), CHECKERS)
def test_the_checkers_find_what_is_wrong(check: Callable[[PruningEnv], None], known: str) -> None:
    class Outside(PruningEnv):
        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            observation, *rest = super().step(action)
            return observation + 2, *rest  # type: ignore[return-value]

    env = environment()
    assert any("observation" in s for s in complaints(check, Outside(env.space, FACTS, lambda _counts: 0.0)))


@given(RATIOS, st.floats(0.3, 1.0))
@settings(deadline=None)
def test_features_are_eleven_numbers_from_0_to_1(ratios: list[float], budget: float) -> None:
    for observation in walk(environment(budget), ratios)[0]:
        assert observation.shape == (11,) == (len(FEATURES),)
        assert observation.dtype == np.float32
        assert observation.min() >= 0
        assert observation.max() <= 1


def test_features_are_those_of_the_step_to_decide() -> None:
    env = environment(budget=0.6)
    seen, executed, _, counts = walk(env, [0.5, 0.9, 0.3, 0.7])
    whole = sum(f.flops for f in FACTS)
    for t, (fact, observation) in enumerate(zip(FACTS, seen, strict=False)):
        sofar = price(np.array([*counts[:t], *CHANNELS[t:]]))
        wanted = {
            "t": t / 3,
            "n": fact.outputs / 40,
            "c": fact.inputs / 40,
            "h": fact.height / 32,
            "w": fact.width / 30,
            "stride": fact.stride / 2,
            "k": fact.kernel / 5,
            "flops": fact.flops / 9_000,
            "reduced": 1 - sofar / price(CHANNELS),
            "rest": sum(f.flops for f in FACTS[t + 1 :]) / whole,
            "previous": executed[t - 1] if t else 1.0,
        }
        assert dict(zip(FEATURES, observation.tolist(), strict=True)) == pytest.approx(wanted, abs=1e-6)


@given(RATIOS, RATIOS)
@settings(deadline=None)
def test_nothing_leaks_from_one_episode_to_the_next(first: list[float], second: list[float]) -> None:
    env = environment()
    walk(env, first)
    env.reset()
    env.step(np.array([first[0]], dtype=np.float32))  # and a walk that is broken off
    for used, fresh in zip(walk(env, second), walk(environment(), second), strict=True):
        np.testing.assert_array_equal(used, fresh)


@given(RATIOS, st.floats(0.25, 1.0))
@settings(deadline=None)
def test_every_episode_ends_within_the_budget_and_says_what_it_did(ratios: list[float], budget: float) -> None:
    asked: list[list[int]] = []
    env = environment(budget, lambda counts: asked.append(counts.tolist()) or -0.25)  # type: ignore[func-returns-value]
    _, executed, rewards, counts = walk(env, ratios)
    assert price(counts) <= env.space.limit
    assert executed == (counts / CHANNELS).astype(np.float32).tolist()
    assert all(n in levels for n, levels in zip(counts, env.space.levels, strict=True))
    assert asked == [counts.tolist()]
    assert rewards == [0, 0, 0, -0.25]


def test_an_action_is_bounded_only_where_the_budget_binds() -> None:
    assert walk(environment(1.0), [1.0, 0.5, 0.0, 0.31])[3].tolist() == [16, 12, 2, 12]
    assert walk(environment(0.5), [1.0, 1.0, 1.0, 1.0])[3].tolist() == [16, 24, 4, 8]


def test_the_counts_handed_out_are_copies() -> None:
    env = environment(reward=lambda counts: float(counts.fill(0) or 0))  # type: ignore[func-returns-value]
    counts = walk(env, [0.5] * 4)[3]
    assert counts.min() > 0
    counts[:] = 0
    assert env.counts.min() > 0


def test_a_network_that_costs_nothing_can_be_seen() -> None:
    """Of a recurrent network there are no multiply-accumulates to count."""
    seen = State([LayerFacts(4, 4, 1, 1, 1, 1, 0)] * 2, 0).observe(1, 0, 0.5)
    assert seen.tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0.5]
