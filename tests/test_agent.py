"""The agents on a toy walk whose optimum is known: what they do, what they store, what they learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats
from stable_baselines3 import SAC

from onnx_amc.errors import OptionError
from onnx_amc.search.agent import (
    AgentConfig,
    AmcDDPG,
    Array,
    EpisodeReplayBuffer,
    Transition,
    decay_for,
    make_agent,
    remember,
    train,
    truncated_normal,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

TARGETS = np.array([0.3, 0.9, 0.5, 0.7, 0.4])
T = len(TARGETS)
POLICIES = ("ddpg", "td3", "sac")
SMALL = AgentConfig(warmup_episodes=2, hidden=(16, 16), batch_size=8)


class Toy(gym.Env[Array, Array]):
    """Five ratios to find; executed clamped to [0.2, 0.95] and rounded to 32nds; reward: minus the mean square."""

    def __init__(self, *, cut_short: bool = False, meddle: bool = False, fail_at: int = -1) -> None:
        self.observation_space = gym.spaces.Box(0, 1, (11,), np.float32)
        self.action_space = gym.spaces.Box(0, 1, (1,), np.float32)
        self.steps = T
        self.cut_short, self.meddle, self.fail_at = cut_short, meddle, fail_at
        self.features = np.random.default_rng(0).uniform(size=(T + 1, 9))
        self.walk: list[float] = []
        self.asked: list[float] = []
        self.executed: list[float] = []
        self.rewards: list[float] = []

    def observe(self) -> Array:
        t = len(self.walk)
        last = self.walk[-1] if t else 1.0
        return np.array([t / T, *self.features[t], last], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.walk = []
        return self.observe(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        if self.meddle:
            np.random.seed(0)  # noqa: NPY002 - the point: somebody else uses the global generators
            torch.manual_seed(0)
        if len(self.asked) == self.fail_at:
            self.fail_at = -1
            raise RuntimeError("the evaluation failed")
        executed = (np.round(np.clip(action, 0.2, 0.95) * 32) / 32).astype(np.float32)
        self.walk.append(float(executed[0]))
        self.asked.append(float(action[0]))
        self.executed.append(float(executed[0]))
        done = len(self.walk) == T
        reward = -float(np.mean((np.array(self.walk) - TARGETS) ** 2)) if done else 0.0
        self.rewards += [reward] if done else []
        return (
            self.observe(),
            reward,
            done and not self.cut_short,
            done and self.cut_short,
            {"executed_action": executed},
        )


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def replay(agent: OffPolicyAlgorithm) -> EpisodeReplayBuffer:
    return cast("EpisodeReplayBuffer", agent.replay_buffer)


def trained(
    policy: str, episodes: int, config: AgentConfig = SMALL, seed: int = 0, env: Toy | None = None
) -> tuple[Any, Toy]:
    env = env or Toy()
    agent = make_agent(env, policy, config, seed)
    train(agent, episodes, T)
    return agent, env


def greedy_reward(agent: OffPolicyAlgorithm) -> float:
    env, done, reward = Toy(), False, 0.0
    seen, _ = env.reset()
    while not done:
        action, _ = agent.predict(seen, deterministic=True)
        seen, reward, done, _, _ = env.step(action)
    return reward


def test_ddpg_learns_where_random_does_not() -> None:
    episodes, warmup = 200, 40
    config = AgentConfig(warmup_episodes=warmup, sigma_decay=decay_for(episodes, warmup, 0.5))
    agent, env = trained("ddpg", episodes, config, seed=2)
    random = np.mean(env.rewards[:warmup])
    assert random < -0.1
    assert np.mean(env.rewards[-20:]) > random / 5
    assert greedy_reward(agent) > -0.015
    assert max(env.rewards) > -0.003
    untaught, _ = trained("ddpg", 1, config, seed=2)
    assert greedy_reward(untaught) < -0.03, "the bar is one that an untaught actor misses"


@pytest.mark.parametrize("policy", POLICIES)
def test_replay_holds_executed_actions_and_last_rewards(policy: str) -> None:
    agent, env = trained(policy, 6)
    held = replay(agent)
    count = 6 * T
    assert held.pos == count
    assert np.abs(np.array(env.asked) - env.executed).max() > 0.02, "the clamp must bite, or the test is empty"
    np.testing.assert_allclose((held.actions[:count, 0, 0] + 1) / 2, env.executed, atol=1e-6)
    np.testing.assert_allclose(held.rewards[:count, 0], np.repeat(env.rewards, T), rtol=1e-6)
    np.testing.assert_array_equal(held.dones[:count, 0], np.tile([0, 0, 0, 0, 1], 6))
    np.testing.assert_allclose(held.observations[:count, 0, 0] * T, np.tile(np.arange(T), 6), atol=1e-6)
    np.testing.assert_allclose(held.next_observations[:count, 0, 0] * T, np.tile(np.arange(1, T + 1), 6), atol=1e-6)


def test_a_walk_cut_short_is_no_reason_to_bootstrap() -> None:
    agent, _ = trained("ddpg", 3, env=Toy(cut_short=True))
    batch = replay(agent).sample(200)
    at_end = batch.next_observations[:, 0] == 1
    assert at_end.any()
    assert torch.equal(batch.dones[:, 0] == 1, at_end)


def test_samples_carry_reward_less_baseline() -> None:
    config = AgentConfig(warmup_episodes=2, hidden=(16, 16), baseline_decay=0.8)
    agent, env = trained("ddpg", 5, config)
    expected = env.rewards[0]
    for reward in env.rewards[1:]:
        expected = 0.8 * expected + 0.2 * reward
    held = replay(agent)
    assert held.baseline == pytest.approx(expected)
    assert abs(expected) > 0.02
    drawn = held.sample(200).rewards.numpy().ravel()
    np.testing.assert_allclose(np.unique(drawn), np.sort(np.array(env.rewards) - expected), atol=1e-6)


class Late(Toy):
    """The reward is told later; a 0 stands for it."""

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        seen, reward, done, cut, info = super().step(action)
        return seen, 0.0, done, cut, {**info, **({"later": lambda: reward} if done else {})}


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_logged_of_a_walk_is_its_reward(policy: str) -> None:
    """Not the 0 that stands for it: the curve in TensorBoard was flat. Until it is known, the moving average."""
    config = AgentConfig(warmup_episodes=2, hidden=(8,), batch_size=8, ahead=2)
    agent, env = trained(policy, 6, config, env=Late())
    told = [episode["r"] for episode in agent.ep_info_buffer]
    assert told[:4] == env.rewards[:4]
    averages = [env.rewards[0]]
    for reward in env.rewards[1:3]:
        averages.append(0.95 * averages[-1] + 0.05 * reward)
    assert told[4:] == pytest.approx(averages[1:])


def test_nothing_is_sampled_from_an_unfinished_walk() -> None:
    agent = make_agent(Toy(), "ddpg", SMALL, 0)
    held = replay(agent)
    row, info = np.zeros((1, 11), np.float32), {"executed_action": np.array([0.5], np.float32)}
    for t in range(3):
        assert held.size() == 0
        held.add(row, row, np.zeros((1, 1)), np.array([0.25 * t]), np.array([t == 2]), [info])
    assert held.size() == 3
    assert held.rewards[:3, 0].tolist() == [0.5, 0.5, 0.5]
    assert held.dones[:3, 0].tolist() == [0, 0, 1]


def test_a_walk_broken_off_leaves_nothing_behind() -> None:
    env = Toy(fail_at=8)
    agent = make_agent(env, "ddpg", SMALL, 0)
    with pytest.raises(RuntimeError, match="evaluation failed"):
        train(agent, 4, T)
    train(agent, 2, T)
    held = replay(agent)
    assert held.pos == 3 * T
    np.testing.assert_allclose(held.observations[: 3 * T, 0, 0] * T, np.tile(np.arange(T), 3), atol=1e-6)


def test_each_network_keeps_its_own_rate() -> None:
    fresh = make_agent(Toy(), "ddpg", SMALL, 0)
    agent, _ = trained("ddpg", 6)
    assert agent._n_updates == 4 * T, "T updates after each episode past the warm-up"
    for each in (fresh, agent):
        assert isinstance(each, AmcDDPG)
        assert [group["lr"] for group in each.actor.optimizer.param_groups] == [1e-4]
        assert [group["lr"] for group in each.critic.optimizer.param_groups] == [1e-3]


def test_arguments_are_amcs() -> None:
    agent = make_agent(Toy(), "ddpg", AgentConfig(), 0)
    assert (agent.gamma, agent.tau, agent.batch_size, agent.buffer_size) == (1.0, 0.01, 64, 2000)
    assert (agent.learning_starts, agent.gradient_steps) == (100 * T, -1)
    assert [layer.out_features for layer in agent.actor.modules() if isinstance(layer, torch.nn.Linear)] == [
        300,
        300,
        1,
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_warmup_actions_are_uniform(policy: str) -> None:
    _, env = trained(policy, 200, AgentConfig(warmup_episodes=200, hidden=(8,)))
    assert stats.kstest(env.asked, "uniform").pvalue > 0.01
    assert 0 <= min(env.asked) < 0.02
    assert 0.98 < max(env.asked) <= 1


def test_noise_is_truncated_not_clipped() -> None:
    agent, env = trained("ddpg", 60, AgentConfig(warmup_episodes=0, hidden=(8,), actor_lr=1e-2, sigma_decay=1.0))
    assert agent.sigma == 0.5
    assert min(env.asked) > 0
    assert max(env.asked) < 1


@pytest.mark.parametrize(("mean", "sigma"), [(0.5, 0.5), (0.0, 0.5), (0.9, 0.1), (1.0, 0.01)])
def test_truncated_normal_is_scipys(mean: float, sigma: float) -> None:
    rng = np.random.default_rng(0)
    drawn = truncated_normal(rng, np.full(3000, mean), sigma, np.zeros(1), np.ones(1))
    exact = stats.truncnorm((0 - mean) / sigma, (1 - mean) / sigma, loc=mean, scale=sigma)
    assert stats.kstest(drawn, exact.cdf).pvalue > 0.01
    clipped = np.clip(rng.normal(mean, sigma, 3000), 0, 1)
    assert mean == 0.9 or stats.kstest(clipped, exact.cdf).pvalue < 0.01, "clipped noise would be told apart"


def test_truncated_normal_without_noise_is_the_mean() -> None:
    drawn = truncated_normal(np.random.default_rng(0), np.array([0.0, 0.4, 1.0]), 1e-6, np.zeros(1), np.ones(1))
    np.testing.assert_allclose(drawn, [0.0, 0.4, 1.0], atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_same_seed_same_actions(policy: str) -> None:
    one, again, other = (trained(policy, 8, seed=seed)[1].asked for seed in (3, 3, 4))
    assert one == again
    assert one[: 2 * T] != other[: 2 * T], "the warm-up follows the seed"
    assert one[2 * T :] != other[2 * T :]


def test_ddpg_draws_nothing_from_global_generators() -> None:
    assert trained("ddpg", 8)[1].asked == trained("ddpg", 8, env=Toy(meddle=True))[1].asked


def test_sigma_decays_per_episode_to_its_final_value() -> None:
    episodes, warmup = 12, 4
    config = AgentConfig(warmup_episodes=warmup, hidden=(8,), sigma_decay=decay_for(episodes, warmup, 0.5))
    agent = make_agent(Toy(), "ddpg", config, 0)
    assert isinstance(agent, AmcDDPG)
    sigmas = []
    for _ in range(episodes):
        sigmas.append(agent.sigma)
        train(agent, 1, T)
    assert sigmas[: warmup + 1] == [0.5] * (warmup + 1)
    np.testing.assert_allclose(np.diff(np.log(sigmas[warmup:])), np.log(config.sigma_decay))
    assert sigmas[-1] == pytest.approx(0.05)


@pytest.mark.parametrize(("episodes", "warmup", "sigma"), [(10, 9, 0.5), (5, 8, 0.5), (100, 10, 0.05)])
def test_no_decay_where_there_is_nothing_to_decay(episodes: int, warmup: int, sigma: float) -> None:
    assert decay_for(episodes, warmup, sigma) == 1.0


def test_training_goes_on_where_it_was() -> None:
    env = Toy()
    agent = make_agent(env, "ddpg", SMALL, 0)
    train(agent, 3, T)
    env.reset()
    env.step(np.array([0.5], np.float32))  # somebody walks it in between
    train(agent, 3, T)
    assert agent.num_timesteps == 6 * T
    assert len(env.rewards) == 6
    assert replay(agent).pos == 6 * T


def walk(reward: float = -0.02) -> tuple[list[Transition], float]:
    env = Toy()
    seen, _ = env.reset()
    steps = []
    for target in TARGETS:
        then, _, done, _, info = env.step(np.array([target], np.float32))
        steps.append(Transition(seen, info["executed_action"], then, done))
        seen = then
    return steps, reward


@pytest.mark.parametrize("policy", POLICIES)
def test_remembered_walks_lie_in_the_replay_like_own_ones(policy: str) -> None:
    agent = make_agent(Toy(), policy, SMALL, 0)
    steps, reward = walk()
    remember(agent, steps, reward)
    held = replay(agent)
    assert held.pos == T
    assert held.baseline == reward
    np.testing.assert_allclose((held.actions[:T, 0] + 1) / 2, [step.action for step in steps], atol=1e-6)
    np.testing.assert_array_equal(held.observations[:T, 0], [step.observation for step in steps])
    np.testing.assert_array_equal(held.next_observations[:T, 0], [step.next_observation for step in steps])
    np.testing.assert_allclose(held.rewards[:T, 0], reward)
    assert agent.num_timesteps == 0, "they do not shorten the warm-up"
    train(agent, 4, T)
    assert held.pos == 5 * T


@pytest.mark.parametrize("part", [slice(0, 0), slice(0, 3)])
def test_an_unfinished_walk_cannot_be_remembered(part: slice) -> None:
    agent = make_agent(Toy(), "ddpg", SMALL, 0)
    steps, reward = walk()
    with pytest.raises(ValueError, match="done at its last transition"):
        remember(agent, steps[part], reward)
    with pytest.raises(ValueError, match="done at its last transition"):
        remember(agent, steps + steps, reward)


def test_a_foreign_agent_cannot_remember() -> None:
    foreign = SAC("MlpPolicy", Toy(), device="cpu")
    with pytest.raises(ValueError, match="make_agent"):
        remember(foreign, *walk())


def test_learning_leaves_no_trace(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SB3_LOGDIR", str(tmp_path / "logs"))
    trained("ddpg", 6)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"warmup_episodes": -1}, "warmup_episodes is -1\n  -> choose warmup_episodes: 0 or more"),
        ({"sigma": 0.0}, "sigma is 0.0\n  -> choose sigma: above 0"),
        ({"tau": 1.5}, "tau is 1.5\n  -> choose tau: in (0, 1]"),
        ({"gamma": 1.1}, "gamma is 1.1\n  -> choose gamma: in [0, 1]"),
        ({"baseline_decay": 1.0}, "baseline_decay is 1.0\n  -> choose baseline_decay: in [0, 1)"),
        ({"hidden": ()}, "hidden is ()\n  -> choose hidden: one width or more, each above 0"),
    ],
)
def test_knobs_out_of_range_are_named(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as error:
        AgentConfig(**knobs)
    assert str(error.value) == f"the agent's configuration: {message}"


def test_unknown_policy_is_named() -> None:
    with pytest.raises(OptionError) as error:
        make_agent(Toy(), "ppo", AgentConfig(), 0)
    assert str(error.value) == "policy: there is no agent 'ppo'\n  -> choose ddpg, td3 or sac"
