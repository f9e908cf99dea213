"""What a unit of output error should count for beside a unit of the score.

A score counts samples, hence is flat and noisy between plans that are alike. The loss, how far the outputs are from the original's,
is smooth; on most networks the two together predict the score on other samples best (`benchmarks/proxy.py`), with the loss counting
several times. But where a refit makes a network better at its data than the original was, the loss misleads. So each run asks its
own first trials: with which weight do score and loss on one half of the samples tell the score on the other half?
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

Scale = tuple[float, float]
"""Of a score: the best one, and the difference that counts as much as that between a share of 0 and one of 1."""

SHARE: Scale = (1.0, 1.0)

WORST = 10.0
"""So many units below the best one is what a score counts for at least."""

SHAPING = 4.0
"""The weight where there is nothing to choose it by."""

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, SHAPING)

ENOUGH = 6
"""Plans that a choice needs."""

ALIKE = 0.005
"""Correlations that differ by less are alike; the largest weight of these is taken, for its reward has the least noise."""


def weight_of(scores: np.ndarray, losses: np.ndarray) -> float:
    """Return the weight of the loss that predicts the score on other samples best.

    Args:
        scores: (plans, parts), the score of each plan on each of several parts of the samples, in units of its scale.
        losses: (plans, parts), its loss there.

    """
    plans, parts = scores.shape
    if plans < ENOUGH or parts < 2:
        return SHAPING
    found: list[list[float]] = []
    for half in combinations(range(parts), parts // 2):
        rest = np.setdiff1d(np.arange(parts), half)
        goal = scores[:, rest].mean(axis=1)
        known, loss = scores[:, half].mean(axis=1), np.minimum(losses[:, half], 1.0).mean(axis=1)
        told = [known - weight * loss for weight in WEIGHTS]
        if goal.std() > 0 and min(t.std() for t in told) > 0:
            found.append([float(np.corrcoef(t, goal)[0, 1]) for t in told])
    if not found:
        return SHAPING
    likeness = np.mean(found, axis=0)
    return max(w for w, c in zip(WEIGHTS, likeness, strict=True) if c >= likeness.max() - ALIKE)
