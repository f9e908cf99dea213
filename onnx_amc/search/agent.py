"""The agents that walk over the groups: AMC's DDPG, and Stable-Baselines3's TD3 and SAC on the same walk.

An episode is one walk of T steps with one reward at its end. The environment tells in `info["executed_action"]` which ratio was
really kept, float32 (1,): the critic must learn about that one and not about what the agent had asked for. The only file that
imports torch and Stable-Baselines3 (SB3). Source: AMC sections 3.1 to 3.3; where SB3 differs, it is overridden here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from onnx_amc.errors import OptionError

Array = NDArray[Any]
Environment = gym.Env[Any, Any]

LEAST_SIGMA = 1e-6
"""Below this the noise is none; keeps the division by sigma finite however long the search."""


@dataclass(frozen=True)
class AgentConfig:
    """The knobs of an agent; the defaults are the paper's where it names one.

    Args:
        warmup_episodes: Episodes of uniform actions before the first update (AMC 4: 100).
        sigma: Standard deviation of the exploration noise, in units of the kept ratio, until the warm-up ends (AMC 3.2: 0.5).
        sigma_decay: Factor on sigma per episode after the warm-up (reference code 0.95, other ports 0.99); see `decay_for`.
        actor_lr: Adam's step for the actor, DDPG only (AMC's reference code: 1e-4).
        critic_lr: Adam's step for the critic, and for all networks of TD3 and SAC (reference code: 1e-3).
        tau: Share of the online network that each update mixes into the target network (reference code: 0.01).
        gamma: Discount per step (AMC 3.2: 1, lest early layers look cheap).
        batch_size: Transitions per update (AMC 4: 64).
        baseline_decay: Weight of the past, per episode, in the moving average of rewards that is subtracted (ours: the reference
            code averages the means of mini-batches with weight 0.5 per update, which follows the sampling noise).
        hidden: Widths of the hidden layers of actor and critic (AMC 4: 300, 300).

    Raises:
        OptionError: A value out of its range.

    """

    warmup_episodes: int = 100
    sigma: float = 0.5
    sigma_decay: float = 0.99
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    tau: float = 0.01
    gamma: float = 1.0
    batch_size: int = 64
    baseline_decay: float = 0.95
    hidden: tuple[int, ...] = (300, 300)

    def __post_init__(self) -> None:
        sound = {
            "warmup_episodes": (self.warmup_episodes >= 0, "0 or more"),
            "sigma": (self.sigma > 0, "above 0"),
            "sigma_decay": (0 < self.sigma_decay <= 1, "in (0, 1]"),
            "actor_lr": (self.actor_lr > 0, "above 0"),
            "critic_lr": (self.critic_lr > 0, "above 0"),
            "tau": (0 < self.tau <= 1, "in (0, 1]"),
            "gamma": (0 <= self.gamma <= 1, "in [0, 1]"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "baseline_decay": (0 <= self.baseline_decay < 1, "in [0, 1)"),
            "hidden": (len(self.hidden) > 0 and min(self.hidden) >= 1, "one or more widths, each 1 or more"),
        }
        for name, (fits, allowed) in sound.items():
            if not fits:
                raise OptionError(f"{name} is {getattr(self, name)}", where="agent", fix=f"give {name} {allowed}")


@dataclass(frozen=True, eq=False)
class Transition:
    """One step of a walk that somebody else made, to be told to an agent by `remember`.

    Args:
        observation: What was seen, float32 (features,).
        action: What was executed, in the environment's units, float32 (1,).
        next_observation: What was seen next, float32 (features,).
        done: Whether the walk ended here.

    """

    observation: Array
    action: Array
    next_observation: Array
    done: bool


class EpisodeReplayBuffer(ReplayBuffer):
    """Holds an episode back until it ends, then stores all its transitions with the episode's last reward R.

    Samples carry R - b, where b is the moving average of past R: b <- decay * b + (1 - decay) * R, and b = R at first. The end of a
    walk is an end, truncated or not: nothing is bootstrapped from behind it.

    Args:
        *args: As for SB3's ReplayBuffer.
        baseline_decay: The decay, per episode.
        seed: Of the generator, owned, that picks the samples.
        **kwargs: As for SB3's ReplayBuffer.

    """

    def __init__(self, *args: Any, baseline_decay: float, seed: np.random.SeedSequence, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"handle_timeout_termination": False})
        self.baseline = 0.0
        self.episodes = 0
        self._decay = baseline_decay
        self._rng = np.random.default_rng(seed)
        self._held: list[tuple[Array, Array, Array]] = []

    def add(
        self, obs: Array, next_obs: Array, action: Array, reward: Array, done: Array, infos: list[dict[str, Any]]
    ) -> None:
        """Hold the transition; when it is the episode's last, store them all. `action` is in SB3's units, [-1, 1]."""
        self._held.append((np.array(obs), np.array(next_obs), np.array(action)))
        if not np.all(done):
            return
        held, self._held = self._held, []
        for index, transition in enumerate(held, start=1):
            super().add(*transition, reward, np.full_like(done, index == len(held)), infos)
        self._average(float(np.mean(reward)))

    def _average(self, reward: float) -> None:
        decay = self._decay if self.episodes else 0.0
        self.baseline = decay * self.baseline + (1 - decay) * reward
        self.episodes += 1

    def reset(self) -> None:
        """Forget all transitions, the held ones too; the baseline stays."""
        super().reset()
        self._held = []

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Transitions drawn uniformly, with replacement; their rewards are R - b."""
        batch = self._get_samples(self._rng.integers(self.size(), size=batch_size), env=env)
        return batch._replace(rewards=batch.rewards - self.baseline)


