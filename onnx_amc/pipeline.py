"""The story in one file: read, find the groups, calibrate, search, cut, refit, check, record."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from threadpoolctl import threadpool_limits

from onnx_amc.builder import Builder, Kept
from onnx_amc.config import Settings
from onnx_amc.errors import BudgetError, ModelError, SelfCheckError
from onnx_amc.graph import cost
from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import FLOATS, Model, load, true_inputs
from onnx_amc.graph.shapes import sample_feed
from onnx_amc.inspection import facts_of, protected, summary
from onnx_amc.prune.plan import Plan, load_plan, parse_plan
from onnx_amc.run import data as sources
from onnx_amc.run.capture import fixed_batch
from onnx_amc.run.check import self_check
from onnx_amc.run.latency import measure
from onnx_amc.run.score import Scorer, find_metric
from onnx_amc.run.session import open_session
from onnx_amc.search.loop import AGENTS, CLOSED, Journal, Tried, propose, search
from onnx_amc.search.space import Space, levels_of

if TYPE_CHECKING:
    from collections.abc import Iterator

DataSource = str | os.PathLike[str] | sources.Dataset | Mapping[str, np.ndarray]
ModelSource = str | os.PathLike[str] | onnx.ModelProto

SYNTHETIC_SAMPLES = 256


class Listener:
    """Hears how a run goes; the command line draws it. Every method may be overridden, none must be."""

    def stage(self, name: str, total: int | None) -> None:
        """Say that a stage begins, of so many steps (None: unknown)."""

    def advance(self, done: int, note: str = "") -> None:
        """Say how many steps of the stage are done."""

    def note(self, text: str) -> None:
        """Say something the user should know."""


@dataclass(frozen=True)
class Result:
    """What a run delivers.

    Args:
        model: The compressed model.
        plan: What was cut.
        record: Everything measured, as in `--json`.
        analysis: Of the original.
        trials: Every evaluated plan.

    """

    model: onnx.ModelProto
    plan: Plan
    record: dict[str, Any]
    analysis: Analysis = field(repr=False)
    trials: list[Tried] = field(repr=False, default_factory=list)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model: beside its place first, then renamed, so that a file there is replaced by a whole one only."""
        write_model(self.model, Path(path))


def compress(
    model: ModelSource, data: DataSource | None, settings: Settings, listener: Listener | None = None
) -> Result:
    """Compress a model; see `onnx_amc.compress` for the keyword form."""
    run = _Run(model, data, settings, listener or Listener())
    # Many small solves: BLAS threads would only wait for each other, and one thread sums in one order on every machine.
    with threadpool_limits(limits=1, user_api="blas"):
        return run.deliver(run.choose())


def apply(
    model: ModelSource, plan: Plan | str | os.PathLike[str] | Mapping[str, Any], data: DataSource | None = None
) -> onnx.ModelProto:
    """Replay a plan: the same bytes as the run that wrote it, given the same data.

    Raises:
        PlanError: The plan does not fit the model.

    """
    analysis = analyse(_load(model))
    if isinstance(plan, Mapping):
        plan = parse_plan(plan, analysis, "plan")
    elif not isinstance(plan, Plan):
        plan = load_plan(plan, analysis)
    settings = _replayed(plan)
    samples = None if settings.blind or not settings.refit else _data(analysis.model, model, data, settings, Listener())
    calibration = np.zeros(0, dtype=np.int64)
    if samples is not None:
        calibration, _ = samples.split(settings.seed, settings.calibration, settings.reward)
    builder = Builder(analysis, settings, samples, calibration)
    with threadpool_limits(limits=1, user_api="blas"):
        self_check(analysis, plan.kept, check_feed(analysis.model, samples))
        return builder.deliverable(plan.kept)


def evaluate(
    model: ModelSource, data: DataSource, metric: str | None = None, provider: str = "CPUExecutionProvider"
) -> dict[str, Any]:
    """Score a model on data; the metric is what suits the data unless named."""
    loaded = _load(model)
    classes = _classes(loaded)
    samples = sources.load(data, input_specs(loaded.proto), classes=classes)
    name, function = find_metric(metric, samples, classes)
    scorer = Scorer(loaded.original, samples, np.arange(len(samples)), function, name, provider, loaded.source)
    return {"model": loaded.source, "metric": name, "samples": len(samples), "score": scorer.original.value}


