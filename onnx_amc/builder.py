"""From counts to a model: which channels stay, what the readers become, and how good the result is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
import onnx

from onnx_amc.config import Settings
from onnx_amc.errors import DataError
from onnx_amc.fit.moments import Moments
from onnx_amc.fit.solve import dead_columns
from onnx_amc.graph.groups import Analysis, Group
from onnx_amc.prune.criteria import fpgm, magnitude, wanda
from onnx_amc.prune.layers import WIDEST, Layer, find_layers, find_siblings
from onnx_amc.prune.refit import Ranking, Refitter, by_score
from onnx_amc.prune.surgery import cut, finish
from onnx_amc.recover.course import Course, Task
from onnx_amc.run.capture import batch_of, gather_moments
from onnx_amc.run.check import gap, self_check
from onnx_amc.run.correct import Corrector, drawn
from onnx_amc.run.crew import Team, share
from onnx_amc.run.data import Dataset
from onnx_amc.run.metrics import fidelity
from onnx_amc.run.samples import spread
from onnx_amc.run.score import Scorer
from onnx_amc.run.sequential import Effort, Sequential
from onnx_amc.run.session import threads
from onnx_amc.run.worth import worths
from onnx_amc.rundir import Memo
from onnx_amc.search.baselines import curve

Progress = Callable[[int, int], None]
Kept = Mapping[str, Any]
"""A plan by name: which channels of a group stay, or how many weights of a tensor."""

FIRM = (1.0,)
"""Pull of a draft towards the one-shot refit: where rows are few it need not be looked for (`benchmarks/proxy.md`)."""

ROWS_PER_INPUT = 4
"""Rows per unknown below which a least-squares fit starts to learn the noise."""


class Builder:
    """Builds cut models from one calibration pass.

    Args:
        analysis: Of the original model.
        settings: Of the run.
        data: Samples; None cuts without refit, by magnitude.
        calibration: Which samples the moments are taken from.
        progress: Told how the calibration goes.

    Attributes:
        ratios: Kept ratios at which each group's effect on the network's output is measured.

    """

    ratios: tuple[float, ...] = (0.75, 0.5, 0.25)

    def __init__(
        self, analysis: Analysis, settings: Settings, data: Dataset | None, calibration: np.ndarray,
        progress: Progress = lambda _done, _total: None,
    ) -> None:  # fmt: skip
        self.analysis, self.settings, self.data, self.calibration = analysis, settings, data, calibration
        self.refitter: Refitter | None = None
        self.sequential: Sequential | None = None
        self.draft: Sequential | None = None
        self.layers: list[Layer] = []
        self.refused: dict[str, str] = {}
        self.remarks: list[str] = []
        if data is not None and settings.refit:
            self._calibrate(data, progress)

    def _calibrate(self, data: Dataset, progress: Progress) -> None:
        self.layers, self.refused = find_layers(self.analysis)
        cutting = self._losing()
        wanted = [layer for layer in cutting if layer.width <= WIDEST]
        self.remarks += [
            f"layer '{self.analysis.names[layer.node]}' has {layer.width} inputs, more than {WIDEST}: they go by magnitude, and "
            "it is refitted on the cut network only"
            for layer in cutting
            if layer.width > WIDEST
        ]
        settings = self.settings
        siblings = self._siblings()
        moments = gather_moments(
            self.analysis.model,
            [*wanted, *(layer for several in siblings for layer in several)],
            data,
            self.calibration,
            rows=settings.rows,
            seed=settings.seed,
            memory=settings.memory,
            progress=progress,
        )
        # One of the siblings stands for all: their weight is one, and so are their moments.
        fitted = [*wanted, *(several[0] for several in siblings)]
        self.remarks += self._examined({layer.node: moments[layer.node] for layer in fitted})
        self.refitter = Refitter(self.analysis, fitted, moments, settings.ridge)
        if settings.sequential:
            effort = Effort(settings.sequence, settings.rows)
            self.sequential = Sequential(
                self.analysis, self.layers, data, self.calibration, effort, seed=settings.seed, memory=settings.memory
            )
            self.draft = self.sequential.lighter(Effort(settings.draft, settings.draft_rows, rounds=1, ridges=FIRM))

    def _siblings(self) -> list[list[Layer]]:
        """The layers that share a weight from which a plan may take something, and are refitted together."""
        narrow = [
            x for x in find_siblings(self.analysis) if self.settings.granularity == "channel" and x[0].width <= WIDEST
        ]
        for layer in (layer for several in narrow for layer in several):
            self.refused.pop(layer.node, None)
        found = [several for several in narrow if _loses(several[0])]
        if found:
            names = " and ".join(f"'{self.analysis.names[layer.node]}'" for layer in found[0][:2])
            names += ", ..." if len(found) > 1 else ""
            self.remarks.append(
                f"{_counted(len(found), 'weight')} of several layers each ({names}): refitted to what the original's layers read, "
                "not to what those of the cut network do"
            )
        return found

    def _losing(self) -> list[Layer]:
        """The layers that a plan may take something from."""
        return [layer for layer in self.layers if _loses(layer)]

    def _examined(self, moments: Mapping[str, Moments]) -> list[str]:
        """Look at the rank of the layers' moments, and remark on what makes their refit doubtful."""
        names, remarks = self.analysis.names, []
        scarce = {n: m.rows / m.width for n, m in moments.items()}
        scarce = {n: rows for n, rows in scarce.items() if rows < ROWS_PER_INPUT}
        if scarce:
            worst = min(scarce, key=lambda n: scarce[n])
            remarks.append(
                f"{_counted(len(scarce), 'layer')} with fewer than {ROWS_PER_INPUT} rows per input to be refitted from (fewest: "
                f"'{names[worst]}', {scarce[worst]:.1f}): give more data"
            )
        dead = {n: int(sum(dead_columns(m.covariance(g)).sum() for g in range(m.groups))) for n, m in moments.items()}
        if any(dead.values()):
            layers = sum(count > 0 for count in dead.values())
            inputs = f"{_counted(sum(dead.values()), 'input')} of {_counted(layers, 'layer')}"
            remarks.append(f"{inputs}: always the same, so they go first, at no cost")
        return remarks

    @cached_property
    def probe(self) -> Scorer:
        """Scores on a few calibration samples, for what is measured group by group or layer by layer."""
        if self.data is None:
            raise ValueError("sensitivities need data")
        model, settings = self.analysis.model, self.settings
        part = spread(self.calibration, settings.probe)
        how = (fidelity, "fidelity", settings.provider, model.source)
        return Scorer(model.original, self.data, part, *how, batch=batch_of(model))

    @cached_property
    def corrector(self) -> Corrector | None:
        """What restores means and deviations where the sequential refit cannot run; made at first use."""
        if self.data is None or self.refitter is None:
            return None
        try:
            return Corrector(
                self.analysis, self.layers, self.data, self.calibration, self.settings.correction, self.settings.memory
            )
        except DataError as error:
            self.remarks.append(f"no statistics correction: {error.what}")
            return None

    @cached_property
    def rankings(self) -> list[Ranking]:
        """In which order each group's channels go; computed at first use."""
        rng = np.random.default_rng(self.settings.seed)
        if self.refitter is not None and self.settings.criterion == "obs" and self.settings.weighted:
            self.refitter.worth = worths(self.analysis, self.refitter, self.probe.loss, self.settings.seed)
        return [self._ranking(g, rng) for g in self.analysis.groups]

    def _ranking(self, group: Group, rng: np.random.Generator) -> Ranking:
        criterion, fitter = self.settings.criterion, self.refitter
        if criterion == "random":
            return by_score(rng.random(group.channels))
        if criterion == "fpgm":
            return by_score(fpgm(self.analysis, group))
        if criterion == "magnitude" or fitter is None:
            return by_score(magnitude(self.analysis, group))
        if criterion == "wanda":
            return by_score(wanda(self.analysis, group, fitter.layers, fitter.moments, fitter.weights))
        return fitter.rank(group)

    def prepare(self) -> None:
        """Do now what the first plan would have to wait for."""
        _ = self.rankings

    def kept(self, counts: np.ndarray) -> Kept:
        """Return the channels that stay, for the groups that lose any."""
        pairs = zip(self.analysis.groups, self.rankings, counts.tolist(), strict=True)
        return {g.name: ranking.kept(n) for g, ranking, n in pairs if n < g.channels}

    def lean(self) -> Self:
        """One that builds and drafts the same, with no more of the data than that takes; it neither ranks nor delivers."""
        other = copy(self)
        for name in ("probe", "rankings"):
            other.__dict__.pop(name, None)
        other.sequential, other.remarks = None, []
        if self.data is not None:
            other.data = self.data.only(drawn(self.calibration, self.settings.correction))
        return other

    def build(self, kept: Kept, *, correct: bool = True) -> onnx.ModelProto:
        """Return the cut, refitted and corrected model, not yet fit to deliver."""
        if self.refitter is None or not kept:
            return cut(self.analysis, kept)
        values, biases = self.refitter.solve(kept)
        if correct and self.corrector is not None:
            values, biases = self.corrector.correct(kept, values, biases)
        return cut(self.analysis, kept, values, biases)

    @property
    def abreast(self) -> int:
        """How many plans can be refitted in full at a time within the memory."""
        return self.sequential.abreast if self.sequential is not None else 2

    def drafted(self, kept: Kept) -> onnx.ModelProto:
        """Return what the search scores: as `refined`, from fewer samples."""
        return self.refined_by(self.draft, kept)

    def refined(self, kept: Kept) -> onnx.ModelProto:
        """Return the cut model, refitted layer by layer on its own activations; corrected in one shot where that cannot be done."""
        with threads(share(self.abreast)):  # as many in a replay as in the run
            return self.refined_by(self.sequential, kept)

    def refined_by(self, sequential: Sequential | None, kept: Kept) -> onnx.ModelProto:
        """Return the cut model as `refined` does, by another sequential refit."""
        if sequential is None or self.refitter is None or not kept:
            return self.build(kept)
        try:
            return self._refit_on_itself(sequential, self.refitter, kept)
        except DataError as error:
            if self.sequential is not None:  # several plans at a time find the same
                self.remarks.append(f"no sequential refit: {error.what}")
            self.sequential = self.draft = None
            return self.build(kept)

    def _refit_on_itself(self, sequential: Sequential, fitter: Refitter, kept: Kept) -> onnx.ModelProto:
        values, biases = fitter.solve(kept)
        return cut(self.analysis, kept, *sequential.refine(kept, values, biases))

    def deliverable(self, kept: Kept, ready: onnx.ModelProto | None = None) -> onnx.ModelProto:
        """Return the finished model, made from what `refined` gave if that is at hand; where nothing is cut, the original."""
        if not kept:
            return deepcopy(self.analysis.model.original)
        return finish(self.analysis, ready or self.refined(kept))

    def unrefitted(self, counts: np.ndarray) -> onnx.ModelProto:
        """Return a model of a plan that takes as long as the finished one, and is made sooner."""
        kept = self.kept(counts)
        return self.deliverable(kept, self.build(kept, correct=False))

    def task(self, kept: Kept, start: onnx.ModelProto, index: np.ndarray, course: Course) -> Task:
        """What is to be trained: the refitted model of a plan, on these samples."""
        if self.data is None:
            raise ValueError("a training needs data")
        return Task(self.analysis, kept, start, self.data, index, course, self.settings.seed)

    def checked(self, kept: Kept, feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The self-check of all groups whose cut is exact; of the others only how far they are from it.

        Raises:
            SelfCheckError: The cut model does not compute what the masked original does.

        """
        exact = {g.name: kept[g.name] for g in self.analysis.groups if g.name in kept and g.doubt is None}
        checks: dict[str, Any] = {"masked_equals_cut": self_check(self.analysis, exact, feed), "checker": True}
        if len(exact) < len(kept):
            checks["approximate_difference"] = gap(self.analysis, kept, feed)
        return checks

    def errors(self, levels: Sequence[np.ndarray], progress: Progress, memo: Memo, crew: Team) -> list[np.ndarray]:
        """Error of the network's output with one group alone cut, at each of its levels (for the knapsack).

        Measured at three ratios on calibration samples, refitted but not corrected, and interpolated.
        """
        full = [int(lv[-1]) for lv in levels]
        probes = [[max(1, round(ratio * whole)) for ratio in self.ratios] for whole in full]
        asked = [
            [self._probed(i, probe, full, memo, crew) for probe in probes[i]] if len(levels[i]) > 1 else []
            for i in range(len(full))
        ]
        found: list[np.ndarray] = []
        for i, waits in enumerate(asked):
            losses = np.array([wait()[0] for wait in waits])
            found.append(curve(levels[i], np.array(probes[i]) / full[i], losses) if waits else np.zeros(1))
            progress(i + 1, len(full))
        return found

    def _probed(self, unit: int, probe: int, full: Sequence[int], memo: Memo, crew: Team) -> Callable[[], list[float]]:
        """Begin to measure the error with one unit alone cut."""
        counts = np.array(full)
        counts[unit] = probe
        kept = self.kept(counts)

        def begin() -> Callable[[], list[float]]:
            build = partial(self.build, kept, correct=False)
            wait = crew.begin(partial(self.probe.opened, build), self.probe.loss)
            return lambda: [wait()]

        return memo.later(f"probe {unit} {probe}", begin)


def _loses(layer: Layer) -> bool:
    return layer.inputs is not None and not layer.whole


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
