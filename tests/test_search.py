"""The search on a fake evaluation that takes microseconds: what is asked, what is kept, what repeats."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_amc.search import baselines, local
from onnx_amc.search.journal import Journal, Tried
from onnx_amc.search.loop import AGENTS, REFINING, Luggage, search, second_pass, walk
from onnx_amc.search.reward import Rule
from onnx_amc.search.shaping import SHAPING
from onnx_amc.search.space import Space, levels_of
from onnx_amc.search.state import LayerFacts

FULL = np.array([16, 24, 7, 40])
BEST = np.array([12, 8, 7, 24])
FACTS = [LayerFacts(int(n), int(n), 4, 4, 1, 3, int(n)) for n in FULL]


def prices(plans: np.ndarray) -> np.ndarray:
    sides = np.pad(plans, ((0, 0), (1, 1)), constant_values=((0, 0), (3, 10)))
    return np.asarray((sides[:, :-1] * sides[:, 1:]).sum(axis=1))


def price(counts: np.ndarray) -> int:
    return int(prices(counts[None])[0])


SPACE = Space(tuple("abcd"), tuple(levels_of(int(n), None, 0.2) for n in FULL), prices, int(0.6 * price(FULL)))

ERRORS = [np.maximum(best - lv, 0) / lv[-1] for lv, best in zip(SPACE.levels, BEST, strict=True)]


class Fake:
    """Scores a plan by how far it is from BEST, in few grades so that the loss decides often; counts the calls."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, counts: np.ndarray) -> tuple[float, float]:
        self.asked.append(tuple(counts.tolist()))
        gap = float(np.mean(np.abs(counts - BEST) / FULL))
        return 1 - np.floor(4 * gap) / 4, gap


def searched(
    policy: str, episodes: int, seed: int, starts: tuple[np.ndarray, ...] = (), ahead: int | None = None
) -> tuple[Journal, Fake]:
    fake = Fake()
    journal = Journal(fake)
    tried = [journal.ask(counts, "start") for counts in starts]
    how: dict[str, Any] = {} if ahead is None else {"ahead": ahead}
    search(SPACE, FACTS, journal, policy=policy, episodes=episodes, seed=seed, starts=tried, errors=ERRORS, **how)
    return journal, fake


def plans(journal: Journal) -> list[list[int]]:
    return [t.counts.tolist() for t in journal.trials]


@pytest.mark.parametrize("policy", ["evolution", *AGENTS])
def test_what_a_search_learns_from_depends_on_how_far_it_is_ahead(policy: str) -> None:
    once, again, later = (plans(searched(policy, 24, seed=0, ahead=ahead)[0]) for ahead in (0, 0, 6))
    assert once == again
    assert once != later
    assert len(once) == len(later) == 24


@pytest.mark.parametrize("policy", ["random", "evolution", *AGENTS])
def test_a_search_spends_its_episodes_within_the_budget_and_keeps_the_best(policy: str) -> None:
    start = baselines.uniform(SPACE)
    journal, _ = searched(policy, episodes=12, seed=0, starts=(start,))
    assert [t.source for t in journal.trials] == ["start"] + [policy] * 12
    assert all(price(t.counts) <= SPACE.limit for t in journal.trials)
    assert journal.best.reward == max(t.score - 1 - 4 * t.loss for t in journal.trials)
    assert len(np.unique(plans(journal), axis=0)) > 5


@pytest.mark.parametrize("scale", [(100.0, 100.0), (0.0, 2.0**10), (0.0, 2.0**-10), (64.0, 64.0)], ids=str)
def test_a_score_counts_in_units_of_its_scale(scale: tuple[float, float]) -> None:
    """Decibels, squared errors of any unit, percents: rewards and the weight of the loss are those of the same score as a share."""
    rng = np.random.default_rng(0)
    found = {}
    for n in range(2, 15):
        error, loss = abs(n - 9) / 20, abs(n - 9) / 20 + rng.uniform(0, 0.1)
        found[n] = [v for e in (0.0, *rng.normal(0, 0.02, 8)) for v in (1.0 - error + e, loss)]

    def told(counts: np.ndarray, best: float, unit: float) -> list[float]:
        return [best + unit * (v - 1) if i % 2 == 0 else v for i, v in enumerate(found[int(counts[0])])]

    share = Journal(lambda counts: found[int(counts[0])])
    other = Journal(lambda counts: told(counts, *scale), rule=Rule(scale=scale))
    for n in found:
        share.ask(np.array([n, 16 - n]), "asked")
        other.ask(np.array([n, 16 - n]), "asked")
    assert [t.reward for t in other.trials] == pytest.approx([t.reward for t in share.trials])
    share.weigh()
    other.weigh()
    assert 0 < share.rule.shaping == other.rule.shaping < SHAPING
    assert [t.reward for t in other.trials] == pytest.approx([t.reward for t in share.trials])


