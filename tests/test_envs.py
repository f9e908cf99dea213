"""The environments as researchers use them: registered, checked, drawn, shared, trained on by agents that know nothing of us."""

from __future__ import annotations

import importlib.util
import math
import pickle
import runpy
import sys
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import pytest
import torch
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_sb3
from stable_baselines3.common.vec_env import DummyVecEnv
from threadpoolctl import threadpool_limits

import onnx_amc
from onnx_amc.envs import ModelEnv
from onnx_amc.errors import BudgetError, OptionError
from onnx_amc.listener import Listener
from onnx_amc.rundir import Memo
from onnx_amc.search.agent import AgentConfig, make_agent, save_agent
from onnx_amc.search.env import PruningEnv
from onnx_amc.search.journal import Tried
from onnx_amc.search.space import Space
from onnx_amc.search.state import LayerFacts

ROOT = Path(__file__).parents[1]
MOBILE, MLP = (ROOT / "models" / f"digits_{name}.onnx" for name in ("mobilenet", "mlp"))
IDS: dict[str, tuple[str, dict[str, Any]]] = {
    "channel": ("onnx_amc/ChannelPruning-v0", {"flops": 0.5}),
    "weight": ("onnx_amc/WeightPruning-v0", {"params": 0.3}),
}


def made(granularity: str, model: Path = MLP, **options: Any) -> ModelEnv:
    name, budget = IDS[granularity]
    env = gym.make(name, model=model, **budget, **options).unwrapped
    assert isinstance(env, ModelEnv)
    return env


def walked(env: gym.Env[Any, Any], ratio: float) -> dict[str, Any]:
    env.reset()
    done = False
    while not done:
        _, reward, done, _, info = env.step(np.array([ratio], dtype=np.float32))
    return {**info, "reward": reward}


@pytest.mark.parametrize("granularity", IDS)
def test_both_checkers_pass(granularity: str) -> None:
    env = made(granularity)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of actions that are not symmetric: a kept ratio is not
        check_gymnasium(env)  # makes others too, of each render mode
        check_sb3(env)


@pytest.mark.parametrize("granularity", IDS)
def test_the_end_of_an_episode_says_what_the_plan_is_worth(granularity: str) -> None:
    env = made(granularity)
    info = walked(env, 0.4)
    assert info["ratio"] <= env.run.settings.budget.ratio
    assert info["reward"] == pytest.approx(info["score"] - 1 - 4 * min(info["loss"], 1))
    result = env.deliver(info["counts"])
    onnx.checker.check_model(result.model)
    assert [g["kept"] for g in result.record["groups"]] == info["counts"].tolist()


def test_the_plan_is_drawn_as_text_and_as_a_picture() -> None:
    env = made("channel", render_mode="ansi")
    env.reset()
    env.step(np.array([0.5], dtype=np.float32))
    first, *others, last = str(env.render()).splitlines()
    assert first.count("█") == round(40 * env.counts[0] / env.space.full[0])
    assert all("?" in line for line in others)
    assert last.endswith("of the MACs")
    picture = ModelEnv(env.run, "rgb_array")
    picture.reset()
    before = picture.render()
    picture.step(np.array([0.5], dtype=np.float32))
    after = picture.render()
    assert isinstance(before, np.ndarray)
    assert isinstance(after, np.ndarray)
    assert after.dtype == np.uint8
    assert after.shape == before.shape == (12 * len(env.space), 320, 3)
    assert (after[:12] != before[:12]).any()
    assert (after[12:] == before[12:]).all()
    assert ModelEnv(env.run).render() is None
    with pytest.raises(ValueError, match="render_mode"):
        ModelEnv(env.run, "human")


def test_environments_share_a_run_and_what_plans_scored() -> None:
    class Heard(Listener):
        def __init__(self) -> None:
            self.trials: list[Tried] = []

        def tried(self, tried: Tried) -> None:
            self.trials.append(tried)

    heard = Heard()
    first = made("channel", listener=heard)
    many = DummyVecEnv([lambda: gym.make(IDS["channel"][0], run=first.run) for _ in range(3)])
    many.reset()
    for _ in range(first.steps):
        many.step(np.full((3, 1), 0.5, dtype=np.float32))
    assert len(heard.trials) == 3 == len(first.run.search.journal.trials)
    assert len(first.run.search.journal.seen) == 1, "the same plan is evaluated once"
    assert heard.trials[0].reward == first.best.reward