def inspect(model: ModelSource, min_keep: float = 0.2, round_to: int | None = None) -> dict[str, Any]:
    """Return layers, groups, what is fixed and why, and the smallest reachable price."""
    return summary(analyse(_load(model)), min_keep, round_to)


class _Run:
    """One run of `compress`: what its steps share."""

    def __init__(self, model: ModelSource, data: DataSource | None, settings: Settings, listener: Listener) -> None:
        self.started = time.perf_counter()
        self.seconds = dict.fromkeys(("analyse", "calibrate", "search", "search_onnxruntime", "recover", "total"), 0.0)
        self.settings, self.listener = settings, listener
        with self._timed("analyse"):
            self.listener.stage("analyse", None)
            self.analysis = analyse(_load(model))
            self.model = self.analysis.model
            self.kept_whole = protected(self.analysis, settings.keep)
            self.space = self._space()
        self.data = None if settings.blind and data is None and not _sidecar(model) else self._samples(model, data)
        calibration, reward = np.zeros(0, np.int64), np.zeros(0, np.int64)
        if self.data is not None:
            calibration, reward = self.data.split(settings.seed, settings.calibration, settings.reward)
        self.scorer: Scorer | None = None
        with self._timed("calibrate"):
            self.listener.stage("calibrate", len(calibration))
            if self.data is not None:
                name, metric = find_metric(settings.metric, self.data, _classes(self.model))
                self.scorer = Scorer(
                    self.model.original, self.data, reward, metric, name, settings.provider, self.model.source
                )
            self.builder = Builder(
                self.analysis, settings, self.data, calibration, lambda done, _total: self.listener.advance(done)
            )
            for node, why in self.builder.refused.items():
                self.listener.note(f"layer '{node}' is cut but not refitted: {why}")
        self.journal = Journal(self._evaluate, self._tell)
        self.baselines: dict[str, Tried] = {}

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def _samples(self, model: ModelSource, data: DataSource | None) -> sources.Dataset:
        return _data(self.model, model, data, self.settings, self.listener)

    def _space(self) -> Space:
        """Levels and budget; refuses a model in which nothing can be cut."""
        groups, settings = self.analysis.groups, self.settings
        if not any(not whole for whole in self.kept_whole):
            reasons = (
                "; ".join(f"{g.name}: {g.reason}" for g in self.analysis.fixed[:3]) or "it has no Conv, Gemm or MatMul"
            )
            raise ModelError(
                f"the model has no prunable layer ({reasons})",
                where=self.model.source,
                fix="see `onnx-amc inspect` for what fixes each layer" + (", or relax --keep" if settings.keep else ""),
            )
        price = cost.params(self.analysis) if settings.budget.kind == "params" else cost.macs(self.analysis)
        levels = tuple(
            np.array([g.channels]) if whole else levels_of(g.channels, settings.round_to, settings.min_keep)
            for g, whole in zip(groups, self.kept_whole, strict=True)
        )
        whole = price(np.array([g.channels for g in groups], dtype=np.int64))
        free = settings.budget.kind == "channels"
        limit = whole if free else int(np.floor(settings.budget.ratio * whole + 1e-9))
        unit = "parameters" if settings.budget.kind == "params" else "MACs"
        space = Space(tuple(g.name for g in groups), levels, price, limit, unit)
        blocked = [f"{g.name} ({g.reason})" for g in self.analysis.fixed]
        space.check(where=settings.budget.option, blocked=blocked)
        return space

    def _evaluate(self, counts: np.ndarray) -> tuple[float, float]:
        if self.scorer is None:
            raise RuntimeError("a run without data evaluates nothing")
        found = self.scorer(self.builder.build(self.builder.kept(counts)))
        return found.value, found.loss

    def _tell(self, tried: Tried) -> None:
        done = sum(t.source == tried.source for t in self.journal.trials)
        ratio = self.space.price(tried.counts) / self.space.price(self.space.full)
        self.listener.advance(
            done, f"{tried.source}: {tried.score:.4f} at {ratio:.1%}, best {self.journal.best.score:.4f}"
        )

    def choose(self) -> np.ndarray:
        """Return the counts to deliver: the best plan seen, or the very one that was asked for."""
        settings, space = self.settings, self.space
        if settings.budget.kind == "channels":
            return space.at(settings.budget.ratio)
        start = time.perf_counter()
        spent = self._onnxruntime()
        if self.scorer is None:
            return propose(space, settings.policy, [])
        try:
            return self._search()
        finally:
            self.seconds["search"] = time.perf_counter() - start
            self.seconds["search_onnxruntime"] = self._onnxruntime() - spent

    def _onnxruntime(self) -> float:
        return (self.scorer.seconds if self.scorer else 0.0) + self.builder.seconds

    def _search(self) -> np.ndarray:
        settings, space = self.settings, self.space
        self.listener.stage("rank", None)
        errors: list[np.ndarray] = []
        _ = self.builder.rankings
        if settings.policy == "knapsack" or settings.policy not in CLOSED:
            self.listener.stage("sensitivity", len(self.analysis.groups))
            errors = self.builder.errors(space.levels, lambda done, _total: self.listener.advance(done))
        names = ["uniform", *(["knapsack"] if errors else [])]
        self.listener.stage("baselines", len(names))
        for name in names:
            self.baselines[name] = self.journal.ask(propose(space, name, errors), name)
        if settings.policy in CLOSED:
            chosen = self.baselines.get(settings.policy) or self.journal.ask(
                propose(space, settings.policy, errors), settings.policy
            )
            return chosen.counts
        self.listener.stage(f"search ({settings.policy})", settings.episodes)
        search(
            space,
            facts_of(self.analysis),
            self.journal,
            policy=settings.policy,
            episodes=settings.episodes,
            seed=settings.seed,
            starts=list(self.baselines.values()) if settings.policy in AGENTS else [],
        )
        return self.journal.best.counts

    def deliver(self, counts: np.ndarray) -> Result:
        """Build, check and measure the final model."""
        self.listener.stage("check", None)
        kept = self.builder.kept(counts)
        gap = self_check(self.analysis, kept, check_feed(self.model, self.data))
        model = self.builder.deliverable(kept)
        uniform = self.baselines["uniform"].counts if "uniform" in self.baselines else None
        plan = Plan(kept, self._plan_settings())
        record = self._record(model, counts, kept, gap, uniform)
        return Result(model, plan, record, self.analysis, self.journal.trials)

    def _plan_settings(self) -> dict[str, Any]:
        s = self.settings
        return {
            "budget": {"kind": s.budget.kind, "ratio": s.budget.ratio},
            "round_to": "auto" if s.round_to is None else s.round_to,
            "refit": s.refit,
            "seed": s.seed,
        }

    def _record(
        self, model: onnx.ModelProto, counts: np.ndarray, kept: Kept, gap: float, uniform: np.ndarray | None
    ) -> dict[str, Any]:
        candidates = [self.model.original, model]
        if uniform is not None:
            candidates.append(self.builder.deliverable(self.builder.kept(uniform)))
        self.listener.stage("latency", None)
        times = measure(candidates, one_feed(self.model), provider=self.settings.provider)
        compressed = self._delivered(model, counts)
        compressed["latency_ms"], compressed["latency_ratio"] = times[1].milliseconds, times[1].ratio
        original = {**figures(self.model.original, self.model), "latency_ms": times[0].milliseconds}
        original["score"] = self.scorer.original.value if self.scorer else None
        baselines = {
            name: {"macs": cost.macs(self.analysis)(t.counts), "score": t.score} for name, t in self.baselines.items()
        }
        if uniform is not None:
            baselines["uniform"] |= {**figures(candidates[2], None), "latency_ms": times[2].milliseconds}
            baselines["uniform"]["latency_ratio"] = times[2].ratio
        self.seconds["total"] = time.perf_counter() - self.started
        trials = [t for t in self.journal.trials if t.source == self.settings.policy]
        best = max(range(len(trials)), key=lambda i: (trials[i].score, -trials[i].loss), default=None)
        return {
            "model": self.model.source,
            "out": None,
            "seed": self.settings.seed,
            "policy": self.settings.policy,
            "metric": self.scorer.name if self.scorer else None,
            "data": self.data.source if self.data else None,
            "episodes": self.settings.episodes if self.settings.policy not in CLOSED else 0,
            "budget": {"kind": self.settings.budget.kind, "ratio": self.settings.budget.ratio},
            "original": original,
            "compressed": compressed,
            "baselines": baselines,
            "delivered": next(
                (t.source for t in self.journal.trials if np.array_equal(t.counts, counts)), self.settings.policy
            ),
            "seconds": self.seconds,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "checks": {"masked_equals_cut": gap, "checker": True},
            "best_episode": best,
            "rewards": [t.reward for t in trials],
            "groups": [
                {"name": g.name, "channels": g.channels, "kept": len(kept.get(g.name, range(g.channels)))}
                for g in self.analysis.groups
            ],
        }

    def _delivered(self, model: onnx.ModelProto, counts: np.ndarray) -> dict[str, Any]:
        """Recount and score what is delivered, by a second route, and hold it against the plan's price and the budget."""
        onnx.checker.check_model(model)
        found = figures(model, None)
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


