"""What the command line and `import onnx_amc` call."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from threadpoolctl import threadpool_limits

from onnx_amc.builder import Builder
from onnx_amc.compression import Compression
from onnx_amc.config import REPLAYED, Budget, Settings, check_levels
from onnx_amc.delivery import Result, check_feed, class_count, input_specs, int8_beside, names_classes
from onnx_amc.details import provenance, times_json
from onnx_amc.errors import OptionError, PlanError
from onnx_amc.files import json_text, unwritable, write_text
from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import Model, load
from onnx_amc.guarantee import Guarantee
from onnx_amc.inspection import summary
from onnx_amc.intake import DataSource, ModelSource, find_data, load_both
from onnx_amc.listener import Listener
from onnx_amc.prune.plan import Plan, check_model, parse_plan, read_plan
from onnx_amc.run import data as sources
from onnx_amc.run import feed
from onnx_amc.run.blocks import parse_round_to
from onnx_amc.run.capture import batch_of
from onnx_amc.run.cluster import Cluster, joined
from onnx_amc.run.crew import share
from onnx_amc.run.metrics import find_metric
from onnx_amc.run.providers import provider_of
from onnx_amc.run.score import Scorer
from onnx_amc.search.journal import Tried
from onnx_amc.thinner import Thinner
from onnx_amc.training import parts_of, replay_of, train_again

THE_SAME = "give --data what the run was given"


def compress(
    model: ModelSource,
    data: DataSource | None,
    settings: Settings,
    listener: Listener | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
) -> Result:
    """Compress a model; see `onnx_amc.compress` for the keyword form."""
    listener = listener or Listener()
    with _team(settings, listener) as team:
        run = Compression(model, data, settings, listener, run_dir, resume=resume, team=team)
        if settings.max_drop is not None:
            return Guarantee(run, settings.max_drop).result()
        return run.deliver(run.choose())


def pareto(
    model: ModelSource,
    data: DataSource | None,
    settings: Settings,
    budgets: Sequence[Budget],
    listener: Listener | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
) -> list[Result]:
    """Compress a model to several budgets of one kind; they share calibration, tables and what plans scored."""
    if settings.max_drop is not None:
        raise OptionError("it is a budget of its own", where="max_drop", fix="call compress for it, or leave it out")
    listener = listener or Listener()
    with _team(settings, listener) as team:
        first = Compression(
            model, data, replace(settings, budget=budgets[0]), listener, run_dir, resume=resume, team=team
        )
        for budget in budgets:  # the smallest may be out of reach: told before anything is searched
            first.units.space(replace(settings, budget=budget))
        found: list[Result] = []
        for budget in budgets:
            listener.note(f"budget {budget.option}")
            run = first.again(budget=budget)
            found.append(run.deliver(run.choose()))
    for result in found:
        others = [r for r in found if r is not result]
        result.details["elsewhere"] = [tried for r in others for tried in r.details["trials"]]
    return found


def front(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Of all plans tried for several budgets those that no other one beats in both cost and score, cheapest first."""
    tried: list[tuple[float, Tried]] = []
    for result in results:
        pairs = [(told["ratio"], t) for told, t in zip(result.details["trials"], result.trials, strict=True)]
        # What was stopped early is an estimate, and has no parts.
        tried += [pair for pair in pairs if pair[1].parts] or pairs
    best: list[dict[str, Any]] = []
    for cost, trial in sorted(tried, key=lambda pair: (pair[0], -pair[1].score)):
        if not best or trial.score > best[-1]["score"]:
            best.append({"ratio": cost, "score": trial.score, "source": trial.source, "counts": trial.counts.tolist()})
    return best


PlanSource = Plan | str | os.PathLike[str] | Mapping[str, Any]


def apply(
    model: ModelSource, plan: PlanSource, data: DataSource | None = None, listener: Listener | None = None
) -> onnx.ModelProto:
    """Replay a plan: the same bytes as the run that wrote it, given the same data.

    With other data the refit is another one, of which the listener is warned.

    Raises:
        PlanError: The plan does not fit the model, or the data its training.

    """
    return replayed(model, plan, data, listener)[0]