def test_gymnasium_makes_many_at_once() -> None:
    name, budget = IDS["channel"]
    many = gym.make_vec(name, num_envs=2, vectorization_mode="sync", model=MLP, **budget)
    observation, _ = many.reset(seed=0)
    assert observation.shape == (2, 11)
    for _ in range(2):
        observation, rewards, *_ = many.step(np.full((2, 1), 0.5, dtype=np.float32))
    assert rewards.shape == (2,)
    many.close()


def test_an_untouched_ppo_trains_and_its_best_plan_is_delivered(tmp_path: Path) -> None:
    env = made("channel", MOBILE)
    agent = PPO("MlpPolicy", env, n_steps=2 * env.steps, batch_size=env.steps, seed=0, device="cpu")
    before = [p.detach().clone() for p in agent.policy.parameters()]
    agent.learn(6 * env.steps)
    assert any((a != b).any() for a, b in zip(before, agent.policy.parameters(), strict=True))
    assert len(env.run.search.journal.trials) == 6
    result = env.deliver()
    result.save(tmp_path / "small.onnx")
    assert result.record["compressed"]["macs"] <= 0.5 * result.record["original"]["macs"]
    assert [g["kept"] for g in result.record["groups"]] == env.best.counts.tolist()
    assert env.best.reward == max(t.reward for t in env.run.search.journal.trials)


def test_what_an_environment_delivers_is_replayed_to_the_same_bytes() -> None:
    """Whatever BLAS does in the caller's process; and the record says whose plan it is."""
    with threadpool_limits(limits=2, user_api="blas"):
        env = made("channel", MOBILE)
        for ratio in (0.3, 0.6):
            walked(env, ratio)
        result = env.deliver()
        again = onnx_amc.apply(MOBILE, result.plan)
    assert again.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    record, trials = result.record, env.run.search.journal.trials
    assert (record["policy"], record["delivered"], record["episodes"]) == ("environment", "environment", 2)
    assert record["rewards"] == [t.reward for t in trials]
    assert record["rewards"][record["best_episode"]] == env.best.reward
    walked(env, 0.5)
    assert len(result.trials) == 2 < len(trials), "what it goes on to try is no part of the result"


def test_a_plan_whose_model_turns_out_too_dear_is_replaced_only_where_none_was_asked_for() -> None:
    env = gym.make(IDS["channel"][0], model=MLP, size=0.5).unwrapped
    assert isinstance(env, ModelEnv)
    counts, search = walked(env, 0.4)["counts"], env.run.search
    limit, dear = search.space.limit, env.deliver(counts).model.ByteSize()
    search.memo = Memo()
    search.actual = lambda model: limit + 1 if model.ByteSize() >= dear else model.ByteSize()
    with pytest.raises(BudgetError, match="the plan costs"):
        env.deliver(counts)
    record = env.deliver().record
    assert record["compressed"]["bytes"] < dear
    assert record["delivered"] == "environment"
    assert {t.source for t in search.journal.trials} == {"environment"}


def test_what_was_delivered_stays_what_it_was() -> None:
    env = made("channel")
    info = walked(env, 0.4)
    first = env.deliver()
    before = deepcopy(first.record)
    env.deliver(info["counts"])
    assert first.record == before


def test_what_is_no_setting_is_called_so() -> None:
    with pytest.raises(TypeError, match="round_two"):
        made("channel", round_two=3)
    with pytest.raises(TypeError, match="budget"):
        made("channel", budget=0.5)


def test_what_an_environment_does_not_know_it_says() -> None:
    env = made("channel")
    full = env.space.full
    for wrong in (env.deliver, lambda: env.best):
        with pytest.raises(OptionError, match="no episode has ended"):
            wrong()
    for counts in (full[:1], full + 1, 0 * full, 0.5 * full):
        with pytest.raises(OptionError, match="no whole numbers from"):
            env.deliver(counts)
    with pytest.raises(BudgetError, match=r"100\.0% of the MACs"):
        env.deliver(full)
    walked(env, 0.4)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.array([0.5], dtype=np.float32))
    for setting in (
        {"max_drop": 1.0},
        {"ray": "auto"},
        {"save_agent": "a.npz"},
        {"policy": "uniform"},
        {"finalists": 5},
    ):
        with pytest.raises(OptionError, match=f"does not heed {next(iter(setting))}"):
            gym.make(IDS["channel"][0], model=MLP, flops=0.5, **setting)
    for beside in ({"shaping": 0.0}, {"flops": 0.5}, {"max_drop": 1.0}, {"model": MLP}):
        with pytest.raises(OptionError, match=f"{next(iter(beside))} beside the run"):
            gym.make(IDS["channel"][0], run=env.run, **beside)
    with pytest.raises(OptionError, match="of channels, this one is of weights"):
        gym.make(IDS["weight"][0], run=env.run)
    kept = made("channel", keep=("/1/Gemm",))
    with pytest.raises(OptionError, match="no whole numbers from"):
        kept.deliver(kept.space.smallest - 1)
    alone = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y) '
        "<float[2,2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"
    )
    with pytest.raises(OptionError, match="nothing to decide"):
        gym.make(IDS["channel"][0], model=alone, flops=1.0)


