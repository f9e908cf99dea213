"""Budgets on measured latency, here and by a command, through whole runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import pytest

import onnx_amc
from onnx_amc.cli import main
from onnx_amc.compression import Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.envs import ModelEnv
from onnx_amc.errors import BudgetError, OptionError
from onnx_amc.listener import Listener
from onnx_amc.run.latency import Latency, disturbed
from onnx_amc.searching import PACES

MODELS = Path(__file__).parents[1] / "models"
RESNET, MLP = (MODELS / f"digits_{name}.onnx" for name in ("resnet", "mlp"))


def device_in(folder: Path) -> str:
    """A device on which a model takes as many milliseconds as its file has thousands of bytes; it counts how often it is asked.

    When it is hot, a cut model takes 15 % longer.
    """
    script, asked, hot = (folder / name for name in ("device.py", "asked", "hot"))
    script.write_text(
        "import os, sys\n"
        f"open({str(asked)!r}, 'a').write('x')\n"
        "print('warming up')\n"
        "size = os.path.getsize(sys.argv[1])\n"
        f"slower = 1.15 if os.path.exists({str(hot)!r}) and size < {RESNET.stat().st_size} else 1.0\n"
        "print(slower * size / 1000)\n"
    )
    return f"{sys.executable} -I -S {script}"


@pytest.fixture
def device(tmp_path: Path) -> str:
    return device_in(tmp_path)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of runs on such a device: what it takes for a network's layers is measured once for all of them."""
    folder = tmp_path_factory.mktemp("timed")
    return {"latency_command": device_in(folder), "cache": str(folder), "recover": False, "sequential": False}


class Stages(Listener):
    """How many steps each stage was said to have, and which were said to be done; of the last one of a name."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, list[int]]] = {}
        self._done: list[int] = []

    def stage(self, name: str, total: int | None) -> None:
        self._done = []
        self.found[name] = total or 0, self._done

    def advance(self, done: int, note: str = "", total: int | None = None) -> None:
        self._done.append(done)


def times_asked(tmp_path: Path) -> int:
    return len((tmp_path / "asked").read_text())


def test_a_budget_in_time_on_a_device_elsewhere(device: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"latency": 0.6, "latency_command": device, "cache": str(tmp_path / "cache")}
    result = onnx_amc.compress(RESNET, episodes=4, recover=False, **options)
    original = RESNET.stat().st_size
    assert len(result.model.SerializeToString()) <= 0.6 * original, "on that device bytes are time"
    assert len(result.model.SerializeToString()) >= 0.4 * original, "and the budget is made use of"
    measured = result.record["latency_table"]["measured"]
    assert measured == pytest.approx(len(result.model.SerializeToString()) / original, rel=0.01)
    first = times_asked(tmp_path)
    onnx_amc.compress(RESNET, policy="uniform", refit=False, **options)
    assert times_asked(tmp_path) - first < 0.5 * first, "the table is kept; only what is delivered is measured anew"


def test_a_table_that_is_too_kind_costs_no_more_than_what_it_is_off_by(device: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"latency": 0.6, "latency_command": device, "cache": str(tmp_path / "cache")}
    onnx_amc.compress(RESNET, policy="uniform", refit=False, **options)
    (tmp_path / "hot").touch()
    for how in ({"episodes": 4}, {"policy": "knapsack"}):
        result = onnx_amc.compress(RESNET, recover=False, **how, **options)
        share = len(result.model.SerializeToString()) / RESNET.stat().st_size
        assert 1.15 * share <= 0.6
        assert 1.15 * share >= 0.5, "what is replaced because it takes too long is replaced by what takes a little less"


@pytest.mark.parametrize("took", [lambda p: 1.15 * p, lambda p: 0.8 * p, lambda p: 1.6 * p**2, lambda p: 0.2 + 0.5 * p])
def test_a_search_has_the_budget_that_plans_really_take(
    elsewhere: dict[str, Any], monkeypatch: pytest.MonkeyPatch, took: Callable[[float], float]
) -> None:
    settings = Settings(Budget("latency", 0.6), **elsewhere, policy="knapsack")
    run = Compression(RESNET, None, settings, Listener())
    search, space = run.search, run.search.space
    whole = space.price(space.full)
    timed: list[float] = []

    def spent(counts: np.ndarray, *_: object) -> float:
        timed.append(took(space.price(counts) / whole))
        return timed[-1] * whole

    monkeypatch.setattr(search, "spent", spent)
    chosen = search.choose()
    dearest = max(space.price(t.counts) for t in search.journal.trials) / whole
    assert 0.55 < took(dearest) <= 0.6, "no evaluation goes to plans that only the table holds to be fast, or slow"
    assert took(space.price(chosen) / whole) <= 0.6
    assert len(timed) <= PACES + 1, "the plan that is delivered is timed once"
    foretold = run.deliver(chosen).record["latency_table"]["ratio"]
    assert foretold == pytest.approx(took(space.price(chosen) / whole), rel=0.02)


def test_what_is_a_little_too_slow_is_replaced_by_what_lies_a_little_below_it(
    elsewhere: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the table thinks of it: the search may have found it far from where the table's best plan lies."""
    settings = Settings(Budget("latency", 0.6), **elsewhere, episodes=4)
    stages = Stages()
    search = Compression(RESNET, None, settings, stages).search
    space, refused = search.space, list[np.ndarray]()

    def spent(counts: np.ndarray, *_: object) -> float:
        if search.finals and not refused:
            refused.append(counts)
        return space.price(counts) * (1.02 * space.limit / space.price(refused[0]) if refused else 1.0)

    monkeypatch.setattr(search, "spent", spent)
    chosen, slow = search.choose(), refused[0]
    assert space.price(chosen) <= space.price(slow) / 1.02
    tried = [t.counts for t in search.journal.trials if t.source == settings.policy][settings.episodes :]
    assert len(tried) == 2
    assert all((counts <= slow).all() and (counts < slow).any() for counts in tried)
    assert all(0.9 * space.price(slow) < space.price(counts) <= space.price(slow) / 1.02 for counts in tried)
    for name in ("baselines", "search (ddpg)", "smaller plans", "finals"):
        total, done = stages.found[name]
        assert done == list(range(1, total + 1)), name


