"""The space of plans: levels of each group, and the budget that every plan must meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnx_amc.errors import BudgetError

Lanes = tuple[bool, int, bool, int]
"""How a group's channels lie on their axes, see `onnx_amc.graph.groups.Lanes`: together, repeat, partial, fewest."""

ALONE: Lanes = (False, 1, False, 1)

Prices = Callable[[np.ndarray], np.ndarray]
"""Int (plans, groups) counts -> int (plans,), what each plan costs."""


def multiple_of(channels: int, round_to: int | None, lanes: Lanes = ALONE, block: int = 8) -> int:
    """Return the multiple that a group's counts are kept at.

    Args:
        channels: Of the group.
        round_to: The user's multiple, or None for what onnxruntime's blocked kernels like: a block where the channels fill an axis
            of eight blocks or more; on a narrower one, where that would cost too much accuracy, 8 from 64 channels on, else 4;
            nothing below 8.
        lanes: How the channels lie on their axes: a head of 64 columns is no matter for rounding; within a grouped convolution,
            before a pool and before a Concat it is a block, or 8 where there is no more than one.
        block: Channels that the kernels take at a time, 8 or 16.

    """
    if round_to is not None:
        return round_to
    together, repeat, partial, _ = lanes
    if together and channels > 8:
        return block if channels > block else 8
    width = channels * repeat
    wanted = block if width >= 8 * block else 8 if width >= 64 else 4 if width >= 8 or partial else 1
    return wanted // math.gcd(wanted, repeat)


def levels_of(channels: int, round_to: int | None, min_keep: float, lanes: Lanes = ALONE, block: int = 8) -> np.ndarray:
    """Ascending counts that a group may keep: multiples, at least `min_keep` of the channels, and always all of them.

    On an axis that is shared with other groups it is what goes that comes in multiples, so that the axis stays aligned.
    """
    step, (_, _, partial, fewest) = multiple_of(channels, round_to, lanes, block), lanes
    floor = max(fewest, int(np.ceil(min_keep * channels - 1e-9)))
    start = channels % step if partial and round_to is None else step
    below = np.arange(start, channels, step)
    return np.append(below[below >= floor], channels)


def upward(ratio: float) -> float:
    """A ratio to four digits, rounded up: what is told to be in reach must be so."""
    return float(np.ceil(1e4 * ratio) / 1e4)


@dataclass(frozen=True)
class Space:
    """Levels, price and budget; a plan here is an int (groups,) array of counts.

    Args:
        names: Of the groups.
        levels: For each group the counts it may keep, ascending.
        prices: Of plans, exact.
        limit: What a plan may cost at most.
        unit: What the price counts, for messages.
        whole: What the original costs; None for what the price of everything kept is.

    """

    names: tuple[str, ...]
    levels: tuple[np.ndarray, ...]
    prices: Prices
    limit: int
    unit: str = "MACs"
    whole: int | None = None

    @cached_property
    def full(self) -> np.ndarray:
        """Everything kept."""
        return np.array([lv[-1] for lv in self.levels], dtype=np.int64)

    @cached_property
    def smallest(self) -> np.ndarray:
        """As little kept as the levels allow."""
        return np.array([lv[0] for lv in self.levels], dtype=np.int64)

    def __len__(self) -> int:
        """Groups."""
        return len(self.levels)

    def counts(self, index: np.ndarray) -> np.ndarray:
        """Return the plan at these positions among each group's levels."""
        return np.array([lv[i] for lv, i in zip(self.levels, index, strict=True)], dtype=np.int64)

    def indices(self, counts: np.ndarray) -> np.ndarray:
        """Return the position of each count among its group's levels."""
        found = [int(np.searchsorted(lv, n)) for lv, n in zip(self.levels, counts, strict=True)]
        return np.array(found, dtype=np.int64)

    def price(self, counts: np.ndarray) -> int:
        """Return what one plan costs."""
        return int(self.prices(counts[None])[0])

    @cached_property
    def _original(self) -> int:
        return max(self.price(self.full) if self.whole is None else self.whole, 1)

    def ratio(self, counts: np.ndarray) -> float:
        """Return what one plan costs relative to the original."""
        return self.price(counts) / self._original

    def feasible(self, counts: np.ndarray) -> bool:
        """Whether a plan meets the budget."""
        return self.price(counts) <= self.limit

    def check(self, ratio: float, *, where: str, blocked: Sequence[str], remedy: str = "lower --min-keep") -> None:
        """Refuse a budget that no plan can meet.

        Raises:
            BudgetError: With the smallest ratio that can be reached, and what is in the way.

        """
        if self.feasible(self.smallest):
            return
        reachable = upward(self.ratio(self.smallest))
        raise BudgetError(
            f"{ratio:.4g} of the {self.unit} cannot be reached; the smallest is {reachable:.4f}"
            + (f". In the way: {'; '.join(blocked[:3])}" if blocked else ""),
            where=where,
            fix=(f"ask for {reachable:.4f} or more, or " if reachable < 1 else "") + remedy,
        )

    def highest(self, counts: np.ndarray, step: int) -> int:
        """Algorithm 1's bound: the largest index into `levels[step]` that can still meet the budget.

        Earlier groups keep what `counts` says, later ones are taken at their smallest; both sides of each layer are priced.
        """
        trial = self.smallest.copy()
        trial[:step] = counts[:step]
        low, high = 0, len(self.levels[step]) - 1
        while low < high:
            middle = (low + high + 1) // 2
            trial[step] = self.levels[step][middle]
            low, high = (middle, high) if self.feasible(trial) else (low, middle - 1)
        return low

    def nearest(self, step: int, ratio: float) -> int:
        """Index of the level closest to this kept ratio; of two equally close ones the lower."""
        return int(np.argmin(np.abs(self.levels[step] - ratio * self.levels[step][-1])))

    def at(self, ratios: np.ndarray | float) -> np.ndarray:
        """Return the plan closest to the given kept ratios, whatever it costs."""
        wanted = np.broadcast_to(np.asarray(ratios, dtype=np.float64), (len(self),))
        return self.counts(np.array([self.nearest(i, float(ratio)) for i, ratio in enumerate(wanted)], dtype=np.int64))

    def largest(self, family: Callable[[float], np.ndarray]) -> np.ndarray:
        """Return the largest plan within the budget, of a family of ratio profiles that grows with its parameter in [0, 1]."""
        low, high = 0.0, 1.0
        if self.feasible(self.at(family(high))):
            return self.at(family(high))
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.feasible(self.at(family(middle))) else (low, middle)
        best = self.at(family(low))
        return best if self.feasible(best) else self.smallest
