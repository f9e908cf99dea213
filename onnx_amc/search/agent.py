"""The agents that walk over the groups: AMC's DDPG, and Stable-Baselines3's TD3 and SAC on the same walk.

An episode is one walk of T steps with one reward at its end. `info["executed_action"]`, float32 (1,), tells what the
environment made of the action, and the critic learns about that. The only file that imports Stable-Baselines3 (SB3).
Source: AMC (arXiv 1802.03494) sections 3 and 4; what SB3's DDPG does otherwise is overridden here.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from onnx_amc.archive import ArchiveError, read_arrays
from onnx_amc.errors import OptionError
from onnx_amc.files import whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import gymnasium as gym
    from stable_baselines3.common.noise import ActionNoise
    from stable_baselines3.common.type_aliases import ReplayBufferSamples
    from stable_baselines3.common.vec_env import VecNormalize

Array = NDArray[Any]

LEAST_SIGMA = 1e-6
"""Noise this small is none; the floor keeps the division by sigma finite however long the search."""


RANGES: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (("warmup_episodes",), "0 or more", lambda x: x >= 0),
    (("sigma", "actor_lr", "critic_lr", "batch_size"), "above 0", lambda x: x > 0),
    (("sigma_decay", "tau"), "in (0, 1]", lambda x: 0 < x <= 1),
    (("gamma",), "in [0, 1]", lambda x: 0 <= x <= 1),
    (("baseline_decay",), "in [0, 1)", lambda x: 0 <= x < 1),
    (("hidden",), "one width or more, each above 0", lambda x: min(x, default=0) > 0),
)


@dataclass(frozen=True)
class AgentConfig:
    """The knobs of an agent.

    Args:
        warmup_episodes: Episodes of uniform actions before the first update (AMC 4: 100).
        sigma: Standard deviation of the noise until the warm-up ends, in units of the kept ratio (AMC 3.2: 0.5).
        sigma_decay: Factor on sigma per episode after that (reference code 0.95, ports 0.99); see `decay_for`.
        actor_lr: Adam's step for the actor, DDPG only (reference code: 1e-4).
        critic_lr: Adam's step for the critic, and for all networks of TD3 and SAC (reference code: 1e-3).
        tau: Share of the online network mixed into the target network per update (reference code: 0.01).
        gamma: Discount per step (AMC 3.2: 1, lest short-term rewards weigh more).
        batch_size: Transitions per update (AMC 4: 64).
        baseline_decay: Weight of the past, per episode, in the moving average of rewards that is subtracted (ours; the
            reference code averages the means of its mini-batches, with weight 0.5 per update).
        hidden: Widths of the hidden layers of actor and critic (AMC 4: 300, 300).
        log: Folder for TensorBoard; None for no log.
        ahead: Episodes that may end before the reward of one is waited for.

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
    log: str | None = None
    ahead: int = 0

    def __post_init__(self) -> None:
        for names, range_, fits in RANGES:
            for name in names:
                if not fits(getattr(self, name)):
                    what = f"{name} is {getattr(self, name)}"
                    raise OptionError(what, where="the agent's configuration", fix=f"choose {name}: {range_}")


