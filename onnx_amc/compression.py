"""One run of `compress`: read, find the groups, calibrate, search, cut, refit, check, record."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import onnx

from onnx_amc.builder import Builder, Kept
from onnx_amc.config import Settings
from onnx_amc.delivery import Result, check_feed, class_count, figures, one_feed, outcome
from onnx_amc.errors import BudgetError, SelfCheckError
from onnx_amc.graph import cost, light
from onnx_amc.graph.groups import analyse
from onnx_amc.inspection import facts_of, protected
from onnx_amc.intake import DataSource, ModelSource, find_data, load_model, sidecar
from onnx_amc.listener import Listener
from onnx_amc.prune.plan import Plan
from onnx_amc.prune.surgery import finish
from onnx_amc.recover.course import Task
from onnx_amc.run.check import gap, self_check
from onnx_amc.run.data import Dataset
from onnx_amc.run.latency import measure
from onnx_amc.run.metrics import find_metric, shown
from onnx_amc.run.score import Scorer
from onnx_amc.rundir import Memo, RunDir
from onnx_amc.search.env import ChannelPruningEnv
from onnx_amc.search.loop import AGENTS, CLOSED, Journal, Tried, key_of, propose, reward_of, search, second_pass
from onnx_amc.search.space import Space, levels_of
from onnx_amc.training import course_of, parts_of, train

PARTS = 8
"""Into how many parts the reward samples are split to see what the loss should count for."""

FINAL_BASELINES = 2
"""Baselines that get the full refit at the end, uniform besides."""


class Compression:
    """One run; its parts are made on the way down `__init__`, and `choose` and `deliver` finish it.

    Args:
        model: What to compress.
        data: Samples; None for the sidecar, or noise.
        settings: Of the run.
        listener: Hears how it goes.
        run_dir: Where evaluations are written down as they come; None writes nothing.
        resume: Whether to go on with what is in `run_dir`.

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
    ) -> None:
        self.settings, self.listener = settings, listener
        self._begin()
        with self._timed("analyse"):
            self.listener.stage("analyse", None)
            self.analysis = analyse(load_model(model), approximate=settings.approximate)
            self.model = self.analysis.model
            self.space = self._space()
        self.data: Dataset | None = None
        if data is not None or (len(self.space) and (not settings.blind or sidecar(model))):
            self.data = find_data(self.model, model, data, settings.seed, listener.note)
        self.memo = self._memo(run_dir, resume=resume)
        with self._timed("calibrate"):
            self._calibrate()

    def _begin(self) -> None:
        self.started = time.perf_counter()
        self.seconds = dict.fromkeys(("analyse", "calibrate", "search", "search_onnxruntime", "recover", "total"), 0.0)
        self.journal = Journal(self._evaluate, self._tell)
        self.baselines: dict[str, Tried] = {}
        self.finals: list[Tried] = []
        self.ready: tuple[Tried, onnx.ModelProto] | None = None

    def again(self, policy: str, episodes: int) -> Compression:
        """Return another run with another search: it shares the calibration, and what plans scored."""
        other = copy(self)
        other.settings = replace(self.settings, policy=policy, episodes=episodes)
        other._begin()  # noqa: SLF001  its own copy
        other.journal.scale = self.journal.scale
        return other

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def _memo(self, run_dir: str | os.PathLike[str] | None, *, resume: bool) -> Memo:
        if run_dir is None:
            return Memo()
        samples = [self.data.source, len(self.data)] if self.data else None
        identity = {"model": self.model.sha256, "settings": asdict(self.settings), "data": samples}
        return RunDir(run_dir, identity, resume=resume)

    def _calibrate(self) -> None:
        settings, data = self.settings, self.data
        parts = parts_of(data, settings)
        self.trained, reward = parts.trained, parts.reward
        self.scorer = self.trial = None
        if data is not None:
            for name in data.unused:
                self.listener.note(f"array '{name}' in {data.source} is neither an input nor labels: ignored")
            name, metric = find_metric(settings.metric, data, class_count(self.model))
            how = (metric, name, settings.provider, self.model.source)
            self.scorer = Scorer(self.model.original, data, reward, *how, parts=PARTS)
            few = np.sort(np.random.default_rng(settings.seed).permutation(reward)[: settings.trial])
            self.trial, self.journal.scale = self.scorer, self.scorer.scale
            if len(few) < len(reward):
                self.trial = Scorer(self.model.original, data, few, *how, parts=PARTS)
        self.listener.stage("calibrate", len(parts.calibration) or None)
        self.builder = Builder(self.analysis, settings, data, parts.calibration, lambda n, _: self.listener.advance(n))
        for node, why in self.builder.refused.items():
            self.listener.note(f"layer '{self.analysis.names[node]}' is cut but not refitted: {why}")
        self._remark()

    def _remark(self) -> None:
        while self.builder.remarks:
            self.listener.note(self.builder.remarks.pop(0))

    def _space(self) -> Space:
        """Levels and budget; refuses a model in which nothing can be cut."""
        groups, settings = self.analysis.groups, self.settings
        whole = protected(self.analysis, settings.keep)
        if all(whole):
            reasons = "; ".join(f"{g.name}: {g.reason}" for g in self.analysis.fixed[:3])
            why = reasons or ("--keep protects all" if groups else "no Conv, Gemm or MatMul feeds another")
            self.listener.note(f"the model has no prunable layer and stays as it is ({why})")
        price = cost.params(self.analysis) if settings.budget.kind == "params" else cost.macs(self.analysis)
        levels = tuple(
            np.array([g.channels]) if keep else levels_of(g.channels, settings.round_to, settings.min_keep, g.lanes)
            for g, keep in zip(groups, whole, strict=True)
        )
        total = price(np.array([g.channels for g in groups], dtype=np.int64))
        ratio = 1.0 if settings.budget.kind == "channels" else settings.budget.ratio
        unit = "parameters" if settings.budget.kind == "params" else "MACs"
        space = Space(tuple(g.name for g in groups), levels, price.many, int(np.floor(ratio * total + 1e-9)), unit)
        blocked = [f"{g.name} ({g.reason})" for g in self.analysis.fixed]
        space.check(where=settings.budget.option, blocked=blocked)
        if not groups and ratio < 1:
            raise BudgetError(
                f"nothing can be cut, so the smallest is 1.0000 of the {unit}. In the way: {'; '.join(blocked[:3])}",
                where=settings.budget.option,
                fix="see `onnx-amc inspect` for what fixes each layer",
            )
        return space

    def environment(self) -> ChannelPruningEnv:
        """The Gymnasium environment of this run, each episode evaluated in onnxruntime."""
        return ChannelPruningEnv(
            self.space, facts_of(self.analysis), lambda c: self.journal.ask(c, "environment").reward
        )

    def _evaluate(self, counts: np.ndarray) -> Sequence[float]:
        return self._scored("plan", counts, self.builder.drafted, self.trial)

    def _scored(
        self, kind: str, counts: np.ndarray, build: Callable[[Kept], onnx.ModelProto], scorer: Scorer | None
    ) -> Sequence[float]:
        """Score and loss of a plan built in one of two ways, and those of parts of the samples, remembered under its kind."""

        def compute() -> list[float]:
            if scorer is None:
                raise RuntimeError("a run without data evaluates nothing")
            found = scorer(build(self.builder.kept(counts)))
            return [found.value, found.loss, *found.parts]

        return self.memo.get(f"{kind} " + " ".join(map(str, counts.tolist())), compute)

    def _tell(self, tried: Tried) -> None:
        done = sum(t.source == tried.source for t in self.journal.trials)
        ratio = self.space.price(tried.counts) / self.space.price(self.space.full)
        best = self.journal.best.score
        self.listener.advance(done, f"{tried.source}: {shown(tried.score)} at {ratio:.1%}, best {shown(best)}")

    def choose(self) -> np.ndarray:
        """Return the counts to deliver: the best plan seen, or the very one that was asked for."""
        if self.settings.budget.kind == "channels":
            return self.space.at(self.settings.budget.ratio)
        if self.scorer is None:
            return propose(self.space, self.settings.policy, [])
        before = self._onnxruntime()
        with self._timed("search"):
            chosen = self._search()
        self.seconds["search_onnxruntime"] = self._onnxruntime() - before
        return chosen

    def _onnxruntime(self) -> float:
        return sum(s.seconds for s in {self.scorer, self.trial} if s) + self.builder.seconds

    def _search(self) -> np.ndarray:
        settings, space = self.settings, self.space
        errors: list[np.ndarray] = []
        if settings.policy == "knapsack" or settings.policy not in CLOSED:
            self.listener.stage("sensitivity", len(self.analysis.groups))
            errors = self.builder.errors(space.levels, lambda n, _: self.listener.advance(n), self.memo)
        names = [
            "uniform",
            *([] if settings.policy in CLOSED else ["shallow", "deep"]),
            *(["knapsack"] if errors else []),
        ]
        self.listener.stage("baselines", len(names))
        for name in names:
            self.baselines[name] = self.journal.ask(propose(space, name, errors), name)
        if errors:
            self.listener.stage("second pass", len(space) + 2)
            self.baselines["knapsack"], errors = second_pass(space, self.journal, errors, self.baselines["knapsack"])
            self.baselines = {n: replace(t, shaping=self.journal.shaping) for n, t in self.baselines.items()}
        if settings.policy in CLOSED:
            if settings.policy not in self.baselines:
                self.baselines[settings.policy] = self.journal.ask(
                    propose(space, settings.policy, errors), settings.policy
                )
            self.finals = [self._refined(t) for t in self.baselines.values()]
            return self.baselines[settings.policy].counts
        self.listener.stage(f"search ({settings.policy})", settings.episodes)
        search(
            space,
            facts_of(self.analysis),
            self.journal,
            policy=settings.policy,
            episodes=settings.episodes,
            seed=settings.seed,
            starts=list(self.baselines.values()) if settings.policy in AGENTS else [],
            errors=errors,
        )
        return self._final().counts

    def _final(self) -> Tried:
        """Refit the best few plans as they would be delivered, those of the baselines too, and return the one that is best then."""
        plain = sorted(
            {t.key: t for t in self.baselines.values()}.values(), key=lambda t: (-t.reward, t.source != "uniform")
        )
        keys = {t.key for t in plain}
        others = sorted((t for t in self.journal.distinct if t.key not in keys), key=lambda t: -t.reward)
        few = [t for i, t in enumerate(plain) if i < FINAL_BASELINES or t.source == "uniform"]
        chosen = [*others[: self.settings.finalists], *few]
        self.listener.stage("finals", len(chosen))
        for done, tried in enumerate(chosen, start=1):
            found = self._refined(tried)
            self.finals.append(found)
            self.listener.advance(done, f"{found.source}: {shown(tried.score)}, refitted {shown(found.score)}")
        return max(self.finals, key=lambda t: t.reward)

    def _refined(self, tried: Tried) -> Tried:
        """The same plan, built and scored as it would be delivered; the best model of them is kept."""

        def build(kept: Kept) -> onnx.ModelProto:
            built.append(self.builder.refined(kept))
            return built[0]

        built: list[onnx.ModelProto] = []
        value, loss, *_ = self._scored("final", tried.counts, build, self.scorer)
        found = replace(tried, score=value, loss=loss, shaping=self.journal.shaping)
        if built and (self.ready is None or found.reward > self.ready[0].reward):
            self.ready = found, built[0]
        return found

    def ready_for(self, counts: np.ndarray) -> onnx.ModelProto | None:
        """The refitted model of these counts, if the finals have just built it."""
        return self.ready[1] if self.ready is not None and self.ready[0].key == key_of(counts) else None

    def deliver(self, counts: np.ndarray) -> Result:
        """Build, check and measure the final model."""
        self.listener.stage("check", None)
        kept = self.builder.kept(counts)
        checks = self._checked(kept)
        trained, told, course = self._recovered(kept, self.ready_for(counts))
        model = self.builder.deliverable(kept, trained)
        self._remark()
        compressed = self._recounted(model, counts)
        original = figures(self.model.original, self.model)
        original["score"] = self.scorer.original.value if self.scorer else None
        baselines = self._timed_against(model, original, compressed)
        self.seconds["total"] = time.perf_counter() - self.started
        record = {
            **self._asked(),
            "original": original,
            "compressed": compressed,
            "baselines": baselines,
            "seconds": self.seconds,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "checks": checks,
            "recover": told or None,
            **outcome(self.journal, self.settings.policy, self.analysis, counts),
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
                "recover": course or self.trained is not None,
            },
        )
        return Result(model, plan, record, self.analysis, self.journal.trials)

    def _recovered(
        self, kept: Kept, ready: onnx.ModelProto | None
    ) -> tuple[onnx.ModelProto | None, dict[str, Any], dict[str, Any]]:
        """The refitted model, trained where that is wanted; what the record and the plan say of the training."""
        if self.data is None or self.scorer is None or self.trained is None or not kept:
            return ready, {}, {}
        scorer = self.scorer

        def judge(model: onnx.ModelProto) -> tuple[float, float]:
            found = scorer(model)
            return found.value, reward_of(found.value, found.loss, self.journal.shaping, scorer.scale)

        start = ready or self.builder.refined(kept)
        with self._timed("recover"):
            course = course_of(self.settings, len(self.trained))
            task = Task(self.analysis, kept, start, self.data, self.trained, course, self.settings.seed)
            return train(task, judge, self.listener, self.memo.checkpoint())

    def _checked(self, kept: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """The self-check of all groups whose cut is exact; of the others only how far they are from it."""
        feed = check_feed(self.model, self.data)
        exact = {g.name: kept[g.name] for g in self.analysis.groups if g.name in kept and g.doubt is None}
        checks: dict[str, Any] = {"masked_equals_cut": self_check(self.analysis, exact, feed), "checker": True}
        if len(exact) < len(kept):
            checks["approximate_difference"] = gap(self.analysis, kept, feed)
        return checks

    def _timed_against(
        self, model: onnx.ModelProto, original: dict[str, Any], compressed: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Measure latencies in turn, enter them, and return the baselines' figures."""
        price = cost.macs(self.analysis)
        refined = {t.key: t.score for t in self.finals}
        found = {
            name: {"macs": price(t.counts), "score": refined.get(t.key, t.score)} for name, t in self.baselines.items()
        }
        candidates, tables = [self.model.original, model], [original, compressed]
        if "uniform" in self.baselines:
            kept = self.builder.kept(self.baselines["uniform"].counts)
            candidates.append(finish(self.analysis, self.builder.build(kept, correct=False)))
            found["uniform"] |= figures(candidates[-1])
            tables.append(found["uniform"])
        self.listener.stage("latency", None)
        times = measure(candidates, one_feed(self.model, self.data), provider=self.settings.provider)
        for table, taken in zip(tables, times, strict=True):
            table["latency_ms"], table["latency_ratio"] = taken.milliseconds, taken.ratio
        return found

    def _asked(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "model": self.model.source,
            "out": None,
            "seed": settings.seed,
            "policy": settings.policy,
            "metric": self.scorer.name if self.scorer else None,
            "data": self.data.source if self.data else None,
            "episodes": 0 if settings.policy in CLOSED else settings.episodes,
            "budget": asdict(settings.budget),
        }

    def _recounted(self, model: onnx.ModelProto, counts: np.ndarray) -> dict[str, Any]:
        """Count and score what is delivered by a second route, and hold it against the plan's price and the budget."""
        light.check(model)
        found = figures(model)
        planned = cost.macs(self.analysis)(counts)
        if found["macs"] != planned:
            raise SelfCheckError(
                f"the cut model has {found['macs']} MACs, its plan says {planned}",
                where=self.model.source,
                fix="nothing was written; please report the model's graph as a bug",
            )
        if not self.space.feasible(counts):
            raise BudgetError(
                f"the plan costs {self.space.price(counts)} {self.space.unit}, more than {self.space.limit}",
                where=self.settings.budget.option,
                fix="ask for a larger fraction",
            )
        found["score"] = self.scorer(model).value if self.scorer else None
        return found
