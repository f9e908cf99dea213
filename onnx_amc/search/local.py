"""Changes to plans that are already good: neighbours, crossings, and the knapsack once more in the light of what was tried."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_amc.search import baselines
from onnx_amc.search.space import Space

PRIOR = 0.3
"""How firmly the table of errors is believed, against what plans have shown: relative to the spread of their errors."""


def neighbour(space: Space, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a plan near by: one or two groups lose a level or two, others gain what the budget then allows."""
    at = space.indices(counts)
    top = np.array([len(lv) - 1 for lv in space.levels])
    movable = np.flatnonzero(top > 0)
    lose = rng.choice(movable, min(len(movable), int(rng.integers(1, 3))), replace=False)
    at[lose] = np.maximum(at[lose] - rng.integers(1, 3, len(lose)), 0)
    for group in rng.permutation(np.setdiff1d(movable, lose)):
        step = at.copy()
        step[group] = min(step[group] + int(rng.integers(1, 3)), top[group])
        if space.feasible(space.counts(step)):
            at = step
    return repaired(space, space.counts(at), rng)


def repaired(space: Space, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lower random groups, level by level, until the budget is met."""
    at = space.indices(counts)
    while not space.feasible(space.counts(at)) and (at > 0).any():
        at[rng.choice(np.flatnonzero(at > 0))] -= 1
    return space.counts(at)


def crossed(space: Space, one: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a plan that takes each group's count from one of two plans."""
    return repaired(space, np.where(rng.random(len(one)) < 0.5, one, other), rng)


def below(space: Space, errors: Sequence[np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Return a plan within the budget like a given one: lowered by the table of errors, or without one in proportion."""
    if len(errors):
        return baselines.lowered(space, errors, counts, reach=1)
    share = counts / space.full
    return space.largest(lambda s: s * share)


def relearned(space: Space, errors: Sequence[np.ndarray], tried: np.ndarray, losses: np.ndarray) -> list[np.ndarray]:
    """Return the table of errors with its rows scaled so that they explain the plans that were tried.

    Each group's row of errors was measured with the others whole. In a network that is cut everywhere a group counts for more or
    less; its factor, not below 0, is fitted to the losses by least squares with a pull towards a common one.

    Args:
        space: Levels, price and budget.
        errors: For each group the error at each of its levels.
        tried: int (plans, groups), counts.
        losses: (plans,), what each plan lost, lower is better.

    """
    table = np.array([[e[i] for e, i in zip(errors, space.indices(c), strict=True)] for c in tried])
    weight = np.exp(-(losses - losses.min()) / max(float(losses.std()), 1e-12))[:, None]
    common = float((losses @ table.sum(axis=1)) / max(float(np.square(table.sum(axis=1)).sum()), 1e-300))
    pull = PRIOR * np.sqrt(np.square(table * weight).sum(axis=0).mean())
    rows = np.vstack(
        [np.hstack([table, np.ones((len(table), 1))]) * weight, pull * np.eye(len(errors), len(errors) + 1)]
    )
    goal = np.concatenate([losses * weight[:, 0], np.full(len(errors), pull * common)])
    from scipy.optimize import nnls  # noqa: PLC0415  half a second to import

    factors, _ = nnls(rows, goal)
    return [f * e for f, e in zip(factors, errors, strict=False)]