def test_the_best_has_the_highest_score_less_loss_then_came_first() -> None:
    scores = {3: (0.9, 0.5), 5: (0.875, 0.125), 7: (0.25, 0.0), 9: (0.875, 0.125), 11: (1.0, 1e6)}
    journal = Journal(lambda counts: scores[int(counts[0])])
    for n in scores:
        journal.ask(np.array([n]), f"number {n}")
    assert journal.best.source == "number 5"
    assert journal.best.reward == -0.625
    assert journal.trials[-1].reward == -4


def test_a_search_finds_the_best_plan_of_a_small_space() -> None:
    journal, _ = searched("random", episodes=400, seed=0)
    assert journal.best.loss < 0.05


@pytest.mark.parametrize("policy", ["random", "ddpg"])
def test_a_plan_seen_before_is_not_evaluated_again(policy: str) -> None:
    """A budget so tight that few plans are left."""
    heard: list[Tried] = []
    fake = Fake()
    journal = Journal(fake, heard.append)
    space = Space(SPACE.names, SPACE.levels, prices, price(SPACE.smallest) + 60)
    search(space, FACTS, journal, policy=policy, episodes=40, seed=0, starts=[])
    assert heard == journal.trials
    assert len(journal.trials) == 40 > len(fake.asked)
    assert sorted(fake.asked) == sorted({tuple(p) for p in plans(journal)})
    for tried in journal.trials:
        assert (tried.score, tried.loss) == Fake()(tried.counts)


@pytest.mark.parametrize("policy", ["random", "evolution", "ddpg"])
def test_the_same_seed_makes_the_same_trials(policy: str) -> None:
    one, same, other = (plans(searched(policy, 20, seed)[0]) for seed in (7, 7, 8))
    assert one == same != other


def test_what_was_tried_before_teaches_the_agent() -> None:
    """A start in the replay changes what the agent does once it has learned, but not its warm-up."""
    alone, taught = (plans(searched("ddpg", 24, 0, starts)[0]) for starts in ((), (BEST,)))
    assert taught[0] == BEST.tolist()
    assert taught[1:4] == alone[:3]
    assert taught[4:] != alone[3:]


def test_a_start_teaches_the_agent_what_it_is_worth() -> None:
    found: list[list[list[int]]] = []
    for loss in (0.0, 0.9):
        journal = Journal(Fake())
        start = Tried(BEST, 1 - loss, loss, "start")
        search(SPACE, FACTS, journal, policy="ddpg", episodes=24, seed=0, starts=[start], errors=ERRORS, refining=0.0)
        found.append(plans(journal))
    assert found[0][:6] == found[1][:6]  # the warm-up, a quarter
    assert found[0][6:] != found[1][6:]


def test_an_agent_that_was_trained_before_walks_near_what_it_knows(tmp_path: Path) -> None:
    """From the first walk on, with little noise: neither a warm-up nor the usual half."""
    saved = str(tmp_path / "agent.npz")
    rest: dict[str, Any] = {"policy": "ddpg", "starts": [], "errors": ERRORS}
    search(SPACE, FACTS, Journal(Fake()), episodes=8, seed=0, luggage=Luggage(save=saved), **rest)
    first = []
    for seed in range(40):
        journal = Journal(Fake())
        search(SPACE, FACTS, journal, episodes=1, seed=seed, luggage=Luggage(load=saved), **rest)
        first.append(journal.trials[0].counts[0] / FULL[0])
    assert 0.08 < np.std(first) < 0.18, "a uniform choice has 0.23, noise of a half nearly as much"


