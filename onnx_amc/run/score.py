"""How good a network is on the reward part of the data: one number, higher is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import onnx
import onnxruntime as ort

from onnx_amc.errors import ModelError, OptionError
from onnx_amc.graph.proto import answers
from onnx_amc.run.capture import BATCH, feeds, fixed_batch
from onnx_amc.run.data import Dataset
from onnx_amc.run.finite import answered
from onnx_amc.run.metrics import Metric, Outputs, gaps, scale_of
from onnx_amc.run.session import open_session, run_session

SMALLEST = 10
"""Samples of a part that is scored by itself, at least."""

RACED = (1, 3)
"""Parts that a plan has been scored on when it is looked at whether it is hopeless."""

Bar = Callable[[float, float], tuple[float, float] | None]
"""Score and loss on the first parts -> those likely on all samples if that is hopeless, else None."""

WORST = 10.0
"""So many units below the best is a score that is no finite number, where scores are negative; 0 where they are not."""


@dataclass(frozen=True)
class Score:
    """What an evaluation found.

    Args:
        value: The metric, higher is better.
        loss: Relative squared error of the outputs against the original's: E|z - z0|^2 / E|z0 - E z0|^2; lower is
            better. Of integers the share that differs.
        parts: Both for each of several parts of the samples, in turn.

    """

    value: float
    loss: float
    parts: tuple[float, ...] = ()


@dataclass(frozen=True)
class Opened:
    """A network that onnxruntime has loaded.

    Args:
        model: The network.
        session: That runs it.

    """

    model: onnx.ModelProto
    session: ort.InferenceSession


Network = onnx.ModelProto | Opened
"""What is scored; a model is loaded first."""


class Scorer:
    """Scores networks on one set of samples; remembers what the original gave.

    Args:
        original: The network to compare with.
        data: Samples.
        index: Which samples.
        metric: What to compute; the scorer's name for it is `name`.
        name: Of the metric.
        parts: Into how many parts the samples are split, each to be scored by itself as well; 0 for none.
        batch: How many of them are run at a time.

    Raises:
        OptionError: The metric cannot be had of these outputs and labels, or is no finite number for the original, or the original
            answers no finite number.

    """

    def __init__(
        self, original: onnx.ModelProto, data: Dataset, index: np.ndarray, metric: Metric, name: str,
        provider: str = "CPUExecutionProvider", where: str = "model", parts: int = 0, batch: int = BATCH,
    ) -> None:  # fmt: skip
        self.parts = parts if len(index) >= SMALLEST * parts else 0
        self.batch = batch
        self.data, self.index, self.metric, self.name = data, index, metric, name
        self.provider, self.where = provider, where
        self.labels = None if data.labels is None else data.labels[index]
        self.reference: Outputs = self.outputs(original)
        floats = [z for z in self.reference if z.dtype.kind == "f"]
        if floats and not any(answered(z).any() for z in floats):
            raise OptionError(
                f"the original itself answers NaN or infinity to each of the {len(index)} samples of {data.source}",
                where=where,
                fix="check the preprocessing of the data, and that the model itself gives finite results",
            )
        known = self._value(self.reference, slice(None))
        if not np.isfinite(known):
            raise OptionError(
                f"the original itself scores {known}",
                where=f"--metric {name}",
                fix="check the function, the data, and that what the model computes on them is finite",
            )
        self.scale = scale_of(metric, self.labels, self.reference, known)
        best, unit = self.scale
        self.worst = 0.0 if best > 0 else best - WORST * unit
        self.original = self.score(self.reference)

    def on(self, index: np.ndarray) -> Scorer:
        """The same on some of its samples; nothing is run for that."""
        other = copy(self)
        places = np.searchsorted(self.index, index)
        other.index = index
        other.parts = self.parts if len(index) >= SMALLEST * self.parts else 0
        other.labels = None if self.labels is None else self.labels[places]
        other.reference = [z[places] for z in self.reference]
        other.original = other.score(other.reference)
        return other

    def opened(self, make: Callable[[], onnx.ModelProto]) -> Opened:
        """Make a network and load it, for any method that takes one: what can be done while another is run."""
        model = make()
        return Opened(model, open_session(model, provider=self.provider, where=self.where, extra=answers(model)))

    def outputs(self, network: Network) -> Outputs:
        """Return the outputs of the model over the samples, float16 and up, first axis the samples; without those that have none.

        Raises:
            ModelError: None has.

        """
        return self._outputs(self._open(network), self.index)

    def _open(self, network: Network) -> Opened:
        return network if isinstance(network, Opened) else self.opened(lambda: network)

    def _outputs(self, network: Opened, index: np.ndarray) -> Outputs:
        kinds = {o.name: o.type for o in network.session.get_outputs()}
        names = [name for name in answers(network.model) if kinds[name].startswith("tensor")]
        fixed = fixed_batch(network.model)
        parts: list[Sequence[np.ndarray]] = []
        for feed, count in feeds(network.model, self.data, index, self.batch):
            found = run_session(network.session, names, feed, where=self.data.source)
            together = fixed or count
            parts.append([v[:count] if np.ndim(v) and len(v) == together else np.asarray(v)[None] for v in found])
        columns = [c for c in zip(*parts, strict=True) if len({v.shape[1:] for v in c}) == 1]
        scored = [np.concatenate(c) for c in columns if sum(map(len, c)) == len(index)]
        if not scored:
            shapes = (
                ", ".join(f"'{n}' {v.shape}" for n, v in zip(names, parts[0], strict=True)) or "there are no tensors"
            )
            raise ModelError(
                f"no output has a row for each sample, so none can be scored: {shapes}",
                where=self.where,
                fix="export the model with the samples on the first axis of its outputs, or use --policy uniform --no-refit",
            )
        return scored

    def __call__(self, network: Network) -> Score:
        """Score one model."""
        return self.score(self.outputs(network))

    def numbers(self, network: Network, bars: Mapping[int, Bar] = MappingProxyType({})) -> list[float]:
        """Score one model; return the score, the loss, and both for each of the parts, in turn.

        Where the bar for so many parts says that they are hopeless, what is likely of score and loss is returned alone.
        """
        bars = {looked: bar for looked, bar in bars.items() if looked < self.parts}
        if not bars:
            score = self(network)
            return [score.value, score.loss, *score.parts]
        opened = self._open(network)
        part_of = np.arange(len(self.index)) % self.parts
        outputs: Outputs = []
        for begun, looked in pairwise([0, *sorted(bars), self.parts]):
            now = (begun <= part_of) & (part_of < looked)
            found = self._outputs(opened, self.index[now])
            outputs = outputs or [np.empty((len(now), *z.shape[1:]), z.dtype) for z in found]
            for z, part in zip(outputs, found, strict=True):
                z[now] = part
            if looked in bars:
                parts = [self._both(outputs, slice(k, None, self.parts)) for k in range(looked)]
                likely = bars[looked](*map(float, np.mean(parts, axis=0)))
                if likely is not None:
                    return list(likely)
        score = self.score(outputs)
        return [score.value, score.loss, *score.parts]

    def lean(self) -> Scorer:
        """One that scores the same, with no more of the data than that takes."""
        other = copy(self)
        other.data = self.data.only(self.index)
        return other

    def loss(self, network: Network) -> float:
        """Return only the error against the original's outputs."""
        return _loss(self.outputs(network), self.reference)

    def score(self, outputs: Outputs) -> Score:
        """Score what a model has given."""
        parts = [self._both(outputs, slice(k, None, self.parts)) for k in range(self.parts)]
        return Score(*self._both(outputs, slice(None)), tuple(v for pair in parts for v in pair))

    def _both(self, outputs: Outputs, part: slice) -> tuple[float, float]:
        """Score and loss on some of the samples."""
        value = self._value(outputs, part)
        loss = _loss([z[part] for z in outputs], [z[part] for z in self.reference])
        return value if np.isfinite(value) else self.worst, loss

    def _value(self, outputs: Outputs, part: slice) -> float:
        labels = None if self.labels is None else self.labels[part]
        return float(self.metric([z[part] for z in outputs], labels, [z[part] for z in self.reference]))


def _loss(outputs: Outputs, reference: Outputs) -> float:
    return float(np.mean(gaps(outputs, reference)))