def replayed(
    model: ModelSource, plan: PlanSource, data: DataSource | None = None, listener: Listener | None = None
) -> tuple[onnx.ModelProto, Analysis]:
    """As `apply`, with the analysis of the original."""
    where = "plan" if isinstance(plan, Plan | Mapping) else str(plan)
    document = plan if isinstance(plan, Plan | Mapping) else read_plan(plan)
    told = document.settings if isinstance(document, Plan) else document
    preset = None if told.get("preset") is None else str(told["preset"])
    loaded, known = load_both(model, data, preset)
    analysis = analyse(loaded, approximate=bool(told.get("approximate", False)))
    plan = document if isinstance(document, Plan) else parse_plan(document, analysis, where)
    if plan.model is not None:
        check_model(plan.model, analysis, where)
    settings, course = _settings_of(plan), plan.settings.get("recover")
    listener = listener or Listener()
    samples = None
    if settings.refit or course:
        samples = find_data(analysis.model, model, data, settings.seed, listener, settings.preset, known)
    _compare(plan, samples, where, listener)
    parts = parts_of(samples, settings, analysis.model)
    listener.stage("calibrate", len(parts.calibration) or None)
    with threadpool_limits(limits=1, user_api="blas"):
        make = Thinner if settings.granularity == "weight" else Builder
        builder = make(analysis, settings, samples, parts.calibration, lambda n, _: listener.advance(n))
        builder.checked(plan.kept, check_feed(analysis.model, samples))
        ready = None
        if isinstance(course, Mapping) and samples is not None and parts.trained is not None:
            how, replay = replay_of(course)
            if (replay.steps - 1) * how.batch >= len(parts.trained):
                needed, there = replay.steps * how.batch, len(parts.trained)
                raise PlanError(f"its training takes {needed} samples, there are {there}", where=where, fix=THE_SAME)
            refined = builder.refined(plan.kept)
            ready = train_again(builder.task(plan.kept, refined, parts.trained, how), replay, listener)
        return builder.deliverable(plan.kept, ready), analysis


def _compare(plan: Plan, samples: sources.Dataset | None, where: str, listener: Listener) -> None:
    """Tell samples that are not those which the plan was made with."""
    known = plan.settings.get("data")
    if samples is None or known is None or samples.digest() == known:
        return
    what = f"its run was given other samples than {samples.source}"
    if samples.synthetic and isinstance(plan.settings.get("recover"), Mapping):
        raise PlanError(f"{what}, and its training is to be repeated", where=where, fix=THE_SAME)
    stays = (
        "as many weights stay, but other ones"
        if "granularity" in plan.settings
        else "the same channels stay, with other weights"
    )
    listener.warn(f"{what}: {stays} than the run's; {THE_SAME}")


