"""Plans in closed form: uniform, shallow, deep, random, and a knapsack over measured errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnx_amc.search.space import Space

NOTHING = 1e-30
"""Losses below this are zero: their slopes would overflow."""

LEAST = 0.1
"""Share of the usual factor below which a group's measured worth is taken for noise."""

Exchange = tuple[float, np.ndarray]
"""Error that an exchange adds, and the levels of the plan after it."""

REACH = 3
"""Levels that a group is lowered by, at most, in exchange for another's."""


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
    from scipy.interpolate import PchipInterpolator  # noqa: PLC0415  half a second to import

    return np.asarray(PchipInterpolator(removed, found)(1.0 - levels / levels[-1]), dtype=np.float64)


def knapsack(space: Space, errors: Sequence[np.ndarray]) -> np.ndarray:
    """Least summed error within the budget: greedily, then by exchanges.

    The cut that costs least error per unit of price saved is taken until the budget is met. A cut may be several levels deep, so
    a flat stretch behind a steep one is found. Prices are exact at every step: a layer's is the product of both its sides, which
    is why dynamic programming over the groups does not apply. Then one group is raised, alone or in exchange for another that is
    lowered, as long as that takes error away.

    Args:
        space: Levels, price and budget.
        errors: For each group the error at each of its levels.

    """
    moves, at = _Moves(space, errors), space.indices(lowered(space, errors, space.full))
    while True:
        gain, better = min(moves.exchanges(at), key=lambda found: found[0], default=(0.0, at))
        if gain > -NOTHING:
            return space.counts(at)
        at = better


def lowered(space: Space, errors: Sequence[np.ndarray], counts: np.ndarray, reach: float = np.inf) -> np.ndarray:
    """Return a plan within the budget below a given one, by the cuts that cost least error per unit of price saved.

    Args:
        space: Levels, price and budget.
        errors: For each group the error at each of its levels.
        counts: int (groups,), where to begin.
        reach: Levels that a group is lowered by at once, at most.

    """
    moves = _Moves(space, errors)
    groups, level = moves.groups, moves.level
    at = space.indices(counts)
    while not space.feasible(space.counts(at)):
        lower = np.flatnonzero((level < at[groups]) & (level >= at[groups] - reach))
        saved = space.price(space.counts(at)) - moves.prices(at, lower)
        lower, saved = lower[saved > 0], saved[saved > 0]
        if not len(lower):
            return space.smallest
        best = lower[np.argmin(moves.gained(at, lower) / saved)]
        at[groups[best]] = level[best]
    return space.counts(at)


def exchanged(
    space: Space, errors: Sequence[np.ndarray], counts: np.ndarray, known: Callable[[np.ndarray], bool]
) -> np.ndarray | None:
    """Return the plan next to a given one that the table of errors likes best among those that are not known; None without any."""
    found = _Moves(space, errors).exchanges(space.indices(counts), known)
    return space.counts(min(found, key=lambda exchange: exchange[0])[1]) if found else None


class _Moves:
    """All moves of one group to one of its levels, and what they do to a plan."""

    def __init__(self, space: Space, errors: Sequence[np.ndarray]) -> None:
        sizes = [len(lv) for lv in space.levels]
        self.space, self.error = space, np.concatenate(list(errors))
        self.groups = np.repeat(np.arange(len(space)), sizes)
        self.level = np.concatenate([np.arange(n) for n in sizes])
        self.start = np.cumsum([0, *sizes])[:-1]

    def prices(self, at: np.ndarray, moves: np.ndarray) -> np.ndarray:
        """Price of the plan after each move."""
        plans = np.tile(self.space.counts(at), (len(moves), 1))
        counts = np.concatenate(self.space.levels)
        plans[np.arange(len(moves)), self.groups[moves]] = counts[moves]
        return self.space.prices(plans)

    def gained(self, at: np.ndarray, moves: np.ndarray) -> np.ndarray:
        """Error that each move adds."""
        return np.asarray(self.error[moves] - self.error[(self.start + at)[self.groups[moves]]])

    def exchanges(self, at: np.ndarray, known: Callable[[np.ndarray], bool] = lambda _: False) -> list[Exchange]:
        """For each group lowered by up to `REACH` levels, or none, the raise that then takes most error away.

        Args:
            at: int (groups,), levels of the plan to change.
            known: Which plans to leave out.

        """
        found: list[Exchange] = []
        depth = at[self.groups] - self.level
        for lowered in [-1, *np.flatnonzero((depth > 0) & (depth <= REACH)).tolist()]:
            trial, lost, other = at.copy(), 0.0, -1
            if lowered >= 0:
                other = self.groups[lowered]
                trial[other] = self.level[lowered]
                lost = float(self.gained(at, np.array([lowered]))[0])
            raises = np.flatnonzero((self.level > trial[self.groups]) & (self.groups != other))
            raises = raises[self.prices(trial, raises) <= self.space.limit]
            for chosen in raises[np.argsort(self.gained(trial, raises), kind="stable")]:
                plan = trial.copy()
                plan[self.groups[chosen]] = self.level[chosen]
                if not known(self.space.counts(plan)):
                    found.append((lost + float(self.gained(trial, np.array([chosen]))[0]), plan))
                    break
        return found


def reweighed(
    space: Space, errors: Sequence[np.ndarray], counts: np.ndarray, lowered: np.ndarray, losses: np.ndarray
) -> list[np.ndarray]:
    """Return the table of errors with each group's row scaled to what lowering it costs in a network that is cut everywhere.

    A group that could not be lowered gets the median of the others' factors; none gets less than `LEAST` of that.

    Args:
        space: Levels, price and budget.
        errors: For each group the error at each of its levels, measured with the others whole.
        counts: int (groups,), the plan around which was measured.
        lowered: int (groups,), to how many channels each group was lowered in turn.
        losses: (groups,), what each of these changes added.

    """
    pairs = zip(errors, space.indices(counts), space.indices(lowered), strict=True)
    expected = np.array([e[to] - e[at] for e, at, to in pairs])
    known = expected > NOTHING
    if not known.any():
        return list(errors)
    factors = losses[known] / expected[known]
    usual = max(float(np.median(factors)), NOTHING)
    every = np.full(len(errors), usual)
    every[known] = np.maximum(factors, LEAST * usual)
    return [factor * e for factor, e in zip(every, errors, strict=True)]