@pytest.mark.parametrize("policy", ["ddpg", "uniform"])
@pytest.mark.parametrize("really", [0.85, 1.0])
def test_time_that_a_wrong_measurement_would_leave_unused_is_used(
    elsewhere: dict[str, Any], monkeypatch: pytest.MonkeyPatch, really: float, policy: str
) -> None:
    """The plans that move the budget were timed while the machine was busy; what is delivered, when it was not."""
    settings = Settings(Budget("latency", 0.6), **elsewhere, policy=policy, episodes=20)
    stages = Stages()
    run = Compression(RESNET, None, settings, stages)
    search = run.search
    space, timed = search.space, list[np.ndarray]()

    def spent(counts: np.ndarray, _build: object, what: str = "cost") -> float:
        if what == "cost":
            timed.append(counts)
        return (really if what == "cost" else 1.0) * space.price(counts)

    monkeypatch.setattr(search, "spent", spent)
    chosen = search.choose()
    assert really * space.price(chosen) <= space.limit
    if really == 1.0:
        assert len(timed) == 1, "what uses its budget is timed once"
        return
    assert space.price(timed[0]) < space.price(chosen)
    assert search.foretold(chosen) == pytest.approx(really * space.price(chosen) / space.price(space.full))
    if policy == "ddpg":
        assert really * space.price(chosen) > 0.95 * space.limit
        found = max(
            (t for t in search.journal.trials if space.price(t.counts) * really <= space.limit), key=lambda t: t.reward
        )
        assert found.reward > max(t.reward for t in search.journal.trials if space.feasible(t.counts))
        total, done = stages.found["larger plans"]
        assert done == list(range(1, total + 1))


