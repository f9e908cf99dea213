"""Measured latency: the candidates in turn, medians, batch 1."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_amc.errors import OptionError
from onnx_amc.run.kernels import stopwatch
from onnx_amc.run.session import open_session, run_session

ENOUGH, LEAST = 2_000, 3
"""Runs of each model after which a median does not get better, and below which it is none."""


@dataclass(frozen=True)
class Latency:
    """What was measured.

    Args:
        milliseconds: Median of one run.
        ratio: Median of the paired ratios to the first candidate.

    """

    milliseconds: float
    ratio: float


def measure(
    models: Sequence[onnx.ModelProto | str], feed: Mapping[str, np.ndarray], *, seconds: float = 3.0, threads: int = 0,
    provider: str = "CPUExecutionProvider",
) -> list[Latency]:  # fmt: skip
    """Time the models in turn on the same input, so that a noisy machine disturbs all of them alike.

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
        sessions = list(pool.map(lambda m: open_session(m, threads=threads, provider=provider), models))
    if strange := [i.name for s in sessions for i in s.get_inputs() if i.name not in feed]:
        raise OptionError(
            f"one of the models takes an input '{strange[0]}', the first one {', '.join(map(repr, feed))}",
            where="latency",
            fix="time models side by side that take the same inputs",
        )
    feeds = [{i.name: feed[i.name] for i in s.get_inputs()} for s in sessions]
    for session, fed in zip(sessions, feeds, strict=True):
        run_session(session, None, fed, where="latency")  # the first run allocates
    times: list[list[float]] = []
    clock = stopwatch(threads, provider)
    end = time.perf_counter() + seconds
    while (time.perf_counter() < end and len(times) < ENOUGH) or len(times) < LEAST:
        row = []
        for session, fed in zip(sessions, feeds, strict=True):
            start = clock()
            session.run(None, fed)
            row.append(clock() - start)
        times.append(row)
    table = np.array(times)
    ratios = table / table[:, :1]
    return [Latency(float(np.median(table[:, i]) * 1e3), float(np.median(ratios[:, i]))) for i in range(len(models))]
