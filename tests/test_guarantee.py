"""A drop that is guaranteed, and several budgets from one run."""

from __future__ import annotations

import json
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from scipy import stats

import onnx_amc
from onnx_amc import guarantee, pipeline
from onnx_amc.cli import main
from onnx_amc.compression import STAGES, Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.errors import BudgetError, OptionError
from onnx_amc.guarantee import between, drop_of
from onnx_amc.listener import Listener
from onnx_amc.run.score import Score

MODELS = Path(__file__).parents[1] / "models"
RESNET, MLP = (MODELS / f"digits_{name}.onnx" for name in ("resnet", "mlp"))


def scored(*values: float) -> Score:
    return Score(float(np.mean(values)), 0.0, tuple(v for value in values for v in (value, 0.0)))


def test_the_interval_is_that_of_the_paired_differences() -> None:
    before, after = [0.9, 0.8, 0.85, 0.95], [0.88, 0.79, 0.85, 0.9]
    drop = drop_of(scored(*after), scored(*before), 4_000)
    wanted = stats.ttest_rel(before, after).confidence_interval(0.95)
    assert (drop.low, drop.high) == pytest.approx((100 * wanted.low, 100 * wanted.high))
    assert drop.points == pytest.approx(2.0)
    assert drop_of(scored(*after), scored(*before), 4_000, unit=100.0).high == pytest.approx(drop.high / 100)
    assert drop_of(Score(0.5, 0.0), Score(0.6, 0.0), 3).high == np.inf, "without parts nothing is known of it"


def test_no_difference_in_few_samples_is_not_none_at_all() -> None:
    """Of 250 samples without an error up to 1.2 % of all may be wrong, at 95 %."""
    same = scored(0.9, 0.8, 0.85)
    drop = drop_of(same, same, 250)
    assert (drop.low, drop.points, drop.high) == pytest.approx((-1.2, 0.0, 1.2))
    assert drop_of(same, same, 250, unit=100.0).high == 0.0, "of decibels it says nothing"


@pytest.mark.parametrize("reduce", ["flops", "params"])
def test_the_smallest_network_within_the_drop(reduce: str, tmp_path: Path) -> None:
    kept = tmp_path / "agent.npz"
    result = onnx_amc.compress(MLP, max_drop=1.5, reduce=reduce, episodes=6, recover=False, save_agent=str(kept))
    assert kept.exists(), "an agent is no matter of the plans in closed form that come first"
    record = result.record
    told, measure = record["max_drop"], {"flops": "macs", "params": "params"}[reduce]
    assert told["points"] <= 1.5
    assert told["interval"][0] <= told["points"] <= told["interval"][1]
    assert record["compressed"][measure] <= told["uniform"] * record["original"][measure]
    assert record["compressed"][measure] < 0.9 * record["original"][measure]
    assert (record["policy"], record["episodes"]) == ("ddpg", 6), "what was asked for, whoever found it"


def test_the_drop_is_measured_where_the_search_does_not_look() -> None:
    settings = Settings(Budget("flops", 1.0), max_drop=1.0, recover=False, trial=60)
    run = Compression(RESNET, None, settings, Listener())
    found = guarantee.Guarantee(run, 1.0).judge
    assert run.scorer is not None
    assert run.trial is not None
    assert found is not None
    assert not set(found.index) & set(run.trial.index)
    assert set(found.index) | set(run.trial.index) == set(run.scorer.index)
    fresh = type(run.scorer)(
        run.model.original, run.scorer.data, found.index, run.scorer.metric, run.scorer.name, parts=run.scorer.parts
    )
    assert found.original == fresh.original, "what it takes from the other scorer is what it would have found itself"


def test_no_drop_at_all_may_leave_the_network_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarantee.Guarantee, "_holds", lambda *_: False)
    result = onnx_amc.compress(MLP, max_drop=0.0, episodes=3, recover=False)
    assert result.record["compressed"]["macs"] == result.record["original"]["macs"]
    assert result.record["max_drop"]["points"] == 0