def test_a_larger_plan_that_takes_too_long_after_all_is_not_delivered(
    elsewhere: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(Budget("latency", 0.6), **elsewhere, episodes=8)
    search = Compression(RESNET, None, settings, Listener()).search
    space, timed = search.space, list[np.ndarray]()

    def spent(counts: np.ndarray, _build: object, what: str = "cost") -> float:
        if what == "cost" and not any(np.array_equal(counts, c) for c in timed):
            timed.append(counts)
        first = what == "cost" and np.array_equal(counts, timed[0])
        return space.price(counts) * (0.8 if first else 1.0)

    monkeypatch.setattr(search, "spent", spent)
    chosen = search.choose()
    assert len(timed) > 1
    assert space.price(timed[1]) > space.limit
    assert spent(chosen, None) <= space.limit
    assert search.foretold(timed[0]) == pytest.approx(space.price(timed[0]) / space.price(space.full)), "by other plans"


@pytest.mark.parametrize(
    ("times", "quickest", "said"),
    [
        ([2.0, 1.0, 1.1], 0.5, ""),
        ([5.16, 1.54, 2.9], 0.5, "0.30x by the medians, 0.50x in turn, 0.50x in the quickest runs"),
        ([2.0, 1.0, 1.1], 0.38, "0.50x by the medians, 0.50x in turn, 0.38x in the quickest runs"),
        ([1.0], 0.5, ""),
    ],
)
def test_ratios_that_do_not_agree_are_pointed_out(times: list[float], quickest: float, said: str) -> None:
    found = [Latency(t, r, q) for t, r, q in zip(times, [1.0, 0.5, 0.56], [1.0, quickest, 0.55], strict=False)]
    doubt = disturbed(found) or ""
    assert said in doubt
    assert bool(doubt) == bool(said)


def test_an_environment_delivers_the_plan_that_it_is_asked_for_however_much_time_that_leaves(
    device: str, tmp_path: Path
) -> None:
    """It went looking for a larger one, in the name of an agent that was not there, and delivered that."""
    options: dict[str, Any] = {"latency": 0.8, "latency_command": device, "cache": str(tmp_path)}
    env = gym.make("onnx_amc/ChannelPruning-v0", model=MLP, **options).unwrapped
    assert isinstance(env, ModelEnv)
    env.reset()
    done = False
    while not done:
        _, _, done, _, info = env.step(np.zeros(1, dtype=np.float32))
    for counts in (None, info["counts"]):
        record = env.deliver(counts).record
        assert [g["kept"] for g in record["groups"]] == info["counts"].tolist()
        assert record["latency_table"]["measured"] < 0.7
    assert [t.source for t in env.run.search.journal.trials] == ["environment"]


def test_a_plan_that_was_refitted_is_called_by_whoever_proposed_it_first() -> None:
    found = onnx_amc.compress(MLP, flops=0.5, round_to=48, episodes=2, recover=False)
    first: dict[float, str] = {}
    for tried in found.details["trials"]:
        first.setdefault(tried["ratio"], tried["source"])
    assert [t["source"] for t in found.details["finals"]] == [first[t["ratio"]] for t in found.details["finals"]]


def test_a_policy_in_closed_form_is_one_of_the_baselines_that_are_counted() -> None:
    stages = Stages()
    Compression(RESNET, None, Settings(Budget("flops", 0.5), policy="shallow", recover=False), stages).choose()
    assert stages.found["baselines"] == (2, [1, 2])


@pytest.mark.parametrize("slower", [1.06, 0.94])
def test_the_best_walk_moves_the_budget_for_the_plans_around_it(
    elsewhere: dict[str, Any], monkeypatch: pytest.MonkeyPatch, slower: float
) -> None:
    """The table errs alike on like plans: on what the agent finds otherwise than on the knapsack's."""
    settings = Settings(Budget("latency", 0.6), **elsewhere, episodes=20)
    search = Compression(RESNET, None, settings, Listener()).search
    space = search.space

    def spent(counts: np.ndarray, *_: object) -> float:
        walked = any(t.source == settings.policy for t in search.journal.trials)
        return (slower if walked else 1.0) * space.price(counts)

    monkeypatch.setattr(search, "spent", spent)
    chosen = search.choose()
    tried = [t for t in search.journal.trials if t.source == settings.policy]
    walks, near = tried[:12], tried[12:20]
    assert max(slower * space.price(t.counts) for t in near) <= space.limit
    assert slower * space.price(chosen) <= space.limit
    assert search.foretold(chosen) == pytest.approx(slower * space.price(chosen) / space.price(space.full))
    dearest = max(space.price(t.counts) for t in near) / max(space.price(t.counts) for t in walks)
    assert dearest > 1 if slower < 1 else dearest < 1


def test_a_device_that_is_faster_with_nothing_cannot_be_pleased(tmp_path: Path) -> None:
    script = tmp_path / "stubborn.py"
    script.write_text("print(5.0)\n")
    with pytest.raises(BudgetError, match="latency"):
        onnx_amc.compress(
            MLP,
            latency=0.5,
            latency_command=f"{sys.executable} {script}",
            cache=str(tmp_path),
            policy="uniform",
            refit=False,
        )


def test_where_no_measurement_can_be_kept_it_is_said_before_any_is_taken(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    command = ["compress", str(MLP), "--latency", "0.7", "--policy", "uniform", "--no-refit", "--no-recover"]
    command += ["--latency-command", device, "-o", str(tmp_path / "out.onnx")]
    assert main([*command, "--cache", str(tmp_path / "file" / "inside")]) == 2
    assert "--cache" in capsys.readouterr().err
    assert not (tmp_path / "asked").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(command) == 0
    assert "measurements are not kept" in " ".join(capsys.readouterr().err.split())


def test_a_run_that_goes_on_beside_a_new_table_keeps_the_shares_that_were_measured(device: str, tmp_path: Path) -> None:
    """What all of it takes may be another number of milliseconds by then."""
    settings = Settings(
        Budget("latency", 0.6), latency_command=device, cache=str(tmp_path), recover=False, policy="uniform"
    )
    search = Compression(MLP, None, settings, Listener()).search
    counts, whole = search.space.at(0.5), search.space.price(search.space.full)
    search.actual = lambda _: 0.25 * whole
    assert search.spent(counts, onnx.ModelProto) == pytest.approx(0.25 * whole)
    search.space = replace(search.space, prices=lambda plans: 2 * plans.sum(axis=1) * 10**6)
    assert search.spent(counts, onnx.ModelProto) == pytest.approx(0.25 * search.space.price(search.space.full))
    assert search.taken(counts) == pytest.approx(0.25)


def test_what_the_command_says_wrong_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.onnx"
    command = ["compress", str(MLP), "--latency", "0.5", "-o", str(out), "--cache", str(tmp_path)]
    assert main([*command, "--latency-command", "no-such-program"]) == 2
    message = capsys.readouterr().err
    assert "no-such-program" in message
    assert "Traceback" not in message
    assert not out.exists()


def broad() -> onnx.ModelProto:
    """Three convolutions of so many channels that they are what takes time, whatever block a processor works in."""
    rng, shapes = np.random.default_rng(0), {"a": (128, 3, 3, 3), "b": (128, 128, 3, 3), "c": (4, 128, 3, 3)}
    weights = {n: (rng.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in shapes.items()}
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N,3,24,24] x) => (float[N,4,18,18] y) {
            h = Conv (x, a)
            r = Relu (h)
            k = Conv (r, b)
            s = Relu (k)
            y = Conv (s, c)
        }""")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


def test_latency_here_is_measured_and_foretold(tmp_path: Path) -> None:
    settings = Settings(Budget("latency", 0.8), policy="uniform", refit=False, cache=str(tmp_path), threads=1)
    run = Compression(broad(), None, settings, Listener())
    space = run.search.space
    assert run.table is not None
    assert space.price(space.smallest) < 0.8 * space.price(space.full), "a fifth of the channels takes less time"
    assert (np.diff([space.price(space.counts(np.minimum(i, space.indices(space.full)))) for i in range(8)]) >= 0).all()
    assert len(list(tmp_path.glob("latency-*.json"))) == 1
    again = run.again(budget=Budget("latency", 0.9))
    assert again.table is run.table
    result = again.deliver(again.choose())
    onnx.checker.check_model(result.model)
    assert result.record["compressed"]["latency_ratio"] < 1.0
    assert result.record["latency_table"]["ratio"] <= 0.9
    other = run.again(budget=Budget("flops", 0.9))
    assert "latency_table" not in other.deliver(other.choose()).record, "a run within MACs has no prices of time"


def test_the_reward_can_count_time(tmp_path: Path, device: str) -> None:
    settings = Settings(
        Budget("flops", 0.5), reward="latency", latency_command=device, cache=str(tmp_path), recover=False
    )
    run = Compression(MLP, None, settings, Listener())
    counts = run.search.space.at(0.4)
    tried = run.search.journal.ask(counts, "test")
    assert tried.reward == pytest.approx(-tried.error * np.log(run.units.prices["latency"](counts[None])[0]))


def test_zeros_save_no_time() -> None:
    with pytest.raises(OptionError, match="multiplies by zeros too"):
        onnx_amc.compress(MLP, latency=0.5, granularity="weight")
