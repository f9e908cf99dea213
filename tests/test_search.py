"""The search on a fake evaluation that takes microseconds: what is asked, what is kept, what repeats."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_amc.search import baselines
from onnx_amc.search.loop import AGENTS, Journal, Tried, search, walk
from onnx_amc.search.space import Space, levels_of
from onnx_amc.search.state import LayerFacts

FULL = np.array([16, 24, 7, 40])
BEST = np.array([12, 8, 7, 24])
FACTS = [LayerFacts(int(n), int(n), 4, 4, 1, 3, int(n)) for n in FULL]


def price(counts: np.ndarray) -> int:
    sides = np.array([3, *counts, 10])
    return int((sides[:-1] * sides[1:]).sum())


SPACE = Space(tuple("abcd"), tuple(levels_of(int(n), None, 0.2) for n in FULL), price, int(0.6 * price(FULL)))


class Fake:
    """Scores a plan by how far it is from BEST, in few grades so that the loss decides often; counts the calls."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, counts: np.ndarray) -> tuple[float, float]:
        self.asked.append(tuple(counts.tolist()))
        gap = float(np.mean(np.abs(counts - BEST) / FULL))
        return 1 - np.floor(4 * gap) / 4, gap


def searched(policy: str, episodes: int, seed: int, starts: tuple[np.ndarray, ...] = ()) -> tuple[Journal, Fake]:
    fake = Fake()
    journal = Journal(fake)
    tried = [journal.ask(counts, "start") for counts in starts]
    search(SPACE, FACTS, journal, policy=policy, episodes=episodes, seed=seed, starts=tried)
    return journal, fake


def plans(journal: Journal) -> list[list[int]]:
    return [t.counts.tolist() for t in journal.trials]


@pytest.mark.parametrize("policy", ["random", *AGENTS])
def test_a_search_spends_its_episodes_within_the_budget_and_keeps_the_best(policy: str) -> None:
    start = baselines.uniform(SPACE)
    journal, _ = searched(policy, episodes=12, seed=0, starts=(start,))
    assert [t.source for t in journal.trials] == ["start"] + [policy] * 12
    assert all(price(t.counts) <= SPACE.limit for t in journal.trials)
    wanted = max(journal.trials, key=lambda t: (t.score, -t.loss))
    assert (journal.best.score, journal.best.loss) == (wanted.score, wanted.loss)
    assert len(np.unique(plans(journal), axis=0)) > 5


def test_the_best_has_the_highest_score_then_the_lowest_loss_then_came_first() -> None:
    scores = {3: (0.9, 0.5), 5: (0.9, 0.2), 7: (0.8, 0.1), 9: (0.9, 0.2)}
    journal = Journal(lambda counts: scores[int(counts[0])])
    for n in scores:
        journal.ask(np.array([n]), f"number {n}")
    assert journal.best.source == "number 5"
    assert journal.best.reward == pytest.approx(-0.1)


def test_a_search_finds_the_best_plan_of_a_small_space() -> None:
    journal, _ = searched("random", episodes=400, seed=0)
    assert journal.best.loss < 0.05


@pytest.mark.parametrize("policy", ["random", "ddpg"])
def test_a_plan_seen_before_is_not_evaluated_again(policy: str) -> None:
    """A budget so tight that few plans are left."""
    heard: list[Tried] = []
    fake = Fake()
    journal = Journal(fake, heard.append)
    space = Space(SPACE.names, SPACE.levels, price, price(SPACE.smallest) + 60)
    search(space, FACTS, journal, policy=policy, episodes=40, seed=0, starts=[])
    assert heard == journal.trials
    assert len(journal.trials) == 40 > len(fake.asked)
    assert sorted(fake.asked) == sorted({tuple(p) for p in plans(journal)})
    for tried in journal.trials:
        assert (tried.score, tried.loss) == Fake()(tried.counts)


@pytest.mark.parametrize("policy", ["random", "ddpg"])
def test_the_same_seed_makes_the_same_trials(policy: str) -> None:
    one, same, other = (plans(searched(policy, 20, seed)[0]) for seed in (7, 7, 8))
    assert one == same != other


def test_what_was_tried_before_teaches_the_agent() -> None:
    """A start in the replay changes what the agent does once it has learned, but not its warm-up."""
    alone, taught = (plans(searched("ddpg", 24, 0, starts)[0]) for starts in ((), (BEST,)))
    assert taught[0] == BEST.tolist()
    assert taught[1:7] == alone[:6]
    assert taught[7:] != alone[6:]


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
    free = Space(SPACE.names, SPACE.levels, price, price(counts))
    steps = walk(free, FACTS, counts)
    assert [s.done for s in steps] == [False, False, False, True]
    np.testing.assert_allclose([s.action[0] for s in steps], counts / FULL, rtol=1e-6)
    for before, after in itertools.pairwise(steps):
        np.testing.assert_array_equal(before.next_observation, after.observation)
    assert all(s.observation.shape == (11,) for s in steps)
