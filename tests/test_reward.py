"""What the search makes of scores and losses: what the loss counts for, which plans are hopeless early, what costs do."""

from __future__ import annotations

import numpy as np
import pytest
from test_search import BEST, FACTS, FULL, SPACE

from onnx_amc.granularity import Units
from onnx_amc.search import baselines
from onnx_amc.search.journal import Journal
from onnx_amc.search.loop import search
from onnx_amc.search.racing import bar_of
from onnx_amc.search.reward import Rule
from onnx_amc.search.shaping import SHAPING, weight_of
from onnx_amc.search.space import Space

# ---- what the loss counts for ---------------------------------------------------------------------------------------


def told(harm: float, noise: float, seed: int = 0, plans: int = 20, parts: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Scores and losses of plans whose true score falls by `harm` per unit of loss; scores are noisy, losses are not."""
    rng = np.random.default_rng(seed)
    loss = np.linspace(0.1, 0.3, plans)
    score = 0.8 - harm * loss
    return score[:, None] + noise * rng.standard_normal((plans, parts)), np.repeat(loss[:, None], parts, axis=1)


def test_the_loss_counts_most_where_it_tells_the_score_and_scores_are_noisy() -> None:
    assert weight_of(*told(harm=1.0, noise=0.1)) == SHAPING


def test_the_loss_counts_nothing_where_it_misleads() -> None:
    scores, losses = told(harm=-0.5, noise=0.02)
    assert weight_of(scores, losses) == 0.0


def test_without_trials_or_parts_the_weight_is_the_usual_one() -> None:
    scores, losses = told(harm=-0.5, noise=0.02)
    assert weight_of(scores[:5], losses[:5]) == SHAPING
    assert weight_of(scores[:, :1], losses[:, :1]) == SHAPING
    assert weight_of(np.full((10, 8), 0.5), losses[:10]) == SHAPING


def misled(counts: np.ndarray) -> list[float]:
    """The loss of this network says nothing good of its score: plans of high loss are better."""
    gap = float(np.mean(np.abs(counts - BEST) / FULL))
    return [0.5 + gap, gap] + [0.5 + gap, gap] * 8


def test_a_journal_weighs_by_what_it_has_seen_and_rewards_it_anew() -> None:
    journal = Journal(misled)
    rng = np.random.default_rng(0)
    for _ in range(10):
        journal.ask(baselines.random(SPACE, rng), "random")
    before = journal.best
    journal.weigh()
    assert 0 <= journal.rule.shaping < 1
    assert [t.reward for t in journal.trials] == pytest.approx(
        [t.score - 1 - journal.rule.shaping * t.loss for t in journal.trials]
    )
    assert journal.best.loss > before.loss
    assert journal.ask(BEST, "asked later").reward == pytest.approx(-0.5)


def test_an_agents_walks_tell_too_what_the_loss_counts_for_around_the_best_plan() -> None:
    journal = Journal(misled)
    assert journal.ask(BEST, "start").reward == pytest.approx(-0.5)
    search(SPACE, FACTS, journal, policy="ddpg", episodes=20, seed=0, starts=journal.trials, errors=())
    assert journal.rule.shaping < 1
    assert [t.reward for t in journal.trials] == pytest.approx(
        [t.score - 1 - journal.rule.shaping * t.loss for t in journal.trials]
    )
    walks, near = journal.trials[1:13], journal.trials[13:]
    assert np.mean([t.loss for t in near]) > np.mean([t.loss for t in walks])


# ---- racing ---------------------------------------------------------------------------------------------------------


def halves(score: float, more: float) -> tuple[float, ...]:
    """Score and loss on two parts, the first of which says so much more of both."""
    return score + more, 1 - score + more, score - more, 1 - score - more


def test_a_plan_that_is_hopeless_on_the_first_samples_is_told_what_it_is_likely_worth() -> None:
    rule, noise = Rule(), np.random.default_rng(0).normal(0.0, 0.002, 20)
    scores = [(0.7 + 0.01 * i, 0.3 - 0.01 * i) for i in range(20)]
    parts = [halves(score, 0.05 + off) for (score, _), off in zip(scores, noise, strict=True)]
    bar = bar_of(rule, scores, parts, first=1, level=rule.short(0.87, 0.13))
    assert bar is not None
    assert bar(0.6 + 0.05, 0.4 + 0.05) == pytest.approx((0.6, 0.4), abs=0.002), "without what the first samples add"
    assert bar(0.87 + 0.05, 0.13 + 0.05) is None
    assert bar(0.868 + 0.05, 0.132 + 0.05) is None, "the doubt is in its favour"
    unsure = bar_of(rule, scores, [halves(s, m) for (s, _), m in zip(scores, 50 * noise, strict=True)], 1, bar.level)
    assert unsure is not None
    assert unsure.margin > 10 * bar.margin


@pytest.mark.parametrize("known", [8, 40])
def test_one_of_a_thousand_plans_that_are_good_enough_is_stopped_however_few_tell_what_a_part_says(known: int) -> None:
    rng, stopped, level = np.random.default_rng(known), list[bool](), 0.7
    for _ in range(100):
        parts = [(level + off, 0.0, level - off, 0.0) for off in rng.normal(0.0, 0.01, known)]
        bar = bar_of(Rule(), [(level, 0.0)] * known, parts, 1, level - 1)
        assert bar is not None
        stopped += [bar(level + off, 0.0) is not None for off in rng.normal(0.0, 0.01, 300)]
    assert 0.0002 < np.mean(stopped) < 0.002


def test_nothing_is_stopped_where_too_little_is_known() -> None:
    scores, parts = [(0.5, 0.5)] * 7, [halves(0.5, 0.0)] * 7
    assert bar_of(Rule(), scores, parts, 1, 0.0) is None
    assert bar_of(Rule(cost=lambda _: 3.0), scores * 2, parts * 2, 1, 0.0) is None, "the reward is no score alone"
    assert bar_of(Rule(), scores * 2, parts * 2, 1, 0.0) is not None


def test_a_journal_sets_its_bar_by_the_plans_that_were_scored_on_all_samples() -> None:
    journal = Journal(
        lambda counts: [counts[0] / 16, 0.0, *halves(counts[0] / 16, 0.0)] if counts[0] > 4 else [0.9, 0.0]
    )
    for first in range(2, 17):
        journal.ask(np.array([first, 24, 7, 40]), "test")
    bar = journal.bars(3, [1])[1]
    assert bar.level == pytest.approx(14 / 16 - 1), "the third best; an estimate of 0.9 is none of them"


def test_no_plan_counts_without_bound() -> None:
    """One network that explodes would outweigh all others in what an agent and the weights learn from."""
    assert Rule().short(1 - 1e6, 1e6) == Rule().short(-9.0, 1.0) == -10.0 - SHAPING
    assert Rule(scale=(100.0, 100.0)).short(-1e9, 0.0) == -10.0


@pytest.mark.parametrize("score", [0.7, 1.3])
def test_a_reward_that_counts_costs_prefers_the_cheap(score: float) -> None:
    """Also where a plan is better than the best that was known."""
    rule = Rule(cost=lambda counts: float(counts.sum()))
    cheap, dear = np.array([10**6]), np.array([2 * 10**6])
    assert rule(score, 0.0, cheap) > rule(score, 0.0, dear)
    assert rule(score + 0.1, 0.0, cheap) > rule(score, 0.0, cheap)


def test_the_best_of_many_estimates_is_not_the_best_plan() -> None:
    """Plans that were stopped while the loss counted are estimates; once it counts for nothing one of them may look best."""
    found = {n: [0.9, 0.1, *(0.9, 0.1) * 4] for n in range(9)} | {9: [0.95, 0.9]}
    journal = Journal(lambda counts: found[int(counts[0])])
    for n in found:
        journal.ask(np.array([n]), "asked")
    assert journal.best.counts == [0]
    journal.rule.shaping = 0.0
    assert journal.trials[-1].reward == max(t.reward for t in journal.trials)
    assert journal.best.counts == [0]
    assert journal.best_in(Space(("a",), (np.arange(10),), lambda plans: plans[:, 0], 9)).counts == [0]
    few = Journal(lambda counts: found[int(counts[0])][:2], rule=Rule(shaping=0.0))
    for n in found:
        few.ask(np.array([n]), "asked")
    assert few.best.counts == [9], "too few samples for parts: all are scored on all of them"


def test_the_best_is_kept_as_plans_come_and_chosen_anew_when_rewards_change() -> None:
    rng = np.random.default_rng(0)
    found = [[float(v) for v in rng.random(2)] for _ in range(40)]
    journal = Journal(lambda counts: found[int(counts[0])])
    for n in range(40):
        asked = journal.ask(np.array([n]), "asked")
        assert journal.best is max(journal.trials, key=lambda t: t.reward)
        if n % 7 == 6:
            journal.rule.shaping = float(rng.choice([0.0, 1.0, 4.0]))
            assert journal.best is max(journal.trials, key=lambda t: t.reward)
    assert asked.source == "asked"


def test_a_users_function_is_asked_once_for_each_plan() -> None:
    """It may be slow, or draw: what it has said of a plan stays."""
    asked: list[int] = []

    def own(_score: float, _loss: float, counts: np.ndarray) -> float:
        asked.append(int(counts[0]))
        return float(len(asked))

    journal = Journal(lambda _counts: [0.5, 0.5], rule=Rule(own=own))
    given = [journal.ask(np.array([n]), "asked").reward for n in (3, 5, 3, 7)]
    assert journal.best.counts == [7]
    assert [t.reward for t in journal.trials] == given == [1.0, 2.0, 1.0, 3.0]
    assert asked == [3, 5, 7]


def test_of_what_a_network_has_none_of_nothing_is_left() -> None:
    """A recurrent network has no multiply-accumulates that are counted; a user's reward is told shares of them all the same."""
    units = Units(("a",), (np.array([4]),), (), {"flops": lambda plans: 0 * plans[:, 0]}, {"flops": 0}, (), lambda _: 0)
    assert units.shares(np.array([4])) == {"flops": 0.0}