class ExecutedActions(OffPolicyAlgorithm):
    """Mixin: stores the action that the environment executed (`info["executed_action"]`) in place of the one it was asked for."""

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: Array,
        new_obs: Array | dict[str, Array],
        reward: Array,
        dones: Array,
        infos: list[dict[str, Any]],
    ) -> None:
        executed = np.stack([info["executed_action"] for info in infos])
        buffer_action = self.policy.scale_action(executed)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)


def truncated_normal(
    rng: np.random.Generator, mean: Array, sigma: float, low: Array | float, high: Array | float
) -> Array:
    """Draw x ~ N(mean, sigma^2) given low <= x <= high, by inverse CDF, for low <= mean <= high; float64, shape of `mean`.

    x = mean + sigma * Phi^-1(u) with u uniform between Phi((low - mean) / sigma) and Phi((high - mean) / sigma).
    """
    mean = np.asarray(mean, dtype=np.float64)
    u = rng.uniform(ndtr((low - mean) / sigma), ndtr((high - mean) / sigma))
    return np.clip(mean + sigma * ndtri(u), low, high)


class TruncatedNoise(ExecutedActions):
    """Mixin: uniform actions in the warm-up, then truncated normal noise around the actor's action (AMC 3.2).

    Both in the environment's own units and from an owned generator, where SB3 adds noise in [-1, 1] and clips.

    Args:
        *args: As for the algorithm.
        config: The knobs; sigma, sigma_decay and warmup_episodes matter here.
        **kwargs: As for the algorithm.

    """

    def __init__(self, *args: Any, config: AgentConfig | None = None, **kwargs: Any) -> None:
        self.config = config or AgentConfig()  # before SB3 builds the networks, which asks for it
        super().__init__(*args, **kwargs)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed SB3's generators, which are the global ones, and the noise's own."""
        super().set_random_seed(seed)
        self._rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise in the current episode: sigma * decay^(episodes since the warm-up)."""
        explored = max(0, self._episode_num - self.config.warmup_episodes)
        return max(self.config.sigma * self.config.sigma_decay**explored, LEAST_SIGMA)

    def _sample_action(
        self,
        learning_starts: int,
        action_noise: ActionNoise | None = None,  # noqa: ARG002 - SB3's signature; the noise is our own
        n_envs: int = 1,
    ) -> tuple[Array, Array]:
        space = cast("gym.spaces.Box", self.action_space)
        if self.num_timesteps < learning_starts:
            action = self._rng.uniform(space.low, space.high, size=(n_envs, *space.shape))
        else:
            mean, _ = self.predict(cast("Array", self._last_obs), deterministic=True)
            action = truncated_normal(self._rng, mean, self.sigma, space.low, space.high)
        action = action.astype(np.float32)
        return action, self.policy.scale_action(action)


class AmcDDPG(TruncatedNoise, DDPG):
    """AMC's agent: DDPG with truncated noise, executed actions, one reward per episode less a baseline, and two learning rates."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:  # noqa: ARG002
        for optimizer, rate in (
            (self.actor.optimizer, self.config.actor_lr),
            (self.critic.optimizer, self.config.critic_lr),
        ):
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate


class WalkTD3(TruncatedNoise, TD3):
    """SB3's TD3 with the same exploration, storage and baseline as `AmcDDPG`; one learning rate."""


