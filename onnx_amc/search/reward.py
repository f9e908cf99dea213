"""What the search makes of a score: the paper's rewards, or one of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field

import numpy as np

from onnx_amc.errors import OptionError
from onnx_amc.search.shaping import SHAPING, SHARE, WORST, Scale

REWARDS = ("error", "flops", "params", "size", "latency")
"""R_err = -Error, and with something else R = -Error log(cost) (AMC section 3.3)."""


LARGEST = 1e15
"""A reward must be smaller: agents compute its square in single precision."""


@dataclass
class Rule:
    """How good a plan is, higher is better; all plans of a search share one.

    Args:
        shaping: What a unit of the outputs' error counts for beside a unit of the score; a search chooses it anew as it learns
            (see `search.shaping`).
        scale: Of the score; the error counts in its units, for agents and weights are made for shares: a score in decibels would
            outweigh every loss, one in squared millimetres none.
        cost: What stands in the logarithm, as a function of the counts; None for R_err.
        own: The user's function of score, loss and counts, in place of all that.

    """

    shaping: float = SHAPING
    scale: Scale = SHARE
    cost: Callable[[np.ndarray], float] | None = None
    own: Callable[[float, float, np.ndarray], float] | None = None
    _known: dict[tuple[float, float, bytes], float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def short(self, score: float, loss: float) -> float:
        """R_err: what is missing to the best score, below zero, less the weighted loss; neither counts without bound.

        One plan whose network explodes would outweigh all that an agent learns from the others.
        """
        return float(self.missing(np.float64(score))) - self.shaping * min(loss, 1.0)

    def missing(self, scores: np.ndarray | np.float64) -> np.ndarray:
        """How far scores are from the best one, in their unit; below zero."""
        best, unit = self.scale
        return np.maximum((scores - best) / unit, -WORST)

    def __call__(self, score: float, loss: float, counts: np.ndarray) -> float:
        """Return the reward of a plan."""
        if self.own is not None:
            own = self.own
            return self._once(lambda: float(own(score, loss, counts)), (score, loss, counts.tobytes()))
        short, cost = self.short(score, loss), self.cost
        if cost is None:
            return short
        dear = self._once(lambda: math.log(max(cost(counts), math.e)), (0.0, 0.0, counts.tobytes()))
        # Above the best score that was known, what is cheap is better still.
        return short * dear if short <= 0 else short / dear

    def settled(self) -> Rule:
        """The same for plans that were rewarded before, and for no others: it holds no functions, so it can be pickled."""
        other = copy(self)
        other.cost, other.own = self.cost and _forgotten, self.own and _forgotten
        return other

    def _once(self, compute: Callable[[], float], key: tuple[float, float, bytes]) -> float:
        """What was computed before: rewards are compared anew with every plan that is tried."""
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


def _forgotten(*_given: object) -> float:
    raise RuntimeError("a rule that was pickled knows the rewards of plans that were tried, and no others")


def users(
    function: Callable[..., float], name: str, shares: Callable[[np.ndarray], dict[str, float]], score: float, loss: float,
    counts: np.ndarray,
) -> float:  # fmt: skip
    """The user's reward of a plan.

    Args:
        function: What the user has written.
        name: As the user has named it.
        shares: What a plan costs, by kind, as shares of the original.
        score: Of the plan.
        loss: Of its outputs.
        counts: int (groups,).

    Raises:
        OptionError: It fails, or returns no finite number.

    """
    costs = shares(counts)
    try:
        found = float(function(score, loss, costs))
    except Exception as error:  # the user's own code may raise anything
        what = f"'{name}' failed: {type(error).__name__}: {error}"
        raise OptionError(
            what, where="--reward", fix="call it with (score, loss, {'flops': 0.5, ...}) to see why"
        ) from error
    if not abs(found) < LARGEST:
        what = f"'{name}' returned {found}"
        raise OptionError(
            what, where="--reward", fix=f"return a finite number, below {LARGEST:g} and above {-LARGEST:g}"
        )
    return found