@dataclass(frozen=True, eq=False)
class Transition:
    """One step of a walk that somebody else made, for `remember`.

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

    Stored is the executed action, from `info["executed_action"]`. Where `info["later"]` has the reward, the episode waits
    for it until `ahead` more have ended; not so while nothing is stored, since there must be something to learn from. SB3
    logs what `info["episode"]` says, a 0 that stands for such a reward: it is b until R is known, then R.
    Samples carry R - b, b being the moving average of R over the episodes, b <- decay * b + (1 - decay) * R, begun at
    the first R. An episode that is cut short has ended too: nothing is bootstrapped from behind it. `seed` is that of
    the owned generator that picks the samples. One environment at a time.
    """

    def __init__(
        self, *args: Any, baseline_decay: float = 0.95, seed: np.random.SeedSequence | None = None, ahead: int = 0,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(*args, **kwargs | {"handle_timeout_termination": False})
        self.baseline: float | None = None
        self._decay = baseline_decay
        self._rng = np.random.default_rng(seed)
        self.held: list[tuple[Array, Array, Array]] = []
        self._ahead = ahead
        self._waiting: deque[tuple[list[tuple[Array, Array, Array]], Callable[[], float], dict[str, Any]]] = deque()

    def add(
        self, obs: Array, next_obs: Array, action: Array, reward: Array, done: Array, infos: list[dict[str, Any]]
    ) -> None:
        """Hold the transition back, or store the whole episode if it was the last; `action` is what was asked for."""
        space = cast("gym.spaces.Box", self.action_space)
        executed = np.stack([info["executed_action"] for info in infos]).reshape(action.shape)
        scaled = 2 * (executed - space.low) / (space.high - space.low) - 1  # as BasePolicy.scale_action
        self.held.append((np.array(obs), np.array(next_obs), scaled))
        if not np.all(done):
            return
        now, told = float(np.mean(reward)), infos[0].get("episode", {})
        if "later" in infos[0]:
            told["r"] = self.baseline or 0.0
        self._waiting.append((self.held, infos[0].get("later", lambda: now), told))
        self.held = []
        while len(self._waiting) > (self._ahead if "later" in infos[0] and self.size() else 0):
            self._store(*self._waiting.popleft())

    def _store(self, held: list[tuple[Array, Array, Array]], reward: Callable[[], float], told: dict[str, Any]) -> None:
        final = told["r"] = reward()
        for left, transition in enumerate(held, start=1 - len(held)):
            super().add(*transition, np.array([final]), np.array([left == 0]), [{}])
        self.baseline = final if self.baseline is None else self._decay * self.baseline + (1 - self._decay) * final

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw transitions uniformly, with replacement; their rewards are R - b."""
        batch = self._get_samples(self._rng.integers(self.size(), size=batch_size), env=env)
        return batch._replace(rewards=batch.rewards - (self.baseline or 0.0))


def truncated_normal(rng: np.random.Generator, mean: Array, sigma: float, low: Array, high: Array) -> Array:
    """Draw x ~ N(mean, sigma^2) given low <= x <= high, by inverse CDF; float64 of the shape of `mean`.

    x = mean + sigma * Phi^-1(u), u uniform from Phi((low - mean) / sigma) to Phi((high - mean) / sigma). `mean` lies
    within the bounds: from far outside, both ends would round to the same u.
    """
    mean = mean.astype(np.float64)
    u = rng.uniform(ndtr((low - mean) / sigma), ndtr((high - mean) / sigma))
    return np.asarray(np.clip(mean + sigma * ndtri(u), low, high))


class TruncatedNoise(OffPolicyAlgorithm):
    """Mixin: uniform actions in the warm-up, then truncated normal noise around the actor's action (AMC 3.2).

    Both in the environment's own units and from an owned generator, where SB3 adds noise in [-1, 1] and clips.
    """

    def __init__(self, *args: Any, config: AgentConfig | None = None, **kwargs: Any) -> None:
        self.config = config or AgentConfig()  # first, because SB3's constructor builds the optimizers
        super().__init__(*args, **kwargs)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed SB3's generators, which are the global ones, and the noise's own."""
        super().set_random_seed(seed)
        self._rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise in this episode: sigma * decay^(episodes since the warm-up)."""
        since = max(0, self._episode_num - self.config.warmup_episodes)
        return max(LEAST_SIGMA, self.config.sigma * self.config.sigma_decay**since)

    def _sample_action(
        self,
        learning_starts: int,
        action_noise: ActionNoise | None = None,  # noqa: ARG002 - SB3's signature
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
    """AMC's agent: DDPG with truncated normal noise and one learning rate per network; `make_agent` sets the rest."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self._update_learning_rate([])

    def _update_learning_rate(
        self,
        optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer,  # noqa: ARG002 - SB3's signature
    ) -> None:
        rates = ((self.actor.optimizer, self.config.actor_lr), (self.critic.optimizer, self.config.critic_lr))
        for optimizer, rate in rates:
            for group in optimizer.param_groups:
                group["lr"] = rate


class NoisyTD3(TruncatedNoise, TD3):
    """SB3's TD3 with AMC's exploration, where SB3's own has none unless told."""


def make_agent(env: gym.Env[Any, Any], policy: str, config: AgentConfig, seed: int) -> OffPolicyAlgorithm:
    """Build an untrained agent for `env`, whose `env.unwrapped.steps` is the length T of a walk.

    All agents share the replay of max(2000, 100 T) transitions (reference code: 100 per layer), T updates after each
    episode, and the networks. SB3 seeds the global generators of random, NumPy and torch; ours are our own.

    Args:
        env: The environment; actions are kept ratios.
        policy: "ddpg" (AMC's), "td3" or "sac".
        config: The knobs.
        seed: 0 to 2^32 - 1. Same seed, same actions.

    Raises:
        OptionError: A policy of another name.

    """
    arguments = _arguments(config, env.unwrapped.get_wrapper_attr("steps"), seed)
    agent: OffPolicyAlgorithm
    match policy:
        case "ddpg":
            agent = AmcDDPG("MlpPolicy", env, config=config, **arguments)
        case "td3":
            agent = NoisyTD3("MlpPolicy", env, config=config, **arguments)
        case "sac":  # a search is too short to learn the entropy's weight down from SB3's 1 to the rewards' scale
            agent = SAC("MlpPolicy", env, ent_coef="auto_0.1", **arguments)
        case _:
            what = f"there is no agent {policy!r}"
            raise OptionError(what, where="policy", fix="choose ddpg, td3 or sac")
    agent.set_logger(_logger(config.log))
    return agent


def _logger(folder: str | None) -> Logger:
    """A logger to TensorBoard, or one that is silent: SB3's default makes a folder in /tmp at each learn()."""
    return Logger(folder=None, output_formats=[]) if folder is None else configure(folder, ["tensorboard"])


@contextmanager
def globals_kept() -> Iterator[None]:
    """Leave what is global as it was, and the caller's: generators, which Stable-Baselines3 seeds, and the type of new tensors."""
    plain, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    kind = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)  # noqa: NPY002
        torch.set_rng_state(tensors)
        torch.set_default_dtype(kind)