def test_the_error_of_the_outputs_counts_as_much_as_wanted() -> None:
    info = walked(made("channel", shaping=0.0), 0.4)
    assert info["loss"] > 0
    assert info["reward"] == pytest.approx(info["score"] - 1)


@pytest.mark.parametrize("shaping", [-1.0, math.nan, math.inf, "4"])
def test_a_weight_of_the_error_that_is_none_is_refused(shaping: object) -> None:
    with pytest.raises(OptionError, match="is no weight"):
        made("channel", shaping=shaping)


@pytest.mark.parametrize("action", [[math.nan], [], [0.2, 0.5], None], ids=str)
def test_what_is_no_action_decides_nothing(action: object) -> None:
    """NaN comes from an agent that has diverged; it was the smallest level once."""
    env = made("channel")
    env.reset()
    with pytest.raises(gym.error.InvalidAction):
        env.step(action)  # type: ignore[arg-type]
    assert env.counts.tolist() == env.space.full.tolist()
    for beyond, end in ((np.inf, -1), (-np.inf, 0)):
        env.reset()
        bound = min(range(len(env.space.levels[0]))[end], env.space.highest(env.counts, 0))
        env.step(np.array([beyond], dtype=np.float32))
        assert env.counts[0] == env.space.levels[0][bound]


@pytest.mark.parametrize(
    "options",
    [["--algorithm", "random", "--flops", "0.5"], ["--algorithm", "sac", "--granularity", "weight", "--params", "0.3"]],
)
def test_the_example_runs(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["agents.py", str(MLP), "--episodes", "5", *options, "-o", str(tmp_path / "small.onnx")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(ROOT / "examples" / "agents.py"), run_name="__main__")
    assert "best of 5 episodes" in capsys.readouterr().out
    onnx.checker.check_model(onnx.load(tmp_path / "small.onnx"))


# ---- rewards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reward", "granularity"), [("flops", "channel"), ("params", "channel"), ("size", "weight")])
def test_the_papers_rewards_of_guaranteed_accuracy(reward: str, granularity: str) -> None:
    """R = -Error log(cost), the error as the search sees it."""
    env = made(granularity, reward=reward)
    info = walked(env, 0.4)
    cost = env.run.units.prices[reward](info["counts"][None])[0]
    error = 1 - info["score"] + 4 * min(info["loss"], 1)
    assert info["reward"] == pytest.approx(-error * math.log(cost))


def test_a_reward_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "def good(score, loss, left): return score - left['flops']\n"
        "def bad(score, loss, left): return left['nothing']\n"
        "def odd(score, loss, left): return float('nan')\n"
        "def vast(score, loss, left): return -1e30\n"
    )
    monkeypatch.chdir(tmp_path)
    info = walked(made("channel", reward="mine:good"), 0.4)
    assert info["reward"] == pytest.approx(info["score"] - info["ratio"])
    with pytest.raises(OptionError, match="counts the error of the outputs as it likes"):
        made("channel", reward="mine:good", shaping=1.0)
    for name, said in (("bad", "KeyError: 'nothing'"), ("odd", "returned nan"), ("vast", r"returned -1e\+30")):
        with pytest.raises(OptionError, match=said):
            walked(made("channel", reward=f"mine:{name}"), 0.4)
    for name in ("mine:nothing", "unknown"):
        with pytest.raises(OptionError):
            made("channel", reward=name)


@pytest.mark.parametrize("setting", ["reward", "metric"])
def test_a_function_itself_is_no_name_of_one(setting: str) -> None:
    given: dict[str, Any] = {setting: lambda *_: 0.0}
    with pytest.raises(OptionError, match=f"unknown {setting}.*\n.*or module:function"):
        made("channel", **given)


