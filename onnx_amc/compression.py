"""One run of `compress`: read, find the groups, calibrate, search, cut, refit, check, record."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from onnx_amc.builder import Builder, Kept
from onnx_amc.config import REPLAYED, TRAINING, Settings
from onnx_amc.delivery import Result, actual_cost, check_feed, class_count, figures, names_classes, one_feed, outcome
from onnx_amc.details import confusion_json, details_of, errors_json
from onnx_amc.errors import BudgetError, SelfCheckError
from onnx_amc.granularity import Units, units_of
from onnx_amc.graph import light, limits
from onnx_amc.graph.groups import analyse
from onnx_amc.intake import DataSource, ModelSource, find_data, load_both, sidecar
from onnx_amc.listener import Listener
from onnx_amc.prune.plan import Plan
from onnx_amc.quantising import in_int8
from onnx_amc.run.capture import batch_of
from onnx_amc.run.crew import Team
from onnx_amc.run.data import Dataset
from onnx_amc.run.feed import describe, doubts, lost, sentence, unheeded
from onnx_amc.run.latency import disturbed, measure
from onnx_amc.run.metrics import Outputs, find_metric
from onnx_amc.run.score import Scorer
from onnx_amc.run.table import LatencyTable
from onnx_amc.rundir import Memo, RunDir, identity_of
from onnx_amc.search.loop import CLOSED, check_agent, check_log
from onnx_amc.searching import Search
from onnx_amc.thinner import Thinner
from onnx_amc.timing import ratio_of, table_of
from onnx_amc.training import course_of, parts_of, train, untrained

TIMING = (0.7, 3.0)
"""Seconds of the last measurement of latency, at least and at most; between them a sixth of the run before."""

SHARED = ("analyse", "calibrate")
"""What is done once, however many budgets are searched."""

STAGES = (*SHARED, "ranking", "search", "search_onnxruntime", "refit", "recover", "int8", "total")
"""What `seconds` tells of."""

PARTS = 8
"""Into how many parts the reward samples are split to see what the loss should count for."""


class Compression:
    """One run; its parts are made on the way down `__init__`, and `choose` and `deliver` finish it.

    Args:
        model: What to compress.
        data: Samples; None for the sidecar, or noise.
        settings: Of the run.
        listener: Hears how it goes.
        run_dir: Where evaluations are written down as they come; None writes nothing.
        resume: Whether to go on with what is in `run_dir`.
        team: Who evaluates plans; None for threads of this process.

    """

    def __init__(
        self,
        model: ModelSource,
        data: DataSource | None,
        settings: Settings,
        listener: Listener,
        run_dir: str | os.PathLike[str] | None = None,
        *,
        resume: bool = False,
        team: Team | None = None,
    ) -> None:
        self.settings, self.listener, self.team = settings, listener, team
        self._begin({})
        if settings.agent is not None:
            check_agent(settings.agent, settings.policy)
        if settings.tensorboard is not None:
            check_log(settings.tensorboard)
        gc.collect()  # an earlier run in this process is a ring of objects and may still hold gigabytes
        with self._timed("analyse"):
            self.listener.stage("analyse", None)
            loaded, known = load_both(model, data, settings.preset, needed=not settings.blind)
            self.analysis = analyse(loaded, approximate=settings.approximate)
            self.model = self.analysis.model
            self.table: LatencyTable | None = None
            self.units = self._units()
            if all(len(lv) == 1 for lv in self.units.levels):
                self._remark_whole()
            space = self.units.space(settings)
        self.data: Dataset | None = None
        if data is not None or settings.int8 or (len(space) and (not settings.blind or sidecar(model))):
            how = (settings.seed, listener, settings.preset, known)
            self.data = find_data(self.model, model, data, *how, needed=not settings.blind)
        self.memo = self._memo(run_dir, resume=resume)
        with self._timed("calibrate"):
            self._calibrate()
        self.search = self._search()

    def _units(self) -> Units:
        return units_of(self.analysis, self.settings, self._clock if self.settings.timed else None)

    def _clock(self, levels: Sequence[np.ndarray]) -> LatencyTable:
        self.table = self.table or table_of(self.analysis, self.settings, levels, self.listener)
        return self.table

    def _begin(self, shared: Mapping[str, float]) -> None:
        """Start the clocks; what is shared with another run is counted here too."""
        self.seconds = dict.fromkeys(STAGES, 0.0) | {name: shared.get(name, 0.0) for name in SHARED}
        self.started = time.perf_counter() - sum(self.seconds.values())

    def _search(self) -> Search:
        scorers = None if self.scorer is None or self.trial is None else (self.scorer, self.trial)
        actual = actual_cost(self.settings.budget.kind, self.settings.granularity)
        if self.settings.budget.kind == "latency":
            ratio, whole = ratio_of(self.analysis, self.settings), self.units.wholes["latency"]
            actual = lambda model: ratio(model) * whole  # noqa: E731
        space = self.units.space(self.settings)
        return Search(
            self.units, space, self.builder, scorers, self.memo, self.settings, self.listener, actual, self.team
        )

    def again(self, **changes: Any) -> Compression:
        """Return another run with another search or budget: it shares the calibration, and what plans scored.

        Args:
            changes: Fields of the settings that the search depends on.

        """
        other = copy(self)
        if changes.get("recover") is False:
            changes, other.trained = changes | TRAINING, None
        other.settings = replace(self.settings, **changes)
        other._begin(self.seconds)  # noqa: SLF001  its own copy
        other.units = other._units()  # noqa: SLF001
        other.search = other._search()  # noqa: SLF001
        return other

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def _memo(self, run_dir: str | os.PathLike[str] | None, *, resume: bool) -> Memo:
        if run_dir is None:
            return Memo()
        identity = identity_of(self.settings, self.model.sha256, self._samples)
        return RunDir(run_dir, identity, resume=resume)

    @cached_property
    def _samples(self) -> str | None:
        return self.data.digest() if self.data else None

    def _calibrate(self) -> None:
        settings, data = self.settings, self.data
        parts = parts_of(data, settings, self.model)
        self.trained, reward = parts.trained, parts.reward
        # A run that is another of this one may not train, but shares the samples.
        self.set_aside = parts.trained is not None
        self.scorer = self.trial = None
        self.fed: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        if data is not None:
            self._warn(untrained(data, settings, parts))
            for name in data.unused:
                self.listener.note(f"array '{name}' in {data.source} is neither an input nor labels: ignored")
            name, metric = find_metric(settings.metric, data, class_count(self.model), named=names_classes(self.model))
            how = (metric, name, settings.provider, self.model.source)
            batch = batch_of(self.model)
            self.scorer = Scorer(self.model.original, data, reward, *how, parts=PARTS, batch=batch)
            self._look(parts.calibration if len(parts.calibration) else reward)
            few = np.sort(np.random.default_rng(settings.seed).permutation(reward)[: settings.trial])
            self.trial = self.scorer
            if len(few) < len(reward):
                self.trial = Scorer(self.model.original, data, few, *how, parts=PARTS, batch=batch)
        self.listener.stage("calibrate", len(parts.calibration) or None)
        make = Thinner if settings.granularity == "weight" else Builder
        self.builder = make(self.analysis, settings, data, parts.calibration, self._calibrated)
        for node, why in self.builder.refused.items():
            self.listener.note(f"layer '{self.analysis.names[node]}' is cut but not refitted: {why}")
        self._remark()

    def _calibrated(self, done: int, total: int) -> None:
        self.listener.advance(done, total=total)

    def _look(self, index: np.ndarray) -> None:
        """Say what the network is fed, and what is doubtful in that."""
        if self.scorer is None:
            return
        self.fed = describe(self.scorer.data, index)
        names = [o.name for o in self.model.proto.graph.output]
        for remark in (*(f"the network is fed {sentence(row)}" for row in self.fed), *unheeded(self.scorer, names)):
            self.listener.note(remark)
        self._warn(doubts(self.scorer, self.model.original))

    def _warn(self, found: Sequence[str]) -> None:
        self.warnings = [*self.warnings, *found]  # another run of the same calibration keeps its own
        for warning in found:
            self.listener.warn(warning)

    def _remark(self) -> None:
        while self.builder.remarks:
            self.listener.note(self.builder.remarks.pop(0))

    def _remark_whole(self) -> None:
        reasons = "; ".join(self.units.blocked[:3])
        why = reasons or ("--keep protects all" if self.units.names else "no Conv, Gemm or MatMul feeds another")
        self.listener.note(f"the model has no prunable layer and stays as it is ({why})")

    def choose(self) -> np.ndarray:
        """Return the counts to deliver: the best plan seen, or the very one that was asked for."""
        try:
            return self.search.choose()
        finally:
            self.seconds |= self.search.seconds

    def deliver(self, counts: np.ndarray) -> Result:
        """Build, check and measure the final model."""
        self.listener.stage("check", None)
        kept = self.builder.kept(counts)
        checks = self.builder.checked(kept, check_feed(self.model, self.data))
        trained, told, course = self._recovered(kept, self.search.ready_for(counts))
        model = self.builder.deliverable(kept, trained)
        self._remark()
        compressed = self._recounted(model, counts)
        outputs = None if self.scorer is None else self.scorer.outputs(model)
        if self.scorer is not None and outputs is not None:
            self._warn(lost(outputs, self.scorer.reference))
        compressed["score"] = self.scorer.score(outputs).value if self.scorer and outputs else None
        original = figures(self.model.original, self.analysis)
        original["score"] = self.scorer.original.value if self.scorer else None
        eight, told8 = self._in_int8(model, compressed)
        others = [] if eight is None else [(eight, told8)]
        baselines = self._timed_against(counts, [(self.model.original, original), (model, compressed), *others])
        self.seconds["total"] = time.perf_counter() - self.started
        record = {
            **self._asked(),
            "original": original,
            "compressed": compressed,
            "baselines": baselines,
            "seconds": self.seconds,
            "peak_rss_mb": limits.peak() // 2**20,
            "checks": checks,
            "recover": told or None,
            **({"int8": told8} if self.settings.int8 else {}),
            **self._foretold(counts),
            **outcome(self.search.journal, self.settings.policy, self.units, counts),
        }
        s = self.settings
        plan = Plan(
            kept,
            {
                "budget": asdict(s.budget),
                "round_to": "auto" if s.round_to is None else s.round_to,
                "refit": s.refit,
                "seed": s.seed,
                **({"approximate": True} if s.approximate else {}),
                **({"preset": s.preset} if s.preset else {}),
                **({"granularity": s.granularity, "pattern": s.pattern} if s.granularity != "channel" else {}),
                **{name: getattr(s, name) for name in REPLAYED if getattr(s, name) != getattr(Settings, name)},
                "recover": course or self.set_aside,
                **({"data": self._samples} if s.refit or course else {}),
            },
            self.model.sha256,
        )
        details = self._detailed(counts, kept, model, outputs)
        return Result(model, plan, record, self.analysis, self.search.journal.trials, details, eight)

    def _detailed(
        self, counts: np.ndarray, kept: Kept, model: onnx.ModelProto, outputs: Outputs | None
    ) -> dict[str, Any]:
        """What a report shows beside the record."""
        found = details_of(self.search, counts)
        if self.scorer is not None and outputs is not None:
            found["samples"] = {"calibration": len(self.builder.calibration), "reward": len(self.scorer.index)}
            found["synthetic"] = self.scorer.data.synthetic
            found["layer_errors"] = errors_json(self.search, kept, model, self.scorer) if kept else []
            found["confusion"] = confusion_json(self.scorer, outputs)
        return found

    def _recovered(
        self, kept: Kept, ready: onnx.ModelProto | None
    ) -> tuple[onnx.ModelProto | None, dict[str, Any], dict[str, Any]]:
        """The refitted model, trained where that is wanted; what the record and the plan say of the training."""
        if self.data is None or self.scorer is None or self.trained is None or not kept:
            return ready, {}, {}
        scorer = self.scorer

        def judge(model: onnx.ModelProto) -> tuple[float, float]:
            found = scorer(model)
            return found.value, self.search.journal.rule.short(found.value, found.loss)

        start = ready or self.builder.refined(kept)
        with self._timed("recover"):
            course = course_of(self.settings, len(self.trained))
            task = self.builder.task(kept, start, self.trained, course)
            return train(task, judge, self.listener, self.memo.checkpoint(self.settings.budget.ratio))

    def _in_int8(
        self, model: onnx.ModelProto, compressed: Mapping[str, Any]
    ) -> tuple[onnx.ModelProto | None, dict[str, Any]]:
        """What is delivered, quantised where that is wanted, and what the record says of it."""
        if not self.settings.int8 or self.scorer is None:
            return None, {}
        with self._timed("int8"):
            counted = {key: compressed[key] for key in ("macs", "params", "nonzeros")}
            return in_int8(model, counted, self.scorer, self.builder.calibration, self.settings, self.listener)

    def _timed_against(
        self, counts: np.ndarray, models: Sequence[tuple[onnx.ModelProto, dict[str, Any]]]
    ) -> dict[str, dict[str, Any]]:
        """Measure latencies of models and the uniform plan in turn, enter them, and return the baselines' figures.

        Args:
            counts: Of the plan delivered, which may be the uniform one.
            models: The original, the model delivered, and others, with what is known of them.

        """
        refined = {t.key: t.score for t in self.search.finals}
        found = {
            name: {"macs": self.units.macs(t.counts), "score": refined.get(t.key, t.score)}
            for name, t in self.search.baselines.items()
        }
        candidates, tables = [model for model, _ in models], [table for _, table in models]
        uniform = self.search.baselines.get("uniform")
        delivered = np.array_equal(uniform.counts, counts) if uniform else self.settings.policy == "uniform"
        if uniform is not None and not delivered:
            candidates.append(self.builder.unrefitted(uniform.counts))
            found["uniform"] |= figures(candidates[-1], sizes=self.model.sizes)
            tables.append(found["uniform"])
        self.listener.stage("latency", None)
        feed, settings = one_feed(self.model, self.data), self.settings
        seconds = float(np.clip((time.perf_counter() - self.started) / 6, *TIMING))
        times = measure(candidates, feed, seconds=seconds, threads=settings.threads, provider=settings.provider)
        for table, taken in zip(tables, times, strict=True):
            table["latency_ms"], table["latency_ratio"] = taken.milliseconds, taken.ratio
        if doubt := disturbed(times):
            self.listener.note(doubt)
        if delivered:
            found["uniform"] = {**models[1][1], **found.get("uniform", {})}
        return found

    def _foretold(self, counts: np.ndarray) -> dict[str, Any]:
        """What the table of latencies says of a plan, and how far it may be believed."""
        if self.table is None or "latency" not in self.units.prices:  # timed for a run that this one is another of
            return {}
        told = {"ratio": self.search.foretold(counts), "error": self.table.error, "worst": self.table.worst}
        taken = self.search.taken(counts) if self.settings.budget.kind == "latency" else None
        return {"latency_table": told | ({} if taken is None else {"measured": taken})}

    def _asked(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "model": self.model.source,
            "out": None,
            "seed": settings.seed,
            "policy": settings.policy,
            "metric": self.scorer.name if self.scorer else None,
            "data": self.data.source if self.data else None,
            "fed": self.fed,
            "warnings": self.warnings,
            "episodes": 0 if settings.policy in CLOSED else settings.episodes,
            "budget": asdict(settings.budget),
        }

    def _recounted(self, model: onnx.ModelProto, counts: np.ndarray) -> dict[str, Any]:
        """Count and score what is delivered by a second route, and hold it against the plan's price and the budget."""
        light.check(model)
        found = figures(model, sizes=self.model.sizes)
        planned, space = self.units.macs(counts), self.search.space
        if found["macs"] != planned:
            raise SelfCheckError(
                f"the compressed model has {found['macs']} MACs, its plan says {planned}",
                where=self.model.source,
                fix="nothing was written; please report the model's graph as a bug",
            )
        if np.array_equal(counts, space.full):  # the original: what it costs is what the budget counts from
            return found
        spent: float = space.price(counts)
        if self.settings.budget.kind == "latency":  # measured anew, it would differ
            spent = self.search.spent(counts, lambda: model)
        elif self.search.actual is not None:
            spent = self.search.actual(model)
        if spent > space.limit:
            raise BudgetError(
                f"the plan costs {spent} {space.unit}, more than {space.limit}",
                where=self.settings.budget.option,
                fix="ask for a larger fraction",
            )
        return found
