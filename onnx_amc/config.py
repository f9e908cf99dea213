"""Every knob, with its unit and its source; frozen and validated."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

from onnx_amc.errors import OptionError
from onnx_amc.prune.criteria import CRITERIA
from onnx_amc.run.blocks import parse_round_to
from onnx_amc.run.metrics import METRICS
from onnx_amc.run.presets import PRESETS
from onnx_amc.run.providers import provider_of
from onnx_amc.search.loop import AGENTS, AHEAD, POLICIES
from onnx_amc.search.reward import REWARDS

REDUCED = ("flops", "params", "size", "latency")
"""What a network may be made small in."""

REPLAYED: dict[str, type] = {
    "criterion": str, "sequential": bool, "calibration": int, "judged": int, "rows": int, "ridge": float, "sequence": int,
    "correction": int, "memory": float,
}  # fmt: skip
"""Settings, and their types, that the weights of what is delivered depend on and that a plan tells only where they are unusual."""

SWITCHES = (
    "approximate", "refit", "weighted", "sequential", "recover", "recover_labels", "recover_flip", "int8",
)  # fmt: skip
"""Settings that are true or false; whether to recover may be left open."""

LEAST_OF = {
    "episodes": 1, "seed": 0, "threads": 0, "workers": 1, "ahead": 0, "recover_epochs": 1, "calibration": 1, "judged": 1, "rows": 1,
    "correction": 1, "sequence": 1, "draft": 1, "draft_rows": 1, "trial": 1, "finalists": 1, "probe": 1,
}  # fmt: skip
"""Settings that are whole numbers, and the least that each may be."""

MOST = dict.fromkeys(("threads", "workers"), max(256, os.cpu_count() or 1))
"""The most that some may be: far more than there are cores do nothing but wait for each other, so that a run seems to hang."""

TRAINING: dict[str, Any] = {
    "recover_epochs": None, "recover_minutes": None, "recover_labels": False, "recover_flip": False
}  # fmt: skip
"""Settings of a training, and what they are where nobody has asked for anything."""

LEAST_MEMORY = 0.5
"""GB below which a run makes no sense: the libraries take half of that."""

LEAST = {"channel": 0.2, "weight": 0.03}
"""Smallest fraction of a group's channels, or of a layer's weights, that is kept."""


Given = TypeVar("Given")


@dataclass(frozen=True)
class Budget:
    """What a plan may cost.

    Args:
        kind: `flops` (multiply-accumulates), `params` (elements of float initializers; of single weights, those that are not
            zero), `size` (bytes of the file), `latency` (measured, batch 1), or `channels` (no budget: this fraction of every
            group's channels).
        ratio: The fraction that is left, in (0, 1].

    """

    kind: str
    ratio: float

    @property
    def option(self) -> str:
        """How it is written on the command line."""
        return f"--{self.kind} {self.ratio:g}"


@dataclass(frozen=True)
class Settings:
    """A run's settings.

    Args:
        budget: What the result may cost.
        max_drop: Points of the score, in hundredths, that may be lost; then the smallest network is wanted.
        granularity: Whether whole channels go, or single weights.
        pattern: N and M: of each M weights of an output that follow one another along the inputs N stay; None for any.
        policy: Who proposes plans.
        episodes: Evaluations that a searching policy may spend (AMC: 400; 100 suffice with a start from the knapsack).
        seed: Of every random draw.
        round_to: Multiple of the kept channels; None for what onnxruntime likes (see `search.space.multiple_of`).
        min_keep: Smallest fraction of a group that is kept (AMC section 4: 0.2), or of a layer's weights; None for what is usual.
        keep: Patterns of nodes, tensors or operator types to leave as they are.
        approximate: Whether channels under a norm or a reduction may go too, where cutting is not quite masking.
        refit: Whether readers are refitted and statistics corrected.
        criterion: In which order the channels of a group go: `obs` (elimination), or an alternative of `prune.criteria`.
        weighted: Whether elimination weighs each reader's error by what it is worth at the network's output.
        sequential: Whether what is delivered is refitted layer by layer on its own activations.
        preset: How images are normalised and brought to size, see `run.presets`; None for as the data says.
        metric: Name of the score; None for what suits the data.
        provider: Execution provider of onnxruntime, by its name or a short one (`cuda`); kept as onnxruntime's name.
        threads: Of a session whose latency is measured; 0 takes all cores.
        workers: Plans that are evaluated at a time; None for one per core. What is found does not depend on it.
        ray: Address of a Ray cluster that evaluates the plans; None for this machine. What is found does not depend on it.
        memory: GB that the run may use: moments beyond a quarter go to a temporary file, activations beyond a quarter are held of
            fewer samples; None for what there is.
        ahead: Evaluations under way while the next plan is chosen; what is found depends on that.
        calibration: Samples that moments are taken from, at most.
        reward: What the search makes of a score: `error` (AMC's R_err), `flops`, `params`, `size` or `latency` (-Error log(cost)),
            or `module:function`, called with score, loss and a mapping of what is left by kind of budget.
        judged: Samples that plans are scored on, at most; none of them is a calibration sample.
        agent: A trained agent to begin with, as `save_agent` has written it; None for an untrained one.
        save_agent: Where the agent goes when the search is done; None for nowhere.
        latency_command: Program that times a model on a device elsewhere: it gets a path and prints milliseconds; None times here.
        cache: Folder in which measured latencies are kept; None for the user's cache folder.
        tensorboard: Folder that the agent logs its training to; None for none.
        rows: Rows of each layer's least squares (AMC: about 30,000).
        ridge: Pull of the refit towards the original weights, relative to the inputs' mean variance.
        correction: Samples of the statistics correction, at most.
        sequence: Calibration samples that the sequential refit runs on, at most.
        draft: Calibration samples of the refit of plans that the search tries (how few will do: `benchmarks/proxy.md`).
        draft_rows: Rows of each layer's least squares there.
        trial: Reward samples that the search scores its plans on; finalists are scored on all of them.
        finalists: Plans that are refitted layer by layer before the best of them is delivered.
        recover: Whether what is delivered is trained towards the original's outputs; None for where there is a refit and enough
            real samples for it.
        recover_epochs: Passes over the samples, at most; None for what suits their number.
        recover_minutes: Wall time of the training, at most; None for no limit.
        recover_labels: Whether labels count in the training, beside the original's outputs.
        recover_flip: Whether images may be mirrored in the training.
        int8: Whether what is delivered is handed to onnxruntime's static quantisation as well.
        probe: Calibration samples on which each group's effect on the output is measured, at most.

    """

    budget: Budget
    max_drop: float | None = None
    granularity: str = "channel"
    pattern: tuple[int, int] | None = None
    policy: str = "ddpg"
    episodes: int = 100
    seed: int = 0
    round_to: int | None = None
    min_keep: float | None = None
    keep: tuple[str, ...] = ()
    approximate: bool = False
    refit: bool = True
    criterion: str = "obs"
    weighted: bool = True
    sequential: bool = True
    preset: str | None = None
    metric: str | None = None
    provider: str = "CPUExecutionProvider"
    threads: int = 0
    workers: int | None = None
    ray: str | None = None
    memory: float | None = None
    ahead: int = AHEAD
    calibration: int = 2_000
    reward: str = "error"
    judged: int = 3_000
    agent: str | None = None
    save_agent: str | None = None
    tensorboard: str | None = None
    latency_command: str | None = None
    cache: str | None = None
    rows: int = 40_000
    ridge: float = 1e-4
    correction: int = 512
    sequence: int = 2_000
    draft: int = 100
    draft_rows: int = 1_000
    trial: int = 750
    finalists: int = 3
    recover: bool | None = None
    recover_epochs: int | None = None
    recover_minutes: float | None = None
    recover_labels: bool = False
    recover_flip: bool = False
    int8: bool = False
    probe: int = 256

    def __post_init__(self) -> None:
        self._normalise()
        self._check_names()
        if self.budget.kind == "channels":  # that is the plan: nobody proposes another
            if self.policy not in {Settings.policy, "uniform"}:
                what = f"--channels says what the plan is, {self.policy} proposes none"
                raise OptionError(what, where="--policy", fix="leave it out, or give a budget")
            object.__setattr__(self, "policy", "uniform")
        _fraction(self.budget.ratio, f"--{self.budget.kind}")
        check_levels(self.least, self.round_to)
        self._check_combinations()
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name, least in LEAST_OF.items():
            value, where = getattr(self, name), f"--{name.replace('_', '-')}"
            if value is None and name in {"workers", "recover_epochs"}:
                continue
            most = MOST.get(name, 2**32 - 1)
            if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
                what = f"{value!r} is no whole number from {least} to {most}"
                raise OptionError(what, where=where, fix="give one of these")
            object.__setattr__(self, name, int(value))
        for name in SWITCHES:
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "recover" and value is None):
                what, where = f"{value!r} is neither True nor False", f"--{name.replace('_', '-')}"
                raise OptionError(what, where=where, fix="give one of them")
        if not 0 < _real(self.ridge) < math.inf:
            raise OptionError(f"{self.ridge!r} is no pull", where="--ridge", fix="give more than 0, e.g. 1e-4")
        if self.recover_minutes is not None and not 0 < _real(self.recover_minutes) < math.inf:
            raise OptionError(f"{self.recover_minutes} is no time", where="--recover-minutes", fix="give more than 0")
        if self.memory is not None and not LEAST_MEMORY <= _real(self.memory) < math.inf:
            what = f"{self.memory} GB are too few"
            raise OptionError(what, where="--memory", fix=f"give {LEAST_MEMORY} or more, or leave it out")
        if self.max_drop is not None and not 0 <= _real(self.max_drop) < 100:
            what = f"{self.max_drop} is no number of points from 0 to 100"
            raise OptionError(what, where="--max-drop", fix="give the points of the score that may be lost, e.g. 1")

    def _normalise(self) -> None:
        """Take what the command line and the plan write as text."""
        object.__setattr__(self, "provider", provider_of(self.provider))
        if isinstance(self.round_to, str):
            object.__setattr__(self, "round_to", parse_round_to(self.round_to))
        if isinstance(self.pattern, str):
            object.__setattr__(self, "pattern", parse_pattern(self.pattern))
        if isinstance(self.keep, str):
            object.__setattr__(self, "keep", (self.keep,))

    def _check_names(self) -> None:
        for name, known in (
            ("policy", POLICIES), ("criterion", CRITERIA), ("granularity", tuple(LEAST)), ("reward", REWARDS),
            ("preset", (None, *PRESETS)), ("metric", (None, *METRICS)),
        ):  # fmt: skip
            value = getattr(self, name)
            own = ", or module:function" if name in {"reward", "metric"} else ""
            if value not in known and not (own and isinstance(value, str) and ":" in value):
                fix = f"choose {', '.join(filter(None, known))}{own}"
                raise OptionError(f"unknown {name} '{value}'", where=f"--{name}", fix=fix)

    def _check_combinations(self) -> None:
        if asked := self.asked_of_training:
            why = "--no-recover trains nothing" if self.recover is False else None
            if self.recover is None and not self.refit:
                why = "--no-refit alone trains nothing"
            if why is not None:
                raise OptionError(why, where=", ".join(asked), fix="add --recover in its place, or leave these out")
        if self.pattern is not None and (self.granularity != "weight" or not 0 < self.pattern[0] < self.pattern[1]):
            what = f"{self.pattern[0]}:{self.pattern[1]} with --granularity {self.granularity}"
            raise OptionError(what, where="--pattern", fix="give N:M with 0 < N < M, and --granularity weight")
        if self.budget.kind == "channels" and self.least > self.budget.ratio:
            what = f"{self.budget.ratio} of the channels are fewer than --min-keep {self.min_keep}"
            raise OptionError(what, where="--channels", fix="lower --min-keep, or leave it out")
        if self.granularity == "weight":
            self._check_weights()
        for name in ("agent", "save_agent", "tensorboard"):
            if getattr(self, name) is not None and self.policy not in AGENTS:
                what, fix = f"the policy {self.policy} has no agent", f"choose --policy {', '.join(AGENTS)}"
                if self.budget.kind == "channels":
                    what, fix = "--channels searches nothing", "give a budget, such as --flops"
                raise OptionError(what, where=f"--{name.replace('_', '-')}", fix=fix)

    def _check_weights(self) -> None:
        """Refuse what only channels know, and a least share beside a pattern, which says how many weights stay."""
        for asked, what, where, fix in (
            (self.criterion == "fpgm", "fpgm compares whole filters", "--criterion", "take obs, wanda or magnitude"),
            (self.reward in {"flops", "latency"}, f"zeros save no {self.reward}", "--reward", "choose error, params or size"),
            (self.round_to not in {None, 1}, "single weights are not rounded", "--round-to", "leave it out, or give --pattern N:M"),
            (self.approximate, "single weights cut no stream", "--approximate", "leave it out, or take --granularity channel"),
            (self.pattern and self.min_keep, "--pattern says how many weights stay", "--min-keep", "leave out one of the two"),
        ):  # fmt: skip
            if asked:
                raise OptionError(what, where=where, fix=fix)

    @property
    def asked_of_training(self) -> list[str]:
        """Options that say how to train, as far as they were given."""
        return [f"--{k.replace('_', '-')}" for k, usual in TRAINING.items() if getattr(self, k) != usual]

    @property
    def least(self) -> float:
        """Smallest fraction of a group's channels, or of a layer's weights, that is kept."""
        if self.min_keep is not None:
            return self.min_keep
        usual = LEAST[self.granularity]
        return min(usual, self.budget.ratio) if self.budget.kind == "channels" else usual

    @property
    def timed(self) -> bool:
        """Whether plans need a price in time."""
        return self.budget.kind == "latency" or self.reward == "latency"

    @property
    def blind(self) -> bool:
        """Whether the run needs no data at all."""
        return (
            not self.refit
            and not self.recover
            and not self.int8
            and self.max_drop is None
            and (self.policy in {"uniform", "shallow", "deep"} or self.budget.kind == "channels")
        )


def choose_budget(**given: float | None) -> Budget:
    """Return the one budget that was given.

    Raises:
        OptionError: None, or several.

    """
    kind, ratio = _only(given)
    return Budget(kind, _fraction(ratio, f"--{kind}"))


def choose_budgets(**given: str | None) -> list[Budget]:
    """Return the budgets of one kind, largest first, of which there may be several: `0.75,0.5,0.33`.

    Raises:
        OptionError: No kind, several, or something that is no fraction.

    """
    kind, text = _only(given)
    try:
        ratios = {float(part) for part in text.split(",")}
    except ValueError as error:
        raise OptionError(f"'{text}' is no number", where=f"--{kind}", fix="give 0.5, or several: 0.75,0.5") from error
    if len({f"{ratio:g}" for ratio in ratios}) < len(ratios):
        what = f"two of {text} are alike to six digits"
        raise OptionError(what, where=f"--{kind}", fix="give each a name of its own")
    return [Budget(kind, _fraction(ratio, f"--{kind}")) for ratio in sorted(ratios, reverse=True)]


def within_drop(given: Mapping[str, Given | None], whole: Given, max_drop: float | None, reduce: str) -> dict[str, Any]:
    """The budgets that were given; where a drop was given in place of one, all of what it is to make small.

    Raises:
        OptionError: There is nothing like that to make small, or no drop to do it within.

    """
    if reduce not in REDUCED:
        what = f"'{reduce}' is nothing that can be made small"
        raise OptionError(what, where="--reduce", fix=f"choose {', '.join(REDUCED)}")
    if max_drop is not None:
        return {**given, "max_drop": max_drop} if any(v is not None for v in given.values()) else {reduce: whole}
    if reduce != REDUCED[0]:
        what, fix = f"there is no --max-drop to reduce {reduce} within", f"give --{reduce} R, or --max-drop"
        raise OptionError(what, where="--reduce", fix=fix)
    return dict(given)


def _only(given: Mapping[str, Given | None]) -> tuple[str, Given]:
    """The one kind of budget that was given, and what was said of it."""
    named = {k: v for k, v in given.items() if v is not None}
    options = ", ".join(f"--{k.replace('_', '-')}" for k in named)
    if len(named) > 1:
        raise OptionError(f"{len(named)} budgets at once: {options}", where="options", fix="give exactly one")
    if not named:
        raise OptionError("no budget", where="options", fix="say how much is to be left, for example --flops 0.5")
    kind, value = next(iter(named.items()))
    return kind, value


def parse_pattern(text: str) -> tuple[int, int]:
    """`N:M` as two whole numbers."""
    keep, _, of = text.partition(":")
    if not (keep.isdecimal() and of.isdecimal()):
        raise OptionError(f"'{text}' is not N:M", where="--pattern", fix="give for example 2:4")
    return int(keep), int(of)


def check_levels(min_keep: float, round_to: int | None) -> None:
    """Refuse levels that no group could have.

    Raises:
        OptionError: A least share outside (0, 1], or a multiple below 1.

    """
    _fraction(min_keep, "--min-keep")
    if round_to is not None and (isinstance(round_to, bool) or not isinstance(round_to, Integral) or round_to < 1):
        what = f"{round_to!r} is no whole number from 1"
        raise OptionError(what, where="--round-to", fix="give auto, or 1 to round nothing")


def _real(value: object) -> float:
    """The number that it is; not a number where it is none."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def _fraction(value: float, where: str) -> float:
    if not 0 < _real(value) <= 1:
        fix = "give the fraction that is to be left, e.g. 0.5"
        raise OptionError(f"{value} is not a fraction above 0 and at most 1", where=where, fix=fix)
    return float(value)
