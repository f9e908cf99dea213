"""How long kernels and whole networks take in onnxruntime, several models in turn."""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort

from onnx_amc.errors import kept_aside
from onnx_amc.graph.proto import key_of
from onnx_amc.run.session import open_session, run_session

Feed = Mapping[str, np.ndarray]

CPU = "CPUExecutionProvider"
"""The only provider whose kernels are timed: elsewhere onnxruntime's profile does not wait for the device."""

WARM = 2
"""Runs of each session that do not count."""

LEAST = 4
"""Runs that count, at least."""

QUIET = 0.02
"""Share of a network's runs that nothing disturbs, at least: what else a machine does comes in bursts, and only slows them down."""

Laps = list[np.ndarray]
"""For each model, (runs, 2): seconds of the first model's run and of this one's right after it."""

SUFFIX = "_kernel_time"


class Kernel(NamedTuple):
    """One kernel that onnxruntime ran: its name, its operator and its microseconds."""

    name: str
    op: str
    microseconds: float


Kernels = tuple[Kernel, ...]
"""In the order in which they run."""


def in_turn(
    models: Sequence[onnx.ModelProto], feed: Feed, *, threads: int = 0, provider: str = CPU, runs: int = 20,
    seconds: float = math.inf, watch: bool = True,
) -> tuple[Laps, list[Kernels]]:  # fmt: skip
    """Run each model in turn with the first one: how long each run took, and the kernels of each model.

    Each model has a session that is timed, and one that is profiled: profiling takes time itself.

    Args:
        models: The models.
        feed: Input of one run.
        threads: Within an operator; 0 takes all cores.
        provider: Execution provider.
        runs: Runs of each session, at least 4, besides two that do not count.
        seconds: After which fewer runs must do.
        watch: Whether kernels are timed.

    Raises:
        ModelError: onnxruntime refuses a model or does not have the provider.
        DataError: It cannot run a model on this input.

    """
    with kept_aside(), tempfile.TemporaryDirectory(prefix="onnx-amc-") as folder:
        named = [_named(m) for m in models]
        plain = [open_session(m, threads=threads, provider=provider, beside=True) for m in named]
        paths = [str(Path(folder) / str(i)) for i in range(len(named))] if watch else []
        pairs = zip(named, paths, strict=False)
        watched = [open_session(m, threads=threads, provider=provider, profile=p, beside=True) for m, p in pairs]
        for session in plain:
            run_session(session, None, feed, where="latency")
        clock = stopwatch(threads, provider)
        each = seconds / max(len(models) - 1, 1) / (2 if watch else 1)

        def more(done: int, spent: float) -> bool:
            return done < LEAST or (done < runs and spent < each)

        laps = alternated(plain, feed, clock, WARM, more)
        if watch:
            alternated(watched, feed, clock, WARM, more)
        texts = [Path(s.end_profiling()).read_text(encoding="utf-8", errors="replace") for s in watched]
    return laps, [read_profile(t) for t in texts] or [() for _ in models]


def alternated(
    sessions: Sequence[ort.InferenceSession], feed: Feed, clock: Callable[[], float], warm: int,
    more: Callable[[int, float], bool],
) -> Laps:  # fmt: skip
    """Run each session in turn with the first one, and with no other between them.

    A third network in the turn takes the caches from both.

    Args:
        sessions: Of the models.
        feed: Input of one run.
        clock: Tells seconds.
        warm: Runs of each, next to the first, that do not count.
        more: Runs that count and seconds they took -> whether to go on.

    """
    fed = [{i.name: feed[i.name] for i in s.get_inputs()} for s in sessions]

    def lap(which: int) -> float:
        start = clock()
        sessions[which].run(None, fed[which])
        return clock() - start

    laps: Laps = []
    for other in range(1, len(sessions)) if len(sessions) > 1 else (0,):
        found: list[tuple[float, float]] = []
        begun = time.monotonic()
        while len(found) < warm or more(len(found) - warm, time.monotonic() - begun):
            first = lap(0)
            found.append((first, lap(other) if other else first))
        laps.append(np.array(found[warm:]))
    alone = np.concatenate(laps)[:, :1]
    return [np.repeat(alone, 2, axis=1), *laps[: len(sessions) - 1]]


def undisturbed(laps: np.ndarray) -> float:
    """Return what the second of two networks takes in relation to the first where nothing disturbs them.

    A median is as good on a machine that does nothing else, and moves by tens of percent on one that does.

    Args:
        laps: (runs, 2), seconds of both in turn.

    """
    first, second = np.quantile(laps, QUIET, axis=0)
    return float(second / first)


def stopwatch(threads: int, provider: str) -> Callable[[], float]:
    """Return what time is taken by: calls give seconds.

    A single thread computes in the one that calls, and its processor time is what the wall clock would show on a machine that
    does nothing else: other processes disturb it little. (On Windows it moves in steps of 16 ms.)
    """
    return time.thread_time if threads == 1 and provider == CPU and sys.platform != "win32" else time.perf_counter


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with a name of its own for every node: a copy, where any has none."""
    names = [n.name for n in model.graph.node]
    if all(names) and len(set(names)) == len(names):
        return model
    copy = deepcopy(model)
    taken: set[str] = set()
    for node in copy.graph.node:
        if not node.name or node.name in taken:
            node.name = key_of(node)
        taken.add(node.name)
    return copy


def read_profile(text: str) -> Kernels:
    """Read a profile: kernels in the order of their first run; nothing where it cannot be read.

    What runs inside another kernel (a loop's body) counts for that one. Times are whole microseconds, hence a mean.
    """
    try:
        events = json.loads(text)
    except ValueError:  # onnxruntime writes names as they are, quotes and all
        return ()
    starts = np.sort([e["ts"] for e in events if e.get("name") == "model_run"])
    if len(starts) <= WARM:
        return ()
    times: dict[tuple[str, str], np.ndarray] = {}
    end = -math.inf
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(SUFFIX)]
    for event in sorted(nodes, key=lambda e: (e["ts"], -e["dur"])):
        run = int(np.searchsorted(starts, event["ts"], side="right")) - 1
        if event["ts"] >= end and run >= 0:
            end = event["ts"] + event["dur"]
            key = event["name"].removesuffix(SUFFIX), event["args"].get("op_name", "")
            times.setdefault(key, np.zeros(len(starts)))[run] += event["dur"]
    half = math.ceil((len(starts) - WARM) / 2)
    return tuple(Kernel(*key, float(np.sort(t[WARM:])[:half].mean())) for key, t in times.items())
