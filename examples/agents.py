"""Any Stable-Baselines3 algorithm on the environment, untouched, and its best plan delivered as `compress` delivers its own.

python examples/agents.py MODEL.onnx --flops 0.5 [--data DATA] [--algorithm ppo] [--episodes 40] [-o small.onnx]
python examples/agents.py MODEL.onnx --granularity weight --params 0.3 --algorithm random
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, cast

import gymnasium as gym
from stable_baselines3 import DDPG, PPO, SAC, TD3

import onnx_amc.envs  # registers the ids

ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpg": (DDPG, {"learning_starts": 20, "gamma": 1.0}),
    "td3": (TD3, {"learning_starts": 20, "gamma": 1.0}),
    "sac": (SAC, {"learning_starts": 20, "gamma": 1.0}),
    "ppo": (PPO, {"n_steps": 32, "batch_size": 32, "gamma": 1.0}),
}


def learn(env: gym.Env[Any, Any], algorithm: str, episodes: int, seed: int, log: str | None) -> None:
    """Train an agent of Stable-Baselines3 for so many episodes."""
    make, options = ALGORITHMS[algorithm]
    agent = make("MlpPolicy", env, seed=seed, device="cpu", tensorboard_log=log, **options)
    agent.learn(episodes * env.get_wrapper_attr("steps"))


def random(env: gym.Env[Any, Any], episodes: int, seed: int) -> None:
    """An agent in ten lines: uniform actions."""
    env.reset(seed=seed)
    env.action_space.seed(seed)
    for _ in range(episodes):
        env.reset()
        done = False
        while not done:
            _, _, done, _, _ = env.step(env.action_space.sample())


def main() -> int:
    """Search, deliver the best plan, and print what it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--granularity", choices=["channel", "weight"], default="channel")
    parser.add_argument("--flops", type=float)
    parser.add_argument("--params", type=float)
    parser.add_argument("--algorithm", choices=[*ALGORITHMS, "random"], default="ppo")
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tensorboard", metavar="DIR")
    parser.add_argument("-o", "--out", default="small.onnx")
    args = parser.parse_args()
    env = gym.make(
        f"onnx_amc/{args.granularity.title()}Pruning-v0", model=args.model, data=args.data, flops=args.flops,
        params=args.params, seed=args.seed, render_mode="ansi",
    )  # fmt: skip
    if args.algorithm == "random":
        random(env, args.episodes, args.seed)
    else:
        learn(env, args.algorithm, args.episodes, args.seed, args.tensorboard)
    walk = cast("onnx_amc.envs.ModelEnv", env.unwrapped)
    print(f"best of {len(walk.run.search.journal.trials)} episodes: {walk.best.score:.4f}")
    result = walk.deliver()
    result.save(args.out)
    print(result.record["compressed"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