class WalkSAC(ExecutedActions, SAC):
    """SB3's SAC with the same storage and baseline as `AmcDDPG`; its exploration is its own."""


def make_agent(env: Environment, policy: str, config: AgentConfig, seed: int) -> OffPolicyAlgorithm:
    """Build an untrained agent for `env`, whose `env.unwrapped.steps` is the length T of a walk.

    The replay holds max(2000, 100 T) transitions (AMC's reference code: 100 per layer). After each episode follow T updates.
    SB3 seeds the global generators of random, NumPy and torch with `seed`; what is drawn by us comes from owned ones.

    Args:
        env: The environment; actions are kept ratios.
        policy: "ddpg" (AMC's), "td3" or "sac".
        config: The knobs.
        seed: Same seed, same actions; 0 to 2^32 - 1.

    Raises:
        OptionError: A policy of another name.

    """
    arguments = _arguments(config, env.unwrapped.get_wrapper_attr("steps"), seed)
    agent: OffPolicyAlgorithm
    match policy:
        case "ddpg":
            agent = AmcDDPG("MlpPolicy", env, config=config, **arguments)
        case "td3":
            agent = WalkTD3("MlpPolicy", env, config=config, **arguments)
        case "sac":
            # alpha starts at 0.1 and not 1: rewards lie in [-1, 0] and a search is too short to learn it down from there
            agent = WalkSAC("MlpPolicy", env, ent_coef="auto_0.1", **arguments)
        case _:
            raise OptionError(f"no agent is called {policy!r}", where="policy", fix="choose ddpg, td3 or sac")
    agent.set_logger(Logger(folder=None, output_formats=[]))  # SB3's own makes a folder in /tmp at each learn()
    return agent


def _arguments(config: AgentConfig, steps: int, seed: int) -> dict[str, Any]:
    return {
        "learning_rate": config.critic_lr,
        "buffer_size": max(2000, 100 * steps),
        "learning_starts": config.warmup_episodes * steps,
        "batch_size": config.batch_size,
        "tau": config.tau,
        "gamma": config.gamma,
        "train_freq": (1, "episode"),
        "gradient_steps": -1,
        "replay_buffer_class": EpisodeReplayBuffer,
        "replay_buffer_kwargs": {
            "baseline_decay": config.baseline_decay,
            "seed": np.random.SeedSequence(seed, spawn_key=(1,)),
        },
        "policy_kwargs": {"net_arch": list(config.hidden)},
        "seed": seed,
        "device": "cpu",  # two layers of 300: a GPU would be slower, and less reproducible
    }


def train(agent: OffPolicyAlgorithm, episodes: int, steps: int) -> None:
    """Walk `episodes` times over `steps` steps and learn; called again, it goes on where it was, from the start of a walk."""
    env = agent.get_env()
    if env is not None:
        agent.set_env(env)  # makes learn() reset it: somebody may have walked it in between
    agent.learn(total_timesteps=episodes * steps, reset_num_timesteps=False)


def remember(agent: OffPolicyAlgorithm, episode: Sequence[Transition], reward: float) -> None:
    """Put a walk that somebody else made into the agent's replay, as one episode with this reward at its end.

    It counts for the baseline, not for the warm-up.

    Raises:
        ValueError: The episode does not end at its last transition, and only there.
        TypeError: An agent that `make_agent` did not make.

    """
    if [transition.done for transition in episode] != [False] * (len(episode) - 1) + [True]:
        raise ValueError("an episode to remember is done at its last transition and at no other")
    if not isinstance(agent.replay_buffer, EpisodeReplayBuffer):
        raise TypeError("only an agent of make_agent can remember episodes")
    for step in episode:
        action = agent.policy.scale_action(np.asarray(step.action, dtype=np.float32))
        done = np.array([step.done])
        agent.replay_buffer.add(
            step.observation[None], step.next_observation[None], action[None], np.array([reward]), done, [{}]
        )


def decay_for(episodes: int, warmup: int, sigma: float, final: float = 0.05) -> float:
    """Decay d with which the noise of the last episode is `final`: sigma * d^(episodes - warmup - 1) = final; at most 1."""
    decays = episodes - warmup - 1
    return 1.0 if decays < 1 or final >= sigma else float((final / sigma) ** (1 / decays))
