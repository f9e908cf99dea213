"""Where to look next between what costs too much and what costs little, and what other plans took."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from onnx_amc.search.pace import Bracket, Known, pace_of


@pytest.mark.parametrize("took", [lambda p: 1.15 * p, lambda p: 0.8 * p, lambda p: 1.6 * p**2, lambda p: 0.2 + 0.5 * p])
def test_false_position_comes_to_the_goal(took: Callable[[float], float]) -> None:
    goal, price = 600.0, 600
    bracket, seen = Bracket(goal), list[float]()
    for _ in range(6):
        spent = 1000 * took(price / 1000)
        seen.append(spent)
        if spent > goal:
            bracket.beyond = price, spent
        else:
            bracket.fits = price, spent
        price = bracket.wanted()
        assert bracket.beyond is None or price < bracket.beyond[0]
    assert min(abs(s / goal - 1) for s in seen) < 0.01


def test_what_jumps_over_the_goal_is_not_asked_for_again() -> None:
    """As where one channel more makes a kernel take another way."""
    bracket = Bracket(590.0, (560.0, 540.0), (561.0, 680.0))
    assert bracket.wanted() == 560


def test_a_plan_is_foretold_by_others_and_by_the_latest_first() -> None:
    known = list[Known]()
    assert pace_of(100.0, b"a", known) == 1.0
    known.append((None, 100.0, 90.0))
    assert pace_of(200.0, b"a", known) == pytest.approx(0.9)
    known.append((b"a", 100.0, 120.0))
    assert pace_of(100.0, b"a", known) == pytest.approx(0.9), "not by itself"
    assert pace_of(300.0, b"b", known) == pytest.approx(1.2)
    known.append((b"c", 200.0, 200.0))
    assert pace_of(150.0, b"b", known) == pytest.approx(1.1), "between its neighbours"
    assert pace_of(100.0, b"a", known) == pytest.approx(1.0)