def evaluate(
    model: ModelSource, data: DataSource, metric: str | None = None, provider: str = "CPUExecutionProvider",
    against: ModelSource | None = None, preset: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score a model on data, by the metric that is named or else suits: with `against` one that compares with that original.

    Raises:
        OptionError: The outputs of the two models are not alike, or the metric cannot be had.

    """
    loaded, known = load_both(model, data, preset, least=1)
    base = loaded if against is None else load(against, loaded.sizes)
    if (mine := _outputs(loaded)) != (theirs := _outputs(base)):
        what = f"its outputs are {theirs}, those of {loaded.source} {mine}"
        raise OptionError(what, where=f"--against {base.source}", fix="name the model that this one was made from")
    classes = class_count(loaded)
    read = (data, preset) if known is None else (known, None)
    samples = sources.load(read[0], input_specs(loaded.proto), classes=classes, preset=read[1], least=1)
    if against is not None and metric is None:
        samples = replace(samples, labels=None)  # what suits is what looks at the original
    name, function = find_metric(metric, samples, classes, named=names_classes(loaded))
    how = (function, name, provider_of(provider), loaded.source)
    scorer = Scorer(base.original, samples, np.arange(len(samples)), *how, batch=batch_of(base))
    found = scorer.original if against is None else scorer(loaded.original)
    return {
        "model": loaded.source,
        "metric": name,
        "samples": len(samples),
        "score": found.value,
        "fed": feed.describe(samples, scorer.index),
        "warnings": [*_heeded(name, samples, alone=against is None), *feed.doubts(scorer, base.original)],
    }


def _heeded(metric: str, samples: sources.Dataset, *, alone: bool) -> list[str]:
    """A warning where a metric compares a model with itself, or looks at nothing that it is to be compared with; else none."""
    labelled = samples.labels is not None and samples.class_numbers is None
    compares = metric in feed.COMPARING or (metric in feed.EITHER and not labelled)
    if alone and compares:
        return [f"{metric} compares with an original, and without one a model with itself: add --against ORIGINAL"]
    if not alone and (metric in {"top1", "top5"} or (metric in feed.EITHER and labelled)):
        return [f"{metric} looks at labels, not at --against: leave out one of the two options, or take another metric"]
    return []


def _outputs(model: Model) -> str:
    """Names of the outputs and their shapes, the samples as N."""
    shapes = {o.name: ["N", *map(str, model.shapes.get(o.name, ())[1:])] for o in model.proto.graph.output}
    return ", ".join(f"'{name}' ({', '.join(shape)})" for name, shape in shapes.items())


def inspect(
    model: ModelSource, min_keep: float = 0.2, round_to: int | str | None = None, *, approximate: bool = False
) -> dict[str, Any]:
    """Return layers, groups, what is fixed and why, and the smallest reachable price."""
    round_to = parse_round_to(round_to) if isinstance(round_to, str) else round_to
    check_levels(min_keep, round_to)
    return summary(analyse(load(model), approximate=approximate), min_keep, round_to)


def deposit(result: Result, out: Path, folder: Path, command: str, *, timed: Settings | None = None) -> None:
    """Write the model, beside it the int8 one if there is one, and the run directory: plan, record and what else a report shows.

    Args:
        result: Of a run.
        out: Where the model goes.
        folder: The run directory, or the part of it that is this result's.
        command: What was typed.
        timed: How layers are timed before and after: provider and threads; None times none.

    """
    # What takes long goes before what is written: whoever stops it finds all of it or nothing.
    layers = {} if timed is None else {"layer_times": times_json(result.analysis, result.model, timed)}
    result.save(out)
    result.record["out"] = str(out)
    if result.save_int8(int8_beside(out)):
        result.record["int8"]["out"] = str(int8_beside(out))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(error, str(folder)) from error
    result.plan.save(folder / "plan.json", result.analysis)
    write_text(folder / "record.json", json_text(result.record))
    details = result.details | provenance(command, result.record, result.analysis.model.sha256, out) | layers
    write_text(folder / "details.json", json_text(details))


@contextmanager
def _team(settings: Settings, listener: Listener) -> Iterator[Cluster | None]:
    """Who evaluates plans: a cluster, or None for threads of this process; linear algebra has one thread meanwhile."""
    many = share(settings.ahead)
    # Many small solves: BLAS threads would only wait for each other, and one thread sums in one order on every machine.
    with threadpool_limits(limits=1, user_api="blas"), joined(settings.ray, many, listener.note) as team:
        yield team


def _number(value: Any) -> Any:
    """A setting, if it is no number that a run cannot have had."""
    if not isinstance(value, bool | str) and not 0 <= value < 2**31:
        raise ValueError(f"{value!r} is out of range")
    return value


def _settings_of(plan: Plan) -> Settings:
    """Settings of the run that wrote a plan."""
    known = plan.settings
    try:
        budget = known.get("budget", {"kind": "channels", "ratio": 1.0})
        return Settings(
            budget=Budget(str(budget["kind"]), float(budget["ratio"])),
            granularity=str(known.get("granularity", "channel")),
            pattern=None if known.get("pattern") is None else (int(known["pattern"][0]), int(known["pattern"][1])),
            round_to=parse_round_to(str(known.get("round_to", "auto"))),
            refit=bool(known.get("refit", True)),
            preset=None if known.get("preset") is None else str(known["preset"]),
            seed=int(known.get("seed", 0)),
            recover=bool(known.get("recover", False)),
            **{name: _number(kind(known[name])) for name, kind in REPLAYED.items() if known.get(name) is not None},
        )
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, OptionError) as error:
        told = f"{error.where}: {error.what}" if isinstance(error, OptionError) else repr(error)
        raise PlanError(
            f"its settings are damaged: {told}", where="plan", fix="give a plan written by onnx-amc"
        ) from error