def save_agent(agent: OffPolicyAlgorithm, path: str) -> None:
    """Write an agent's networks as arrays; what is read back from them executes nothing.

    Raises:
        OptionError: The file cannot be written.

    """
    arrays = {name: value.detach().numpy() for name, value in agent.policy.state_dict().items()}
    with whole(Path(path), f"--save-agent {path}") as beside, beside.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_agent(agent: OffPolicyAlgorithm, path: str) -> None:
    """Give an agent the networks of another one, trained on any network: what it sees and answers has the same form everywhere.

    Raises:
        OptionError: There is no such file, it is not that of an agent of the same policy and size, or its numbers are not finite.

    """
    where, fix = f"--agent {path}", "give a file that --save-agent has written, and the same --policy"
    wanted = agent.policy.state_dict()
    try:
        found = {name: torch.from_numpy(value) for name, value in read_arrays(path).items()}
    except (OSError, TypeError, ArchiveError) as error:
        raise OptionError(f"cannot be read: {error}", where=where, fix=fix) from error
    if {n: v.shape for n, v in found.items()} != {n: v.shape for n, v in wanted.items()}:
        raise OptionError("it holds other networks", where=where, fix=fix)
    if not all(bool(value.isfinite().all()) for value in found.values()):
        raise OptionError("it holds NaN or infinity: its training has diverged", where=where, fix="train another one")
    agent.policy.load_state_dict(found)


def _arguments(config: AgentConfig, steps: int, seed: int) -> dict[str, Any]:
    buffer_seed = np.random.SeedSequence(seed, spawn_key=(1,))
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
        "replay_buffer_kwargs": {"baseline_decay": config.baseline_decay, "seed": buffer_seed, "ahead": config.ahead},
        "policy_kwargs": {
            "net_arch": list(config.hidden),
            "optimizer_kwargs": {"fused": True},  # an update takes a quarter less
        },
        "seed": seed,
        "device": "cpu",  # networks this small are slower on a GPU, and repeat less surely
    }


def train(agent: OffPolicyAlgorithm, episodes: int, steps: int) -> None:
    """Make `episodes` walks of `steps` steps and learn; called again, it goes on, from the start of a walk."""
    _replay(agent)
    env = agent.get_env()
    if env is not None:
        agent.set_env(env)  # has learn() reset it: somebody may have walked it in between
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are small, and one thread sums in the same order on every machine
    try:
        agent.learn(total_timesteps=episodes * steps, reset_num_timesteps=False)
    finally:
        torch.set_num_threads(threads)


def remember(agent: OffPolicyAlgorithm, episode: Sequence[Transition], reward: float) -> None:
    """Put a walk that somebody else made, and its reward, into the replay; it moves the baseline, not the warm-up.

    Raises:
        ValueError: The episode is not done at its last transition and only there, or it is no agent of `make_agent`.

    """
    if [transition.done for transition in episode] != [False] * (len(episode) - 1) + [True]:
        raise ValueError("an episode is done at its last transition and at no other")
    replay = _replay(agent)
    for step in episode:
        seen, action, then = (x[None] for x in (step.observation, step.action, step.next_observation))
        replay.add(seen, then, action, np.array([reward]), np.array([step.done]), [{"executed_action": step.action}])


def _replay(agent: OffPolicyAlgorithm) -> EpisodeReplayBuffer:
    """Return the agent's replay, rid of a walk that was broken off: it must not become part of the next."""
    replay = agent.replay_buffer
    if not isinstance(replay, EpisodeReplayBuffer):
        raise ValueError("the agent is none of make_agent's")  # noqa: TRY004 - what it holds, not what it is
    replay.held.clear()
    return replay


def decay_for(episodes: int, warmup: int, sigma: float, final: float = 0.05) -> float:
    """Return d such that the last episode's noise is `final`: sigma * d^(episodes - warmup - 1) = final; at most 1."""
    decays = episodes - warmup - 1
    return 1.0 if decays < 1 or final >= sigma else float((final / sigma) ** (1 / decays))