def test_with_training_the_drop_is_that_of_the_trained_network(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = place / "digits_mlp.onnx"
    options = ["--max-drop", "2", "--episodes", "3", "--recover-epochs", "2"]
    assert main(["compress", str(model), *options]) == 0
    assert "points of 2 allowed" in capsys.readouterr().out
    record = json.loads((place / "digits_mlp.amc.run" / "record.json").read_text())
    assert record["recover"]["epochs"] == 2
    assert record["max_drop"]["points"] <= 2
    assert 1 <= len(record["max_drop"]["trained"]) <= guarantee.TRAININGS
    again = place / "again.onnx"
    assert main(["apply", str(model), str(place / "digits_mlp.amc.run" / "plan.json"), "-o", str(again)]) == 0
    assert again.read_bytes() == (place / "digits_mlp.amc.onnx").read_bytes()


@pytest.mark.parametrize(
    ("held", "missed", "expected"),
    [
        ((0.6, 0.5), (0.4, 1.5), 0.5),
        ((0.6, 0.5), (0.4, 10.5), 0.6 - 0.1 * 0.2),
        ((0.6, 0.0), (0.4, 1.01), 0.4 + 0.1 * 0.2),
        ((1.0, 0.0), (0.5, 1.25), 0.6),
    ],
)
def test_the_next_ratio_is_where_the_drop_should_be_what_is_allowed(
    held: tuple[float, float], missed: tuple[float, float], expected: float
) -> None:
    assert between(held, missed, 1.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("start", "expected"),
    [(0.6 / 0.7, [0.6, 0.42, 0.516]), (0.45 / 0.7, [0.45, 0.5464, 0.5046]), (0.56, [0.392, 0.476, 0.518])],
    ids=["holds at once", "holds at the second", "holds at the last"],
)
def test_trainings_close_in_on_the_drop(start: float, expected: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Compression(MLP, None, Settings(Budget("flops", 1.0), max_drop=1.0, episodes=1, recover_epochs=1), Listener())
    found = guarantee.Guarantee(run, 1.0)
    asked: list[float] = []

    def known(self: guarantee.Guarantee, _model: onnx.ModelProto) -> guarantee.Drop:
        asked.append(self.runs[-1].settings.budget.ratio)
        return guarantee.Drop(1 / asked[-1] - 1, 0.0, 0.0, 1)

    monkeypatch.setattr(guarantee.Guarantee, "_drop", known)
    best = found._trained(start)
    assert best is not None
    assert asked == pytest.approx(expected, abs=1e-3)
    assert [t[0] for t in found.trainings] == asked
    smallest = min(ratio for ratio, points in found.trainings if points <= 1.0)
    assert best[1].points == pytest.approx(1 / smallest - 1), "the smallest that holds"


@pytest.mark.parametrize(
    "wrong",
    [{"max_drop": -1.0}, {"max_drop": 100.0}, {"max_drop": 1.0, "flops": 0.5}, {"max_drop": 1.0, "reduce": "time"}],
)
def test_impossible_drops(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        onnx_amc.compress(MLP, **wrong)


def test_what_zeros_do_not_reduce_is_refused_by_the_name_that_was_given() -> None:
    with pytest.raises(OptionError, match=r"--reduce flops.*\n.*--reduce params"):
        onnx_amc.compress(MLP, max_drop=1.0, granularity="weight")


def test_a_drop_of_just_what_is_allowed_holds() -> None:
    """100 (0.97 - 0.96) is a little more than 1."""
    drop = drop_of(Score(0.96, 0.0), Score(0.97, 0.0), 100)
    assert drop.points > 1.0
    assert drop.within(1.0)
    assert not drop.within(0.999)


@pytest.mark.parametrize("policy", ["shallow", "deep", "uniform", "knapsack"])
def test_the_policy_that_was_asked_for_proposes_the_plan(policy: str) -> None:
    result = onnx_amc.compress(MLP, max_drop=3.0, policy=policy, round_to=1, recover=False, trial=100)
    assert result.record["policy"] == result.record["delivered"] == policy
    assert result.record["compressed"]["macs"] < result.record["original"]["macs"]


def test_few_samples_say_nothing_of_how_sure_it_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(place / "digits_mlp.npz") as file:
        np.savez(place / "few.npz", **{k: v[:120] if len(v) == 500 else v for k, v in file.items()})
    options = ["--data", str(place / "few.npz"), "--max-drop", "3", "--policy", "uniform", "--no-recover"]
    assert main(["compress", str(place / "digits_mlp.onnx"), *options, "--json", "-"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out, parse_constant=pytest.fail)["max_drop"]["interval"] is None
    assert "how sure is not known" in shown.err
    assert main(["report", str(place / "digits_mlp.amc.run")]) == 0


def test_without_data_samples_are_made_up_to_hold_the_drop_against(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bare.onnx").write_bytes(MLP.read_bytes())
    options = ["--max-drop", "5", "--policy", "uniform", "--no-refit", "--json", str(tmp_path / "told.json")]
    assert main(["compress", str(tmp_path / "bare.onnx"), *options]) == 0
    assert "no data" in capsys.readouterr().err
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["max_drop"]["samples"] > 0
    assert told["compressed"]["macs"] < told["original"]["macs"]


def test_a_ratio_that_cannot_be_had_in_time_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of times promises what the clock does not confirm."""
    run = Compression(MLP, None, Settings(Budget("flops", 1.0), max_drop=1.5, episodes=3, recover=False), Listener())
    plain = Compression.choose

    def choose(self: Compression) -> np.ndarray:
        if self.settings.budget.ratio < 0.7:
            raise BudgetError(
                "the best plan's model costs 1.1 of what is allowed", where="--latency", fix="ask for more"
            )
        return plain(self)

    monkeypatch.setattr(Compression, "choose", choose)
    result = guarantee.Guarantee(run, 1.5).result()
    ratio = result.record["compressed"]["macs"] / result.record["original"]["macs"]
    assert 0.5 < ratio < 1
    assert result.record["max_drop"]["points"] <= 1.5


def test_a_ratio_that_no_plan_of_its_run_can_meet_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The levels of a run may not go as far as its budget, which is found when the run is made."""
    run = Compression(MLP, None, Settings(Budget("flops", 1.0), max_drop=1.5, policy="uniform"), Listener())
    plain = Compression.again

    def again(self: Compression, **changes: Any) -> Compression:
        if changes["budget"].ratio < 0.7:
            raise BudgetError("0.5 of the MACs cannot be reached", where="--flops", fix="ask for more")
        return plain(self, **changes)

    monkeypatch.setattr(Compression, "again", again)
    result = guarantee.Guarantee(run, 1.5).result()
    assert 0.5 < result.record["compressed"]["macs"] / result.record["original"]["macs"] < 1


@pytest.mark.parametrize("reduce", ["params", "size"])
def test_the_smallest_network_of_single_weights_beside_one_that_is_kept(reduce: str) -> None:
    """What is trained first is the smallest there is."""
    how: dict[str, Any] = {"granularity": "weight", "keep": ("3.weight",), "policy": "uniform", "recover_epochs": 1}
    told = onnx_amc.compress(MLP, max_drop=20, reduce=reduce, recover=True, **how).record["max_drop"]
    assert told["trained"]
    untrained = how | {"recover": False, "recover_epochs": None}
    settings = Settings(Budget(reduce, 1.0), max_drop=20.0, refit=False, **untrained)
    run = Compression(MLP, None, settings, Listener())
    least = guarantee.Guarantee(run, 20.0).least
    space = run.again(budget=Budget(reduce, least)).search.space
    assert space.price(space.smallest) <= space.limit < space.price(space.smallest) + 2


def test_the_whole_network_meets_any_budget_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured against itself it may seem a little slower."""
    monkeypatch.setattr("onnx_amc.compression.ratio_of", lambda *_: lambda _model: 1.002)
    monkeypatch.setattr(guarantee.Guarantee, "_holds", lambda *_: False)
    result = onnx_amc.compress(MLP, max_drop=0.0, reduce="latency", episodes=3, recover=False)
    assert result.record["compressed"]["macs"] == result.record["original"]["macs"]


def test_the_seconds_are_those_of_all_its_searches_and_trainings() -> None:
    began = time.perf_counter()
    record = onnx_amc.compress(MLP, max_drop=1.0, policy="knapsack", recover_epochs=1).record
    taken, seconds = time.perf_counter() - began, record["seconds"]
    assert record["max_drop"]["trained"]
    assert 0.8 * taken < seconds["total"] <= taken
    assert min(seconds[name] for name in ("analyse", "calibrate", "search", "recover")) > 0
    assert 0.4 * seconds["total"] < sum(seconds[n] for n in STAGES if n not in {"total", "search_onnxruntime"})


# ---- several budgets ------------------------------------------------------------------------------------------------


def test_several_budgets_from_one_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, told = place / "digits_mlp.onnx", place / "told.json"
    options = ["--flops", "0.3,0.6", "--episodes", "4", "--no-recover", "--json", str(told)]
    assert main(["compress", str(model), *options]) == 0
    assert capsys.readouterr().err.count("calibrate ...") == 1, "one calibration serves both"
    record = json.loads(told.read_text())
    assert [r["budget"]["ratio"] for r in record["budgets"]] == [0.6, 0.3]
    for one in record["budgets"]:
        ratio = one["budget"]["ratio"]
        assert one["compressed"]["macs"] <= ratio * one["original"]["macs"]
        file = place / f"digits_mlp.amc-{ratio:g}.onnx"
        onnx.checker.check_model(onnx.load(file))
        assert one["out"] == str(file)
        alone = onnx_amc.compress(model, flops=ratio, episodes=4, recover=False)
        assert alone.model.SerializeToString(deterministic=True) == file.read_bytes(), "each is what it is alone"
    costs, scores = ([p[key] for p in record["front"]] for key in ("ratio", "score"))
    assert costs == sorted(costs)
    assert scores == sorted(set(scores)), "each point of the front is better than all that cost less"
    best = max(r["compressed"]["score"] for r in record["budgets"])
    assert scores[-1] >= best - 0.05


def test_what_is_hopeless_for_one_budget_is_scored_for_another() -> None:
    settings = Settings(Budget("flops", 0.9), episodes=60, recover=False, draft=30, draft_rows=200, finalists=2, seed=1)
    results = pipeline.pareto(MLP, None, settings, [Budget("flops", 0.9), Budget("flops", 0.4)])
    alone = pipeline.compress(MLP, None, replace(settings, budget=Budget("flops", 0.4)))
    assert sum(not t.parts for t in results[0].trials) > 10, "plans were stopped"
    assert [t["estimate"] for t in results[0].details["trials"]] == [not t.parts for t in results[0].trials]
    assert not any(t["estimate"] for t in results[0].details["finals"])
    told, wanted = ([(t.key, t.score, t.source) for t in trials] for trials in (results[1].trials, alone.trials))
    assert told == wanted
    measured = {t.counts.tobytes() for r in results for t in r.trials if t.parts}
    assert {np.array(p["counts"]).tobytes() for p in pipeline.front(results)} <= measured


def test_several_budgets_in_python() -> None:
    results = onnx_amc.pareto(MLP, params=[0.4, 0.7], policy="uniform", refit=False)
    assert [r.record["budget"]["ratio"] for r in results] == [0.7, 0.4]
    assert results[0].record["compressed"]["params"] > results[1].record["compressed"]["params"]
    assert len({r.record["seconds"]["analyse"] for r in results}) == 1, "what is done once is told of each"
    assert all(r.record["seconds"]["total"] > r.record["seconds"]["analyse"] > 0 for r in results)


def test_results_travel_between_processes() -> None:
    results = onnx_amc.pareto(MLP, flops=[0.7, 0.4], policy="random", episodes=4, recover=False)
    again = pickle.loads(pickle.dumps(results))
    for result, copy in zip(results, again, strict=True):
        assert copy.model.SerializeToString() == result.model.SerializeToString()
        assert (copy.plan, copy.record, copy.details) == (result.plan, result.record, result.details)
    assert len(pipeline.front(again)) > 1
    assert pipeline.front(again) == pipeline.front(results)


@pytest.mark.parametrize("text", ["0.5,x", "", "0.5,,0.3", "0.5,2"])
def test_budgets_that_are_none(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", str(MLP), "--flops", text, "-o", str(tmp_path / "o.onnx")]) == 2
    assert "--flops" in capsys.readouterr().err
