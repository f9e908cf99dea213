"""What the agent sees: the paper's eleven features of each step (AMC section 3.1), scaled to [0, 1] over the walk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEATURES = ("t", "n", "c", "h", "w", "stride", "k", "flops", "reduced", "rest", "previous")


@dataclass(frozen=True)
class LayerFacts:
    """The layer that reads most of a group, in its original size.

    Args:
        outputs: Output channels n.
        inputs: Input channels c.
        height: Input height h, elements; 1 where there is none.
        width: Input width w, elements; 1 where there is none.
        stride: Of the kernel.
        kernel: Kernel size k, elements of the first spatial axis.
        flops: Multiply-accumulates that go through the group: those of all layers that read it.

    """

    outputs: int
    inputs: int
    height: int
    width: int
    stride: int
    kernel: int
    flops: int


class State:
    """Builds observations.

    Args:
        facts: Of each step.
        whole: What the whole network costs, in the unit of `observe`'s prices.

    """

    def __init__(self, facts: Sequence[LayerFacts], whole: int) -> None:
        raw = np.array(
            [[i, f.outputs, f.inputs, f.height, f.width, f.stride, f.kernel, f.flops] for i, f in enumerate(facts)],
            dtype=np.float64,
        ).reshape(len(facts), 8)
        self._static = raw / np.maximum(raw.max(axis=0, initial=0.0), 1e-12)
        flops = raw[:, 7]
        self._rest = (flops[::-1].cumsum()[::-1] - flops) / max(flops.sum(), 1e-12)
        self._whole = whole

    def observe(self, step: int, price: int, previous: float) -> np.ndarray:
        """Float32 (11,): what is seen before step `step`, with `price` what the network costs as cut so far.

        What is removed so far is told in the unit of the price, the budget's; what is left to come in multiply-accumulates.
        """
        at = min(step, len(self._static) - 1)
        reduced = 1.0 - price / self._whole if self._whole else 0.0
        dynamic = [reduced, self._rest[at], previous]
        seen: np.ndarray = np.clip(np.concatenate([self._static[at], dynamic]), 0.0, 1.0).astype(np.float32)
        return seen
