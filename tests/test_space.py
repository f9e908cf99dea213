"""Levels, Algorithm 1's bound and the plans in closed form, against brute force on small spaces."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_amc.builder import Builder
from onnx_amc.errors import BudgetError
from onnx_amc.search import baselines
from onnx_amc.search.loop import CLOSED, propose
from onnx_amc.search.space import Space, levels_of, multiple_of

SEEDS = st.integers(0, 2**32 - 1)


def chain(seed: int, groups: int | None = None, most: int = 12) -> Space:
    """A chain of layers, each priced by the product of both its sides, and a budget somewhere in reach."""
    rng = np.random.default_rng(seed)
    channels = rng.integers(2, most, groups or int(rng.integers(1, 6)))
    cost = rng.integers(1, 9, len(channels) + 1)

    def prices(plans: np.ndarray) -> np.ndarray:
        sides = np.pad(plans, ((0, 0), (1, 1)), constant_values=((0, 0), (3, 10)))
        return np.asarray((cost * sides[:, :-1] * sides[:, 1:]).sum(axis=1))

    levels = tuple(levels_of(int(c), int(rng.integers(1, 4)), 0.2) for c in channels)
    space = Space(tuple(f"g{i}" for i in range(len(channels))), levels, prices, 0)
    return replace(space, limit=int(rng.integers(space.price(space.smallest), space.price(space.full) + 1)))


def falling(space: Space, seed: int) -> list[np.ndarray]:
    """Errors at each level: any that fall, zero where everything is kept."""
    rng = np.random.default_rng(seed)
    return [np.append(np.sort(rng.exponential(size=len(lv) - 1))[::-1], 0.0) for lv in space.levels]


def everything(space: Space) -> list[np.ndarray]:
    """Every plan within the budget."""
    return [np.array(c) for c in itertools.product(*space.levels) if space.feasible(np.array(c))]


# ---- levels -------------------------------------------------------------------------------------------------------


def test_the_multiple_is_what_onnxruntime_likes_unless_the_user_names_one() -> None:
    assert [multiple_of(c, None) for c in (1, 7, 8, 63, 64, 1000)] == [1, 1, 4, 4, 8, 8]
    assert [multiple_of(c, None, block=16) for c in (7, 8, 63, 64, 127, 128)] == [1, 4, 4, 8, 8, 16]
    assert [multiple_of(c, None, (True, 1, False, 1), block=16) for c in (8, 16, 17, 24)] == [4, 8, 16, 16]
    assert [multiple_of(c, 3) for c in (1, 64)] == [3, 3]


@pytest.mark.parametrize(
    ("channels", "lanes", "levels"),
    [
        (24, (False, 1, False), [8, 12, 16, 20, 24]),
        (24, (True, 1, False), [8, 16, 24]),
        (24, (True, 8, False), [8, 16, 24]),
        (8, (True, 1, False), [4, 8]),
        (12, (False, 64, False), list(range(3, 13))),
        (16, (False, 4, False), list(range(4, 17, 2))),
        (6, (False, 1, True), [2, 6]),
        (3, (False, 1, True), [3]),
        (3, (False, 1, False), [1, 2, 3]),
        (12, (True, 1, True), [4, 12]),
        (27, (False, 1, True), [7, 11, 15, 19, 23, 27]),
    ],
    ids=["alone", "Concat or pool", "conv of groups", "no wider than a block", "heads of 64", "heads of 4", "part of an axis",
         "a small part", "narrow", "part before a Concat", "odd part"],
)  # fmt: skip
def test_auto_rounds_where_the_kernels_need_it(channels: int, lanes: tuple[bool, int, bool], levels: list[int]) -> None:
    assert levels_of(channels, None, 0.2, (*lanes, 1)).tolist() == levels


@pytest.mark.parametrize(
    ("channels", "round_to", "min_keep", "wanted"),
    [
        (16, None, 0.2, [4, 8, 12, 16]),
        (10, 4, 0.2, [4, 8, 10]),
        (10, 1, 0.3, [3, 4, 5, 6, 7, 8, 9, 10]),
        (3, None, 0.2, [1, 2, 3]),
        (5, 8, 0.2, [5]),
        (1, None, 1.0, [1]),
    ],
)
def test_levels(channels: int, round_to: int | None, min_keep: float, wanted: list[int]) -> None:
    assert levels_of(channels, round_to, min_keep).tolist() == wanted


@settings(deadline=None)
@given(st.integers(1, 300), st.none() | st.integers(1, 40), st.floats(0.01, 1.0))
def test_levels_are_the_multiples_above_the_floor_and_all_channels(n: int, round_to: int | None, least: float) -> None:
    step = multiple_of(n, round_to)
    assert levels_of(n, round_to, least).tolist() == [
        c for c in range(1, n + 1) if c == n or (c % step == 0 and c >= least * n - 1e-6)
    ]


def test_nearest_takes_the_lower_of_two_and_at_takes_one_ratio_or_many() -> None:
    space = Space(("a", "b"), (levels_of(16, 4, 0.2), levels_of(10, 4, 0.2)), lambda c: c.sum(axis=1), 0)
    assert [space.nearest(0, r) for r in (-1.0, 0.37, 0.375, 0.38, 1.0, 2.0)] == [0, 0, 0, 1, 3, 3]
    assert space.at(0.5).tolist() == [8, 4]
    assert space.at(np.array([1.0, 0.0])).tolist() == [16, 4]


# ---- the budget ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(SEEDS, st.data())
def test_the_bound_is_the_highest_level_that_leaves_the_budget_in_reach(seed: int, data: st.DataObject) -> None:
    space = chain(seed)
    step = data.draw(st.integers(0, len(space) - 1))
    counts = np.array([data.draw(st.sampled_from(lv.tolist())) for lv in space.levels])
    fits = [
        i
        for i, level in enumerate(space.levels[step])
        if space.feasible(np.array([*counts[:step], level, *space.smallest[step + 1 :]]))
    ]
    assert space.highest(counts, step) == max(fits, default=0)


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.integers(0, 10))
def test_every_plan_meets_the_budget(seed: int, draw: int) -> None:
    space = chain(seed, most=30)
    plans = [propose(space, name, falling(space, draw)) for name in CLOSED]
    plans.append(baselines.random(space, np.random.default_rng(draw)))
    for plan in plans:
        assert space.price(plan) <= space.limit
        assert all(count in levels for count, levels in zip(plan, space.levels, strict=True))


@settings(deadline=None, max_examples=10)
@given(SEEDS)
def test_the_whole_budget_cuts_nothing_and_the_smallest_cuts_all(seed: int) -> None:
    space = chain(seed)
    errors = falling(space, seed)
    for name in CLOSED:
        whole, least = (replace(space, limit=space.price(plan)) for plan in (space.full, space.smallest))
        assert propose(whole, name, errors).tolist() == space.full.tolist()
        assert propose(least, name, errors).tolist() == space.smallest.tolist()


def test_a_budget_out_of_reach_is_refused_with_the_smallest_ratio() -> None:
    for seed in range(50):
        space = chain(seed)
        whole, least = space.price(space.full), space.price(space.smallest)
        with pytest.raises(BudgetError, match=r"In the way: a; b; c$|In the way: a; b; c\n") as caught:
            replace(space, limit=least - 1).check(0.1, where="--flops", blocked=["a", "b", "c", "d"])
        assert caught.value.exit_code == 3
        (said,) = set(re.findall(r"\d\.\d{4}(?= or more|\. In)", str(caught.value)))
        replace(space, limit=int(float(said) * whole)).check(float(said), where="--flops", blocked=[])
        assert (float(said) - 1.01e-4) * whole < least


# ---- plans in closed form -----------------------------------------------------------------------------------------


def test_uniform_is_the_largest_of_its_kind() -> None:
    for seed in range(100):
        space = chain(seed, most=100)
        turns = [(lv[:-1] + lv[1:]) / 2 / lv[-1] for lv in space.levels]  # where a group goes from a level to the next
        ratios = np.concatenate([[0.0], *turns])
        plans = [space.at(float(r)) for r in (*ratios, *(ratios + 1e-9))]
        assert space.price(baselines.uniform(space)) == max(space.price(p) for p in plans if space.feasible(p))


@pytest.mark.parametrize(("name", "order"), [("shallow", 1), ("deep", -1)])
def test_slanted_plans_cut_one_end_hardest(name: str, order: int) -> None:
    channels = [levels_of(100, 1, 0.01)] * 6
    space = Space(("g",) * 6, tuple(channels), lambda c: c.sum(axis=1), 300)
    plan = propose(space, name, [])[::order]
    assert (np.diff(plan) > 0).all()
    assert plan.sum() == pytest.approx(300, abs=6)


def test_random_plans_differ_but_not_for_the_same_seed() -> None:
    space = chain(3, groups=5)
    one, same, other = (baselines.random(space, np.random.default_rng(s)).tolist() for s in (0, 0, 1))
    assert one == same != other


def test_knapsack_is_near_the_best_of_all_plans() -> None:
    """On average within 0.1 % of the span of errors, and the best plan in nearly every case."""
    gaps = []
    for seed in range(60):
        space = chain(seed, groups=3, most=9)
        errors = falling(space, seed)
        cost = [dict(zip(lv.tolist(), e.tolist(), strict=True)) for lv, e in zip(space.levels, errors, strict=True)]

        def error(plan: np.ndarray, cost: list[dict[int, float]] = cost) -> float:
            return sum(c[n] for c, n in zip(cost, plan.tolist(), strict=True))

        best = min(error(p) for p in everything(space))
        gaps.append((error(propose(space, "knapsack", errors)) - best) / max(error(space.smallest), 1e-12))
    assert np.mean(gaps) < 0.001
    assert np.mean(np.array(gaps) < 1e-12) > 0.95


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0.1, 5.0), st.floats(1.0, 3.0)), min_size=1, max_size=4), st.floats(0.3, 1.0))
def test_knapsack_is_exact_where_every_level_costs_the_same_and_errors_are_convex(
    groups: list[tuple[float, float]], ratio: float
) -> None:
    levels = tuple(np.arange(1, 6) for _ in groups)
    errors = [scale * (1 - np.arange(1, 6) / 5) ** power for scale, power in groups]
    space = Space(("g",) * len(groups), levels, lambda c: c.sum(axis=1), max(len(groups), int(ratio * 5 * len(groups))))

    def error(plan: np.ndarray) -> float:
        return float(sum(e[n - 1] for e, n in zip(errors, plan, strict=True)))

    assert error(baselines.knapsack(space, errors)) == pytest.approx(min(error(p) for p in everything(space)))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 200), st.floats(0.5, 0.99))
def test_a_lowered_plan_is_the_one_given_less_what_the_budget_asks_for(seed: int, share: float) -> None:
    space = chain(seed, groups=3, most=9)
    errors = falling(space, seed)
    start = space.largest(lambda s: np.full(len(space), s))
    smaller = replace(space, limit=int(share * space.price(start)))
    found = baselines.lowered(smaller, errors, start, reach=1)
    if not smaller.feasible(smaller.smallest):
        assert found.tolist() == space.smallest.tolist()
        return
    assert smaller.feasible(found)
    assert (found <= start).all()
    raised = space.indices(found)[None] + np.eye(len(space), dtype=np.int64)
    undone = [space.counts(at) for at in raised if (at <= space.indices(start)).all()]
    assert any(not smaller.feasible(plan) for plan in undone), "the last cut was needed"


# ---- curves -------------------------------------------------------------------------------------------------------


def probed(channels: int) -> np.ndarray:
    """Kept ratios at which `Builder.errors` measures a group of so many channels."""
    return np.array([max(1, round(r * channels)) / channels for r in Builder.ratios])


def check_curve(channels: int, losses: list[float]) -> None:
    levels, ratios = levels_of(channels, 1, 0.01), probed(channels)
    found = baselines.curve(levels, ratios, np.array(losses))
    assert found[-1] == 0
    assert (np.diff(found) <= 1e-12).all()
    at_probes = found[np.searchsorted(levels, np.rint(ratios * channels))]
    np.testing.assert_allclose(at_probes, np.maximum.accumulate(np.maximum(losses, 0)), atol=1e-9)


@settings(deadline=None)
@given(st.integers(4, 200), st.lists(st.floats(-0.01, 10.0), min_size=3, max_size=3))
def test_curves_fall_to_zero_through_what_was_measured(channels: int, losses: list[float]) -> None:
    check_curve(channels, losses)


@pytest.mark.parametrize(("channels", "losses"), [(2, [0.0, 0.3, 0.3]), (3, [0.1, 0.1, 0.3])])
def test_curves_of_two_or_three_channels(channels: int, losses: list[float]) -> None:
    check_curve(channels, losses)


def test_beyond_what_was_measured_errors_are_thought_to_rise_twice_as_fast() -> None:
    found = baselines.curve(np.arange(0, 101, 25), np.array([0.75, 0.5, 0.25]), np.array([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(found, [0.5, 0.3, 0.2, 0.1, 0.0], atol=1e-12)