def test_an_agent_ends_around_the_best_plan() -> None:
    """The last share of its episodes is nearer to the best plan so far than the walks are, and better."""
    journal, _ = searched("ddpg", 50, 0)
    walks, near = journal.trials[: 50 - int(REFINING * 50)], journal.trials[50 - int(REFINING * 50) :]
    assert np.mean([t.reward for t in near]) > np.mean([t.reward for t in walks])
    assert max(t.reward for t in near) >= max(t.reward for t in walks)


@pytest.mark.parametrize("move", [0.8, 1.2])
def test_an_agent_refines_within_the_budget_that_its_best_walk_has_shown(move: float) -> None:
    asked: list[list[int]] = []

    def pace(space: Space, counts: np.ndarray) -> Space:
        asked.append(counts.tolist())
        return replace(space, limit=int(move * price(counts)))

    journal = Journal(Fake())
    search(SPACE, FACTS, journal, policy="ddpg", episodes=20, seed=0, starts=(), errors=ERRORS, pace=pace)
    walks, near = journal.trials[:12], journal.trials[12:]
    best = max(walks, key=lambda t: t.reward)
    assert asked == [best.counts.tolist()]
    assert all(price(t.counts) <= move * price(best.counts) for t in near)
    if move < 1:
        assert (near[0].counts <= best.counts).all(), "what is like the best walk comes first"
        assert len(near) == 8
    else:
        assert max(price(t.counts) for t in near) > price(best.counts), "what may be spent is"


def test_evolution_is_better_than_chance() -> None:
    best = [[searched(policy, 60, seed)[0].best.reward for seed in range(5)] for policy in ("evolution", "random")]
    assert np.mean(best[0]) > np.mean(best[1])


def test_neighbours_are_near_new_and_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    start = baselines.uniform(SPACE)
    found = [local.neighbour(SPACE, start, rng) for _ in range(200)]
    assert all(SPACE.feasible(n) for n in found)
    assert all(n[i] in SPACE.levels[i] for n in found for i in range(len(SPACE)))
    moved = np.array([np.abs(SPACE.indices(n) - SPACE.indices(start)) for n in found])
    assert (moved.sum(axis=1) > 0).mean() > 0.9
    assert moved.max() <= 4
    assert len({tuple(n) for n in found}) > 10


def test_a_crossing_takes_each_count_from_a_parent_or_below() -> None:
    rng = np.random.default_rng(0)
    one, other = baselines.slanted(SPACE, "shallow"), baselines.slanted(SPACE, "deep")
    for _ in range(50):
        child = local.crossed(SPACE, one, other, rng)
        assert SPACE.feasible(child)
        assert (child <= np.maximum(one, other)).all()
    assert local.repaired(SPACE, SPACE.full, rng).tolist() != SPACE.full.tolist()


def test_the_table_learns_from_plans_that_were_tried() -> None:
    """Groups count for more or less than their row says; after forty plans the knapsack knows, and comes near the best plan."""
    gains = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        table = [np.append(np.sort(rng.exponential(size=len(lv) - 1))[::-1], 0.0) for lv in SPACE.levels]
        truth = [f * row for f, row in zip(rng.choice([0.1, 1, 8], len(table)), table, strict=True)]

        def lost(counts: np.ndarray, truth: list[np.ndarray] = truth) -> float:
            return float(sum(row[i] for row, i in zip(truth, SPACE.indices(counts), strict=True)))

        tried = np.array([baselines.random(SPACE, rng) for _ in range(40)])
        found = baselines.knapsack(SPACE, local.relearned(SPACE, table, tried, np.array([lost(c) for c in tried])))
        assert SPACE.feasible(found)
        gains.append(lost(baselines.knapsack(SPACE, table)) - lost(found))
    assert min(gains) > -0.05
    assert np.mean(gains) > 0.1


