"""Measure a few plans, here or on a device elsewhere, so that the latency of all others can be predicted.

The plans are the whole network, uniform ones, and random ones in which every group takes all its levels about equally often: each
of those says something about every group, where a plan that changes one group alone drowns in the noise. They are measured in
several rounds, each in another order, because what disturbs a machine lasts longer than one measurement.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnx_amc.errors import OptionError, kept_aside
from onnx_amc.files import whole
from onnx_amc.graph import light
from onnx_amc.graph.groups import Analysis
from onnx_amc.run.crew import usable_cores
from onnx_amc.run.kernels import CPU, Feed, Kernel, in_turn, undisturbed
from onnx_amc.run.learn import Probe, learn
from onnx_amc.run.table import LatencyTable

Build = Callable[[np.ndarray], onnx.ModelProto]
"""Int (groups,) counts -> the cut model; how good it is does not matter."""

Progress = Callable[[int, int], None]

FORMAT = 3
UNIFORM = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Kept ratios of the uniform plans; 0 is the smallest plan there is."""

MEMORY = 2**30
"""Bytes of weights that models measured in turn may have together."""

SCRIPT = 2**20
"""Bytes of a file up to which it may be the script that says which device is meant."""


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Args:
        random: Random plans, besides the whole network and the uniform plans.
        rounds: How often each plan is measured, each time from a new session.
        runs: Runs of each model each time, at least 4.
        seconds: For each model each time, after which fewer runs must do.
        together: Plans that are measured at a time, each in turn with the whole network.

    """

    random: int = 24
    rounds: int = 3
    runs: int = 12
    seconds: float = 1.5
    together: int = 3


# ---- plans -----------------------------------------------------------------------------------------------------------


def probe_plans(levels: Sequence[np.ndarray], count: int, seed: int) -> np.ndarray:
    """Int (plans, groups): the whole network, the uniform plans, and random ones; none of them twice.

    Over the random plans each group takes every level about equally often.

    Args:
        levels: For each group the counts it may keep, ascending.
        count: Random plans.
        seed: Of their choice.

    """
    rng = np.random.default_rng(seed)
    drawn = [
        lv[((rng.permutation(count) + rng.random(count)) / max(count, 1) * len(lv)).astype(np.int64)] for lv in levels
    ]
    even = [[lv[np.argmin(np.abs(lv - ratio * lv[-1]))] for lv in levels] for ratio in UNIFORM]
    full = [lv[-1] for lv in levels]
    plans = np.array([full, *even, *np.array(drawn).T.reshape(count, len(levels))], dtype=np.int64)
    _, first = np.unique(plans, axis=0, return_index=True)
    return plans[np.sort(first)]


def measure_table(
    analysis: Analysis, build: Build, levels: Sequence[np.ndarray], feed: Feed, *, threads: int = 0, provider: str = CPU,
    seed: int = 0, probes: Effort = Effort(), cache: Path | None = None, progress: Progress = lambda _done, _total: None,
) -> LatencyTable:  # fmt: skip
    """Measure some plans in onnxruntime on this machine, and learn from them how long any other takes.

    Cost: with the default effort about 90 cut models are built, and 5,000 runs made, half of them of the whole network.

    Args:
        analysis: Of the whole network.
        build: Makes cut models.
        levels: For each group the counts it may keep, ascending.
        feed: Input of one run.
        threads: Within an operator; 0 takes all cores.
        provider: Execution provider; kernels are timed on the CPU only.
        seed: Of the plans and of their order.
        probes: How much is measured.
        cache: Folder in which measurements are kept; None keeps none.
        progress: Told how many measurements are done.

    """
    plans = probe_plans(levels, probes.random, seed)
    machine = {
        "host": platform.node(),
        "processor": _processor(),
        "cores": usable_cores(),
        "onnxruntime": ort.__version__,
    }
    how = {"threads": threads, "provider": provider, "feed": {name: array.shape for name, array in feed.items()}}
    key = {**_identity(analysis, levels, seed, probes), **machine, **how}

    def measure() -> Iterator[Probe]:
        original, done = analysis.model.original, 0
        together = max(1, min(probes.together, MEMORY // (2 * max(analysis.model.bytes, 1))))
        for turn in range(probes.rounds):
            order = np.random.default_rng([seed, turn]).permutation(len(plans))
            for start in range(0, len(order), together):
                chosen = plans[order[start : start + together]]
                models = [original, *map(build, chosen)]
                laps, kernels = in_turn(
                    models, feed, threads=threads, provider=provider, runs=probes.runs,
                    seconds=probes.seconds * len(models), watch=provider == CPU,
                )  # fmt: skip
                whole = float(np.median(laps[0]) * 1e3)
                ratios = map(undisturbed, laps[1:])
                reference = sum(k.microseconds for k in kernels[0])
                for counts, ratio, seen in zip(chosen, ratios, kernels[1:], strict=True):
                    yield Probe(tuple(counts.tolist()), ratio, whole, reference, seen)
                done += len(chosen)
                progress(done, len(plans) * probes.rounds)

    return learn(analysis, _remembered(cache, key, plans, measure))


# ---- a command ------------------------------------------------------------------------------------------------------

NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?\b(?:nan|inf)\b", re.IGNORECASE)
OPTION = "--latency-command"

EVERY = 4
"""Plans after which a command measures the original again."""


def measure_by_command(command: str, path: str | os.PathLike[str], *, timeout: float = 600.0) -> float:
    """Milliseconds that a command says a model takes: the last number on the last line of its standard output.

    Args:
        command: Program and arguments, as in a shell but run without one; the model's path is appended.
        path: Of the model.
        timeout: Seconds the command may take.

    Raises:
        OptionError: It cannot be run, fails, takes too long, or prints no positive number.

    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise OptionError(f"'{command}' cannot be read: {error}", where=OPTION, fix="close the quotes") from error
    if not words:
        raise OptionError("it is empty", where=OPTION, fix="name a program that prints a model's milliseconds")
    try:
        found = subprocess.run(  # noqa: S603 - the user's own command, and no shell
            [*words, os.fspath(path)], capture_output=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise OptionError(
            f"'{command}' took longer than {timeout:g} s", where=OPTION, fix="let it run the model fewer times"
        ) from error
    except OSError as error:
        raise OptionError(
            f"'{words[0]}' cannot be run: {error.strerror}", where=OPTION, fix="name a program that can be executed"
        ) from error
    said = found.stdout.decode(errors="replace").strip().splitlines()
    if found.returncode:
        complaint = (found.stderr.decode(errors="replace").strip().splitlines() or said or ["it said nothing"])[-1]
        raise OptionError(
            f"'{command}' failed with exit code {found.returncode}: {complaint}", where=OPTION,
            fix="run it by hand with the path of a model appended, until it works",
        )  # fmt: skip
    numbers = NUMBER.findall(said[-1]) if said else []
    if not numbers:
        raise OptionError(
            f"'{command}' printed no number on its last line: '{said[-1] if said else ''}'", where=OPTION,
            fix="let it print the milliseconds of one run last",
        )  # fmt: skip
    if not 0 < float(numbers[-1]) < math.inf:
        raise OptionError(
            f"'{command}' printed {numbers[-1]}, which is not a positive number of milliseconds", where=OPTION,
            fix="let it print the milliseconds of one run last",
        )  # fmt: skip
    return float(numbers[-1])


def measure_table_by_command(
    analysis: Analysis, build: Build, levels: Sequence[np.ndarray], command: str, *, seed: int = 0,
    probes: Effort = Effort(rounds=2), cache: Path | None = None,
    progress: Progress = lambda _done, _total: None,
) -> LatencyTable:  # fmt: skip
    """Let a command measure some plans on a device elsewhere, and learn from them how long any other takes there.

    There are times of whole networks only. The original is measured before every fourth plan and at the end: a plan's time is
    put in relation to what the original would have taken at that moment, by a straight line between its neighbours.

    Args:
        analysis: Of the whole network.
        build: Makes cut models.
        levels: For each group the counts it may keep, ascending.
        command: As in `measure_by_command`.
        seed: Of the plans and of their order.
        probes: How much is measured; of it `random` and `rounds`.
        cache: Folder in which measurements are kept; None keeps none.
        progress: Told how many measurements are done.

    Raises:
        OptionError: As `measure_by_command`.

    """
    plans = probe_plans(levels, probes.random, seed)
    key = {**_identity(analysis, levels, seed, probes), "command": command, "programs": _programs(command)}

    def measure() -> Iterator[Probe]:
        turns = [np.random.default_rng([seed, i]).permutation(len(plans) - 1) + 1 for i in range(probes.rounds)]
        order = [*np.insert(others := np.concatenate(turns), np.arange(0, len(others), EVERY), 0).tolist(), 0]
        times: list[float] = []
        for i in order:
            with kept_aside(), tempfile.TemporaryDirectory(prefix="onnx-amc-") as folder:
                path = _written(build(plans[i]) if i else analysis.model.original, Path(folder))
                times.append(measure_by_command(command, path))
            progress(len(times), len(order))
        originals = np.flatnonzero(np.array(order) == 0)
        whole = np.interp(np.arange(len(order)), originals, np.array(times)[originals])
        for i, milliseconds, usual in zip(order, times, whole.tolist(), strict=True):
            yield Probe(tuple(plans[i].tolist()), milliseconds / usual, usual)

    return learn(analysis, _remembered(cache, key, plans, measure))


def _programs(command: str) -> dict[str, str]:
    """Files that a command names, by what is in them: in another folder the same words may mean another device."""
    found: dict[str, str] = {}
    try:
        words = shlex.split(command)
    except ValueError:  # told when it is run
        return found
    for word in words:
        path = Path(shutil.which(word) or word)
        if path.is_file() and path.stat().st_size < SCRIPT:
            found[word] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _written(model: onnx.ModelProto, folder: Path) -> Path:
    """Write a model, above 2 GB with its weights beside it."""
    path = folder / "model.onnx"
    if light.size(model) > light.LARGEST:
        model, weights = light.externalise(model, "model.onnx.data")
        with (folder / "model.onnx.data").open("wb") as file:
            file.writelines(tensor.raw_data for tensor in weights)
    path.write_bytes(model.SerializeToString())
    return path


# ---- what was measured before ----------------------------------------------------------------------------------------


def _identity(analysis: Analysis, levels: Sequence[np.ndarray], seed: int, probes: Effort) -> dict[str, Any]:
    """What measurements are a function of, wherever they are taken."""
    return {
        "format": FORMAT, "model": analysis.model.sha256, "levels": [lv.tolist() for lv in levels], "seed": seed,
        "probes": asdict(probes), "groups": [g.name for g in analysis.groups],
    }  # fmt: skip


def _processor() -> str:
    """Name of the processor, as far as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _remembered(
    cache: Path | None, key: Mapping[str, Any], plans: np.ndarray, measure: Callable[[], Iterator[Probe]]
) -> list[Probe]:
    """Read the probes from the cache; measure, and write them there, where it has none that are whole."""
    if cache is None:
        return list(measure())
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache / f"latency-{name[:32]}.json"
    found = _read(path, name, plans)
    if found is None:
        found = list(measure())
        _write(path, name, found)
    return found


def _read(path: Path, name: str, plans: np.ndarray) -> list[Probe] | None:
    """Probes from a file; None where there is none, or one that is damaged or of other plans."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        probes = [
            Probe(
                tuple(int(n) for n in counts), float(ratio), float(whole), float(reference),
                tuple(Kernel(str(name), str(op), float(us)) for name, op, us in kernels),
            )
            for counts, ratio, whole, reference, kernels in content["probes"]
        ]  # fmt: skip
        sound = all(0 < p.ratio < math.inf and 0 < p.milliseconds < math.inf for p in probes)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = {p.counts for p in probes} == {tuple(plan) for plan in plans.tolist()}
    return probes if sound and same and content.get("key") == name else None


def _write(path: Path, name: str, probes: Sequence[Probe]) -> None:
    """Write beside the place, then rename.

    Raises:
        OptionError: The folder cannot be written.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as beside:
            beside.write_text(json.dumps({"key": name, "probes": probes}), encoding="utf-8")
    except (OSError, OptionError) as error:
        why = error.what if isinstance(error, OptionError) else error.strerror
        raise OptionError(
            f"measurements cannot be kept: {why}", where=str(path.parent), fix="choose another cache folder"
        ) from error
