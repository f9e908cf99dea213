"""What plans take in time: a table of predictions, and measurements of the models that are made of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx

from onnx_amc.config import Settings
from onnx_amc.delivery import one_feed, write_model
from onnx_amc.errors import OptionError
from onnx_amc.graph.groups import Analysis
from onnx_amc.listener import Listener
from onnx_amc.prune.surgery import cut, finish
from onnx_amc.run.clock import measure_by_command, measure_table, measure_table_by_command
from onnx_amc.run.latency import measure
from onnx_amc.run.table import LatencyTable

DOUBTFUL = 0.06
"""Median error of the table above which the user is told how to get a better one."""

SESSIONS = 3
"""Times that a model is measured, each in new sessions: where these lie in memory and on the cores makes some percent."""

ROUNDS = 5
"""Times that a command measures the original and a model in turn."""


def table_of(analysis: Analysis, settings: Settings, levels: Sequence[np.ndarray], listener: Listener) -> LatencyTable:
    """Measure some cut networks, on this machine or by the user's command, and predict all others from them."""

    def build(counts: np.ndarray) -> onnx.ModelProto:
        kept = {g.name: range(n) for g, n in zip(analysis.groups, counts.tolist(), strict=True) if n < g.channels}
        return finish(analysis, cut(analysis, kept))

    def progress(done: int, total: int) -> None:
        listener.advance(done, total=total)

    cache = _cache(settings, listener)
    listener.stage("latency table", None)
    if settings.latency_command is not None:
        table = measure_table_by_command(
            analysis, build, levels, settings.latency_command, seed=settings.seed, cache=cache, progress=progress
        )
    else:
        table = measure_table(
            analysis, build, levels, one_feed(analysis.model), threads=settings.threads, provider=settings.provider,
            seed=settings.seed, cache=cache, progress=progress,
        )  # fmt: skip
    if np.isfinite(table.error):  # where nothing may change there is no other plan
        listener.note(
            f"latency table: on plans that it was not learnt from it is {table.error:.1%} off (median), {table.worst:.1%} at worst"
        )
    if table.error > DOUBTFUL:
        listener.note(
            "latency table: that is much; a machine that does nothing else, or --threads 1, gives a better one"
        )
    return table


def ratio_of(analysis: Analysis, settings: Settings) -> Callable[[onnx.ModelProto], float]:
    """What measures a finished model's latency relative to the original's, in turn with it."""
    original = analysis.model.original

    def here(model: onnx.ModelProto) -> float:
        feed, threads = one_feed(analysis.model), settings.threads
        found = [
            measure([original, model], feed, seconds=2.0, threads=threads, provider=settings.provider)
            for _ in range(SESSIONS)
        ]
        return float(np.median([times[1].undisturbed for times in found]))

    def elsewhere(model: onnx.ModelProto) -> float:
        with tempfile.TemporaryDirectory(prefix="onnx-amc-") as folder:
            paths = [Path(folder) / name for name in ("original.onnx", "compressed.onnx")]
            for path, proto in zip(paths, (original, model), strict=True):
                write_model(proto, path)
            command = settings.latency_command or ""
            times = [[measure_by_command(command, path) for path in paths] for _ in range(ROUNDS)]
        return float(np.median([small / large for large, small in times]))

    return here if settings.latency_command is None else elsewhere


def _cache(settings: Settings, listener: Listener) -> Path | None:
    """Where measurements are kept; without the usual place they are not, which takes longer next time.

    Raises:
        OptionError: The place that was asked for cannot be written to.

    """
    place = Path(settings.cache) if settings.cache else _usual_cache()
    try:
        place.mkdir(parents=True, exist_ok=True)
        if os.access(place, os.W_OK):
            return place
        why = "no permission to write"
    except OSError as error:
        why = str(error.strerror)
    if settings.cache:
        raise OptionError(f"cannot be written to: {why}", where=f"--cache {place}", fix="choose another folder")
    listener.note(f"measurements are not kept, {place} cannot be written to ({why}): name a folder with --cache")
    return None


def _usual_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "onnx-amc"