def test_the_table_explains_good_plans_better_than_bad_ones() -> None:
    """Where errors do not add up, what a plan that nobody wants lost must not outweigh the others."""
    shares = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        table = [np.append(np.sort(rng.exponential(size=len(lv) - 1))[::-1], 0.0) for lv in SPACE.levels]
        tried = np.array([baselines.random(SPACE, rng) for _ in range(40)])
        at = np.array([SPACE.indices(counts) for counts in tried]).T
        summed = np.sum([row[i] for row, i in zip(table, at, strict=True)], axis=0)
        losses = summed + summed**3
        found = local.relearned(SPACE, table, tried, losses)
        missed = np.sum([row[i] for row, i in zip(found, at, strict=True)], axis=0) - losses
        order = np.argsort(losses)
        shares.append(np.std(missed[order[:20]]) / np.std(missed[order[20:]]))
    assert np.mean(shares) < 0.2  # 0.3 if all counted alike


def test_a_plan_written_down_is_not_the_callers() -> None:
    counts = BEST.copy()
    journal = Journal(Fake())
    journal.ask(counts, "a")
    counts[:] = 1
    assert journal.best.counts.tolist() == BEST.tolist()


@settings(deadline=None, max_examples=40)
@given(st.tuples(*(st.sampled_from(lv.tolist()) for lv in SPACE.levels)))
def test_a_walk_leads_to_the_plan_it_is_given(plan: tuple[int, ...]) -> None:
    counts = np.array(plan)
    free = Space(SPACE.names, SPACE.levels, prices, price(counts))
    steps = walk(free, FACTS, counts)
    assert [s.done for s in steps] == [False, False, False, True]
    np.testing.assert_allclose([s.action[0] for s in steps], counts / FULL, rtol=1e-6)
    for before, after in itertools.pairwise(steps):
        np.testing.assert_array_equal(before.next_observation, after.observation)
    assert all(s.observation.shape == (11,) for s in steps)


def test_each_plan_counts_once_as_whoever_came_first_tried_it() -> None:
    journal = Journal(Fake())
    for counts, source in ((BEST, "a"), (FULL, "b"), (BEST, "c")):
        journal.ask(counts, source)
    assert [t.source for t in journal.distinct] == ["a", "b"]


def test_the_second_pass_finds_what_groups_are_worth_together() -> None:
    """The table was measured group by group; in the network a group counts for something else, which only plans can tell."""
    space = Space(tuple("abcdef"), (levels_of(32, 2, 0.1),) * 6, lambda plans: plans.sum(axis=1), 96)
    errors = [np.square(1 - lv / 32) for lv in space.levels]
    for seed in range(10):
        hidden = np.random.default_rng(seed).uniform(0.2, 5.0, len(space)) / 30

        def loss(counts: np.ndarray, hidden: np.ndarray = hidden) -> float:
            return float(sum(f * e[i] for f, e, i in zip(hidden, errors, space.indices(counts), strict=True)))

        journal = Journal(lambda counts, loss=loss: (1.0, loss(counts)))  # type: ignore[misc]
        start = journal.ask(baselines.knapsack(space, errors), "knapsack")
        found, table = second_pass(space, journal, errors, start)
        assert len(journal.trials) == len(space) + 2
        assert all(space.feasible(t.counts) for t in journal.trials)
        best = baselines.knapsack(space, [f * e for f, e in zip(hidden, errors, strict=True)])
        assert loss(best) == pytest.approx(found.loss)
        assert found.loss < 0.9 * start.loss
        assert np.stack(table) == pytest.approx(4 * hidden[:, None] * np.stack(errors))


def test_a_table_whose_groups_cannot_be_lowered_stays_as_it_is() -> None:
    found = baselines.reweighed(SPACE, ERRORS, SPACE.smallest, SPACE.smallest, np.zeros(len(SPACE)))
    assert all(np.array_equal(a, b) for a, b in zip(found, ERRORS, strict=True))


def test_exchanges_are_new_within_the_budget_and_in_the_order_of_the_table() -> None:
    start = baselines.knapsack(SPACE, ERRORS)
    known = {start.tobytes()}
    lost = []
    while (found := baselines.exchanged(SPACE, ERRORS, start, lambda c: c.tobytes() in known)) is not None:
        assert found.tobytes() not in known
        assert SPACE.feasible(found)
        moved = SPACE.indices(found) - SPACE.indices(start)
        assert (moved > 0).sum() == 1
        assert (moved < 0).sum() <= 1
        known.add(found.tobytes())
        lost.append(sum(e[i] for e, i in zip(ERRORS, SPACE.indices(found), strict=True)))
    assert len(lost) > 5
    assert lost[0] == min(lost)
