"""How good a network is on the reward part of the data: one number, higher is better."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from onnx_amc.errors import OptionError
from onnx_amc.run.capture import batches
from onnx_amc.run.data import Dataset
from onnx_amc.run.session import open_session, run_session

Outputs = list[np.ndarray]
Metric = Callable[[Outputs, np.ndarray | None, Outputs], float]
"""(outputs, labels or None, the original network's outputs) -> score, higher is better."""

BATCH = 100
SMALLEST = 10
"""Samples of a part that is scored by itself, at least."""


@dataclass(frozen=True)
class Score:
    """What an evaluation found.

    Args:
        value: The metric, higher is better.
        loss: Relative squared error of the outputs against the original's: E|z - z0|^2 / E|z0 - E z0|^2; lower is better.
        parts: Both for each of several parts of the samples, in turn.

    """

    value: float
    loss: float
    parts: tuple[float, ...] = ()


def top1(outputs: Outputs, labels: np.ndarray | None, _reference: Outputs) -> float:
    """Share of samples whose highest output is the label."""
    return float((_flat(outputs[0]).argmax(axis=1) == labels).mean())


def top5(outputs: Outputs, labels: np.ndarray | None, _reference: Outputs) -> float:
    """Share of samples whose label is among the five highest outputs."""
    best = np.argsort(-_flat(outputs[0]), axis=1, kind="stable")[:, :5]
    return float((best == np.asarray(labels)[:, None]).any(axis=1).mean())


def agreement(outputs: Outputs, _labels: np.ndarray | None, reference: Outputs) -> float:
    """Share of samples whose highest output is the original's."""
    return float((_flat(outputs[0]).argmax(axis=1) == _flat(reference[0]).argmax(axis=1)).mean())


def fidelity(outputs: Outputs, _labels: np.ndarray | None, reference: Outputs) -> float:
    """1 - |z - z0|^2 / |z0 - mean z0|^2 over all float outputs, averaged; 1 is a perfect copy."""
    found = [1.0 - _relative(z, z0) for z, z0 in zip(outputs, reference, strict=True) if z0.dtype.kind == "f"]
    return float(np.mean(found)) if found else 0.0


METRICS: dict[str, Metric] = {"top1": top1, "top5": top5, "agreement": agreement, "fidelity": fidelity}


def find_metric(name: str | None, data: Dataset, classes: int | None) -> tuple[str, Metric]:
    """Return the metric asked for, or what suits: top1 with labels, agreement for a classifier without, fidelity otherwise.

    Raises:
        OptionError: Unknown name, a function that does not exist, or labels wanted where there are none.

    """
    if name is None:
        name = "fidelity" if classes is None else "top1" if data.labels is not None else "agreement"
    if name in {"top1", "top5"} and data.labels is None:
        raise OptionError(
            f"metric '{name}' needs labels", where="--metric", fix="give labels, or take --metric agreement"
        )
    if name in METRICS:
        return name, METRICS[name]
    if ":" not in name:
        raise OptionError(
            f"unknown metric '{name}'", where="--metric", fix=f"choose {', '.join(METRICS)}, or module:function"
        )
    return name, imported(name, "--metric")


def imported(name: str, where: str) -> Callable[..., float]:
    """The function that `module:function` names; modules are also looked for in the working folder.

    Raises:
        OptionError: It cannot be imported.

    """
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Callable[..., float] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise OptionError(
            f"cannot import '{name}': {error}", where=where, fix="check the module's and function's names"
        ) from error
    return found


class Scorer:
    """Scores networks on one set of samples; remembers what the original gave.

    Args:
        original: The network to compare with.
        data: Samples.
        index: Which samples.
        metric: What to compute; the scorer's name for it is `name`.
        name: Of the metric.
        parts: Into how many parts the samples are split, each to be scored by itself as well; 0 for none.

    """

    def __init__(
        self, original: onnx.ModelProto, data: Dataset, index: np.ndarray, metric: Metric, name: str,
        provider: str = "CPUExecutionProvider", where: str = "model", parts: int = 0,
    ) -> None:  # fmt: skip
        self.parts = parts if len(index) >= SMALLEST * parts else 0
        self.data, self.index, self.metric, self.name = data, index, metric, name
        self.provider, self.where = provider, where
        self.labels = None if data.labels is None else data.labels[index]
        self.seconds = 0.0
        self.reference: Outputs = self.outputs(original)
        self.original = self._score(self.reference)

    def on(self, index: np.ndarray) -> Scorer:
        """The same on some of its samples; nothing is run for that."""
        other = copy(self)
        places = np.searchsorted(self.index, index)
        other.index, other.seconds = index, 0.0
        other.parts = self.parts if len(index) >= SMALLEST * self.parts else 0
        other.labels = None if self.labels is None else self.labels[places]
        other.reference = [z[places] for z in self.reference]
        other.original = other._score(other.reference)  # noqa: SLF001  its own copy
        return other

    def outputs(self, model: onnx.ModelProto) -> Outputs:
        """Return every output of the model over the samples, float16 and up, first axis the samples."""
        start = time.perf_counter()
        session = open_session(model, provider=self.provider, where=self.where)
        names = [o.name for o in session.get_outputs()]
        parts: list[Sequence[np.ndarray]] = []
        for part, count in batches(model, self.index, BATCH):
            found = run_session(session, names, self.data.batch(part), where=self.data.source)
            parts.append([v[:count] if np.ndim(v) and len(v) >= count else np.asarray(v)[None] for v in found])
        self.seconds += time.perf_counter() - start
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def __call__(self, model: onnx.ModelProto) -> Score:
        """Score one model."""
        return self._score(self.outputs(model))

    def loss(self, model: onnx.ModelProto) -> float:
        """Return only the error against the original's outputs."""
        return _loss(self.outputs(model), self.reference)

    def _score(self, outputs: Outputs) -> Score:
        parts = [self._both(outputs, slice(k, None, self.parts)) for k in range(self.parts)]
        return Score(*self._both(outputs, slice(None)), tuple(v for pair in parts for v in pair))

    def _both(self, outputs: Outputs, part: slice) -> tuple[float, float]:
        """Score and loss on some of the samples."""
        found, reference = [z[part] for z in outputs], [z[part] for z in self.reference]
        value = float(self.metric(found, None if self.labels is None else self.labels[part], reference))
        return value if np.isfinite(value) else 0.0, _loss(found, reference)


def _loss(outputs: Outputs, reference: Outputs) -> float:
    losses = [_relative(z, z0) for z, z0 in zip(outputs, reference, strict=True) if z0.dtype.kind == "f"]
    return float(np.mean(losses)) if losses else 0.0


def _flat(z: np.ndarray) -> np.ndarray:
    return z.reshape(len(z), -1) if z.ndim != 3 else z[:, -1]


def _relative(z: np.ndarray, z0: np.ndarray) -> float:
    """E|z - z0|^2 relative to the variance of z0; 1e6 where z is not finite."""
    power = float(np.mean(np.square(z0 - z0.mean(axis=0, keepdims=True), dtype=np.float64))) or float(
        np.mean(np.square(z0, dtype=np.float64))
    )
    gap = float(np.mean(np.square(np.subtract(z, z0, dtype=np.float64))))
    return gap / max(power, 1e-300) if np.isfinite(gap) else 1e6