@pytest.mark.parametrize(("reward", "granularity"), [("flops", "channel"), ("size", "weight")])
def test_results_of_any_reward_can_be_pickled(reward: str, granularity: str) -> None:
    env = made(granularity, reward=reward)
    walked(env, 0.4)
    result = env.deliver()
    again = pickle.loads(pickle.dumps(result))
    assert [t.reward for t in again.trials] == [t.reward for t in result.trials] == result.record["rewards"]


def test_a_cost_that_the_granularity_does_not_know_is_refused() -> None:
    with pytest.raises(OptionError, match="--reward: zeros save no flops"):
        made("weight", reward="flops")


# ---- agents that move -----------------------------------------------------------------------------------------------


def test_an_agent_trained_on_one_network_begins_on_another(tmp_path: Path) -> None:
    kept = str(tmp_path / "agent.npz")
    options: dict[str, Any] = {"flops": 0.5, "episodes": 6, "recover": False, "policy": "td3"}
    onnx_amc.compress(MOBILE, save_agent=kept, **options)
    with np.load(kept, allow_pickle=False) as file:
        assert {"actor.mu.0.weight", "critic.qf0.0.weight"} <= set(file.files)
    moved, fresh = (onnx_amc.compress(MLP, agent=agent, **options) for agent in (kept, None))
    assert moved.record["rewards"] != fresh.record["rewards"]
    for policy, path, said in (
        ("ddpg", kept, "holds other networks"),
        ("td3", str(tmp_path / "none.npz"), "cannot be read"),
    ):
        with pytest.raises(OptionError, match=said):
            onnx_amc.compress(MLP, agent=path, **options | {"policy": policy})


def test_what_is_no_agent_is_refused_before_anything_else(tmp_path: Path) -> None:
    def refused(path: str, policy: str, said: str) -> None:
        with pytest.raises(OptionError, match=said):
            onnx_amc.compress("nowhere.onnx", flops=0.5, agent=path, policy=policy)

    space = Space(("a",), (np.arange(1, 9),), lambda plans: plans[:, 0], 8)
    env = PruningEnv(space, [LayerFacts(8, 8, 1, 1, 1, 1, 64)], lambda _counts: 0.0)
    agent, kept = make_agent(env, "ddpg", AgentConfig(), 0), str(tmp_path / "agent.npz")
    save_agent(agent, kept)
    refused(kept, "sac", "it holds other networks")
    refused(str(tmp_path / "none.npz"), "ddpg", "cannot be read")
    with torch.no_grad():
        next(agent.policy.parameters()).fill_(math.nan)
    save_agent(agent, kept)
    refused(kept, "ddpg", "it holds NaN or infinity")


def test_a_pickle_in_place_of_an_agent_is_not_executed(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    path = tmp_path / "agent.npz"
    np.savez(path, weight=np.array([Canary()], dtype=object))
    with pytest.raises(OptionError, match="cannot be read"):
        onnx_amc.compress(MLP, flops=0.5, episodes=4, recover=False, agent=str(path))
    assert not (tmp_path / "executed").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="TensorBoard is not installed")
def test_the_training_is_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    onnx_amc.compress(MLP, flops=0.5, episodes=20, recover=False, tensorboard=str(tmp_path))
    log = EventAccumulator(str(tmp_path))
    log.Reload()
    assert {"rollout/ep_rew_mean", "train/critic_loss"} <= set(log.Tags()["scalars"])
    assert all(mean.value < 0 for mean in log.Scalars("rollout/ep_rew_mean")), "rewards, not what stands for them"


def test_a_log_that_cannot_be_had_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Listener, "stage", lambda *_: pytest.fail("it has begun"))
    (tmp_path / "file").touch()
    monkeypatch.setattr("onnx_amc.search.loop.find_spec", lambda _name: True)
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OptionError, match="cannot be written"):
            onnx_amc.compress(MLP, flops=0.5, tensorboard=str(folder))
    monkeypatch.setattr("onnx_amc.search.loop.find_spec", lambda _name: None)
    with pytest.raises(OptionError, match="TensorBoard is not installed"):
        onnx_amc.compress(MLP, flops=0.5, tensorboard=str(tmp_path / "log"))
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("option", ["agent", "save_agent", "tensorboard"])
def test_a_policy_without_an_agent_has_none_to_keep(option: str) -> None:
    with pytest.raises(OptionError, match="has no agent"):
        onnx_amc.compress(MLP, flops=0.5, policy="knapsack", **{option: "somewhere"})  # type: ignore[arg-type]
