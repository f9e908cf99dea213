"""Measured latency: each candidate in turn with the first, medians, batch 1."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_amc.errors import OptionError
from onnx_amc.run.kernels import alternated, stopwatch, undisturbed
from onnx_amc.run.session import open_session, run_session

ENOUGH, LEAST = 2_000, 3
"""Runs of each model after which a median does not get better, and below which it is none."""

APART = 1.25
"""Factor between ratios of the same two networks from which they need a word."""

CHANGES = 10
"""Times that every model gets its turn, so that what disturbs the machine for a while disturbs all alike."""


@dataclass(frozen=True)
class Latency:
    """What was measured.

    Args:
        milliseconds: Median of one run.
        ratio: Median of the paired ratios to the first candidate.
        undisturbed: The ratio to the first candidate while the machine does nothing else.

    """

    milliseconds: float
    ratio: float
    undisturbed: float


def measure(
    models: Sequence[onnx.ModelProto | str], feed: Mapping[str, np.ndarray], *, seconds: float = 3.0, threads: int = 0,
    provider: str = "CPUExecutionProvider",
) -> list[Latency]:  # fmt: skip
    """Time each model in turn with the first one on the same input, so that a noisy machine disturbs both alike.

    Args:
        models: Candidates; the first is what the others are compared with.
        feed: Input of one run.
        seconds: To spend at most; every model is run 3 to 2,000 times.
        threads: Of each session; 0 takes all cores.
        provider: Execution provider.

    Raises:
        OptionError: A model takes an input that is not in the feed.

    """
    with ThreadPoolExecutor() as pool:
        sessions = list(pool.map(lambda m: open_session(m, threads=threads, provider=provider, beside=True), models))
    if strange := [i.name for s in sessions for i in s.get_inputs() if i.name not in feed]:
        raise OptionError(
            f"one of the models takes an input '{strange[0]}', the first one {', '.join(map(repr, feed))}",
            where="latency",
            fix="time models side by side that take the same inputs",
        )
    for session in sessions:
        run_session(session, None, feed, where="latency")  # the first run allocates
    clock, each = stopwatch(threads, provider), seconds / max(len(sessions) - 1, 1) / CHANGES

    def more(done: int, spent: float) -> bool:
        return done < 1 or (spent < each and done < ENOUGH // CHANGES)

    warm = int(len(sessions) > 2)  # the first run finds the caches as another model has left them
    parts = list[list[np.ndarray]]()
    end = time.perf_counter() + seconds
    while len(parts) < LEAST or (len(parts) < CHANGES and time.perf_counter() < end):
        parts.append(alternated(sessions, feed, clock, warm, more))
    times = [np.concatenate(laps) for laps in zip(*parts, strict=True)]
    return [
        Latency(float(np.median(t[:, 1]) * 1e3), float(np.median(t[:, 1] / t[:, 0])), undisturbed(t)) for t in times
    ]


def disturbed(found: Sequence[Latency]) -> str | None:
    """Say that several ways to compare do not agree, if so: what else the machine did came and went between the turns."""
    first = found[0].milliseconds
    ways = [(f.milliseconds / first, f.ratio, f.undisturbed) for f in found]
    medians, paired, quickest = worst = max(ways, key=lambda way: max(way) / min(way))
    if max(worst) / min(worst) < APART:
        return None
    return (
        f"latency was disturbed by what else the machine does: {medians:.2f}x by the medians, {paired:.2f}x in turn, "
        f"{quickest:.2f}x in the quickest runs; the last is nearest to the truth, `onnx-amc bench` on an idle machine tells"
    )