def figures(model: onnx.ModelProto, known: Model | None) -> dict[str, Any]:
    """MACs, parameters and bytes of a model, counted on the model itself."""
    loaded = known or load(model)
    analysis = analyse(loaded)
    full = np.array([g.channels for g in analysis.groups], dtype=np.int64)
    params = sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type in FLOATS)
    return {"macs": cost.macs(analysis)(full), "params": params, "bytes": loaded.bytes}


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write beside the place, read back, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        open_session(str(temporary), where=str(path))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def input_specs(model: onnx.ModelProto) -> list[sources.InputSpec]:
    """What the model takes."""
    return [
        sources.InputSpec(
            info.name,
            np.dtype(onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)),
            tuple(d.dim_value if d.dim_value > 0 else None for d in info.type.tensor_type.shape.dim),
        )
        for info in true_inputs(model)
    ]


def check_feed(model: Model, data: sources.Dataset | None, samples: int = 4) -> dict[str, np.ndarray]:
    """Return the input of the self-check: a few samples of the data, or noise."""
    if data is None:
        return sample_feed(model.proto, model.shapes)
    return data.batch(np.arange(fixed_batch(model.proto) or samples) % len(data))


def one_feed(model: Model) -> dict[str, np.ndarray]:
    """Return the input of the latency measurement: noise, batch 1."""
    return sample_feed(model.proto, model.shapes)


