"""Plans in closed form: uniform, shallow, deep, random, and a knapsack over measured errors."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import PchipInterpolator

from onnx_amc.search.space import Space

NOTHING = 1e-30
"""Losses below this are zero: their slopes would overflow."""


def uniform(space: Space) -> np.ndarray:
    """Every group at the same ratio, the largest that meets the budget."""
    return space.largest(lambda s: np.full(len(space), s))


def slanted(space: Space, direction: str) -> np.ndarray:
    """Return the paper's hand-made policies: `shallow` cuts the first groups hardest, `deep` the last."""
    depth = np.linspace(0.0, 1.0, len(space)) if len(space) > 1 else np.zeros(len(space))
    if direction == "deep":
        depth = 1.0 - depth
    return space.largest(lambda s: np.clip(s * (0.4 + 1.2 * depth) + max(0.0, 2 * s - 1) * 0.6, 0.0, 1.0))


def random(space: Space, rng: np.random.Generator) -> np.ndarray:
    """Uniform random ratios, each clamped so that the budget stays in reach (Algorithm 1)."""
    counts = space.full.copy()
    for step in range(len(space)):
        index = min(space.nearest(step, rng.uniform()), space.highest(counts, step))
        counts[step] = space.levels[step][index]
    return counts


def curve(levels: np.ndarray, ratios: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Error at each level from losses measured at a few kept ratios: monotone, zero where nothing is cut.

    Args:
        levels: Ascending counts.
        ratios: Kept ratios at which the loss was measured.
        losses: The losses.

    """
    worst = {0.0: 0.0}
    for ratio, loss in zip(ratios.tolist(), losses.tolist(), strict=True):
        gone = 1.0 - ratio
        worst[gone] = max(worst.get(gone, 0.0), loss) if gone > 0 else 0.0
    removed = np.array(sorted(worst))
    found = np.maximum.accumulate(np.array([worst[r] if worst[r] > NOTHING else 0.0 for r in removed]))
    if len(removed) == 1:
        return np.zeros(len(levels))
    if removed[-1] < 1.0:
        slope = (found[-1] - found[-2]) / max(removed[-1] - removed[-2], 1e-9)
        removed = np.append(removed, 1.0)
        found = np.append(found, found[-1] + 2 * slope * (1.0 - removed[-2]))
    return np.asarray(PchipInterpolator(removed, found)(1.0 - levels / levels[-1]), dtype=np.float64)


def knapsack(space: Space, errors: list[np.ndarray]) -> np.ndarray:
    """Least summed error within the budget, greedily: take the cut that costs least error per unit of price saved.

    Prices are exact at every step, since a layer's price is the product of both its sides. A cut may be several levels deep, so
    a flat stretch behind a steep one is found. What the last cut saved too much is given back where it helps most.

    Args:
        space: Levels, price and budget.
        errors: For each group the error at each of its levels.

    """
    at = np.array([len(lv) - 1 for lv in space.levels])
    while not space.feasible(space.counts(at)):
        now, best = space.price(space.counts(at)), (np.inf, -1, -1)
        for g in range(len(space)):
            for to in range(at[g]):
                trial = at.copy()
                trial[g] = to
                saved = now - space.price(space.counts(trial))
                if saved > 0:
                    best = min(best, ((errors[g][to] - errors[g][at[g]]) / saved, g, to), key=lambda b: b[0])
        if best[1] < 0:
            return space.smallest
        at[best[1]] = best[2]
    return space.counts(_give_back(space, errors, at))


def _give_back(space: Space, errors: list[np.ndarray], at: np.ndarray) -> np.ndarray:
    """Raise levels, best gain first, while the budget allows."""
    while True:
        gains = []
        for g in range(len(space)):
            for to in range(at[g] + 1, len(space.levels[g])):
                trial = at.copy()
                trial[g] = to
                if not space.feasible(space.counts(trial)):
                    break
                gains.append((errors[g][at[g]] - errors[g][to], -g, to))
        gains = [g for g in gains if g[0] > 0]
        if not gains:
            return at
        _, g, to = max(gains)
        at[-g] = to
