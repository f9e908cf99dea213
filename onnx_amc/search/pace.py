"""What plans were measured to cost, against what a table foretold: where to look next, and what to expect of another plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Timed = tuple[float, float]
"""Price of a plan by the table, and what its model was measured to cost."""


@dataclass
class Bracket:
    """False position between a plan that costs little enough, at first one of nothing, and one that costs too much.

    Args:
        goal: What a plan is to cost as measured.
        fits: The dearest plan that costs little enough.
        beyond: The last plan that costs too much; None before there is one.

    """

    goal: float
    fits: Timed = (0.0, 0.0)
    beyond: Timed | None = None

    def wanted(self) -> int:
        """The price at which the goal is to be expected, below that of what costs too much."""
        low, high = (self.fits, self.beyond) if self.beyond else ((0.0, 0.0), self.fits)
        price = low[0] + (high[0] - low[0]) * (self.goal - low[1]) / (high[1] - low[1])
        return int(min(price, self.beyond[0] - 1) if self.beyond else price)


Known = tuple[bytes | None, float, float]
"""Of a plan that was timed its key if it might have been delivered, its price, and the time."""


def pace_of(price: float, key: bytes, known: Sequence[Known]) -> float:
    """Time of a plan relative to its price, by others, as the table errs alike on like plans; 1 where there is none.

    It lies between the next cheaper and the next dearer one. Those that might have been delivered go before those that were timed
    earlier.
    """
    others = [one for one in known if one[0] != key]
    like = sorted([one[1:] for one in others if one[0] is not None] or [one[1:] for one in others])
    if not like:
        return 1.0
    prices, times = np.array(like).T
    return float(np.interp(price, prices, times / prices))