def _load(model: ModelSource) -> Model:
    return load(model if isinstance(model, onnx.ModelProto) else Path(model))


def _sidecar(model: ModelSource) -> Path | None:
    return None if isinstance(model, onnx.ModelProto) else sources.sidecar(model)


def _data(
    loaded: Model, model: ModelSource, data: DataSource | None, settings: Settings, listener: Listener
) -> sources.Dataset:
    specs = input_specs(loaded.proto)
    source = data if data is not None else _sidecar(model)
    if source is not None:
        return sources.load(source, specs, classes=_classes(loaded))
    listener.note(
        "no data: calibration inputs are synthetic noise and the score is fidelity to the original. Expect a worse result than "
        "with a few hundred real inputs (--data)"
    )
    return sources.synthesise(specs, SYNTHETIC_SAMPLES, settings.seed)


def _classes(model: Model) -> int | None:
    """Return the number of classes where the first output looks like a classifier's, else None."""
    if not model.proto.graph.output:
        return None
    shape = model.shapes.get(model.proto.graph.output[0].name, ())
    elements = int(np.prod(shape[1:])) if len(shape) > 1 else 0
    return elements if elements > 1 and len(shape) - sum(d == 1 for d in shape[2:]) == 2 else None


def _replayed(plan: Plan) -> Settings:
    """Settings of the run that wrote a plan."""
    from onnx_amc.config import Budget, parse_round_to  # noqa: PLC0415

    s = plan.settings
    budget = s.get("budget", {"kind": "channels", "ratio": 1.0})
    return Settings(
        budget=Budget(str(budget["kind"]), float(budget["ratio"])),
        policy="uniform" if not s.get("refit", True) else "ddpg",
        round_to=parse_round_to(str(s.get("round_to", "auto"))),
        refit=bool(s.get("refit", True)),
        seed=int(s.get("seed", 0)),
    )


def save_record(record: Mapping[str, Any], path: Path) -> None:
    """Write a record as JSON."""
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
