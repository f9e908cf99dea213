"""Racing: a plan that is hopeless on a part of the samples is not scored on the others.

All plans are scored on the same samples, so what a part of them says too much or too little it says of all plans alike: the plans
scored on all samples tell by how much, and how sure that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from onnx_amc.search.reward import Rule

ENOUGH = 8
"""Plans scored on all samples that it takes to know what a part says."""

RISK = 0.001
"""Of the plans that are as good as the level asks for, the share that is stopped."""


@dataclass(frozen=True)
class Bar:
    """What a plan must reach on the first samples to be scored on all.

    Args:
        rule: The reward, of score and loss alone.
        level: The reward to reach.
        margin: Reward that the first samples may be wrong by.
        score: What the first samples add to the score on all.
        loss: What they add to the loss.

    """

    rule: Rule
    level: float
    margin: float
    score: float
    loss: float

    def __call__(self, score: float, loss: float) -> tuple[float, float] | None:
        """Return what score and loss on all samples are likely to be if that is hopeless, else None."""
        likely = score - self.score, max(loss - self.loss, 0.0)
        return likely if self.rule.short(*likely) + self.margin < self.level else None


def bar_of(
    rule: Rule, scores: Sequence[tuple[float, float]], parts: Sequence[tuple[float, ...]], first: int, level: float
) -> Bar | None:
    """Return the bar that plans scored on all samples set; None where they are too few, or the reward needs more than a score.

    Args:
        rule: The reward.
        scores: Of each plan its score and its loss.
        parts: Of each plan the same two for each part of the samples, in turn.
        first: How many parts a plan is scored on first.
        level: The reward to reach.

    """
    if len(scores) < ENOUGH or rule.cost is not None or rule.own is not None:
        return None
    whole, split = np.array(scores), np.array(parts)
    early = split[:, : 2 * first].reshape(len(split), first, 2).mean(axis=1)
    score, loss = (early - whole).mean(axis=0)
    off = [rule.short(s - score, v - loss) - rule.short(*w) for (s, v), w in zip(early, whole, strict=True)]
    doubt = stdtrit(len(off) - 1, 1 - RISK) * np.sqrt(1 + 1 / len(off))  # Student's: how far off one more plan may be
    return Bar(rule, level, float(doubt * np.std(off, ddof=1)), float(score), float(loss))
