"""From a space of plans to the one that is delivered: baselines, the search, the full refit of the best few."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import onnx

from onnx_amc.builder import Builder
from onnx_amc.config import Settings
from onnx_amc.errors import BudgetError
from onnx_amc.granularity import Units
from onnx_amc.listener import Listener
from onnx_amc.run.crew import Crew, Team
from onnx_amc.run.metrics import imported, shown
from onnx_amc.run.score import RACED, Scorer
from onnx_amc.run.session import RUNNING
from onnx_amc.rundir import Memo
from onnx_amc.search import baselines, local
from onnx_amc.search.journal import Journal, Later, Tried, key_of
from onnx_amc.search.loop import AGENTS, CLOSED, Luggage, explained, propose, refine, search, second_pass, warm
from onnx_amc.search.pace import Bracket, Known, pace_of
from onnx_amc.search.reward import REWARDS, Rule, users
from onnx_amc.search.space import Space, upward

FINAL_BASELINES = 2
"""Baselines that get the full refit at the end, uniform besides."""

Actual = Callable[[onnx.ModelProto], float]
"""What a finished model costs, in units of the space's price."""

OTHERS = 2
"""Plans that get the full refit where one costs more than was foretold, or much less."""

LARGER = 8
"""Plans that are tried where one takes much less time than was foretold."""

SLACK, UNUSED = 0.02, 0.06
"""Share of a budget of time that is left to the clock's noise, and share from which on it is worth using."""

PACES = 5
"""Plans that are timed before the search, at most."""

TRIES = 5
"""Times that a plan is replaced because its model costs more than was foretold."""


class Search:
    """Chooses a plan.

    Args:
        units: What is decided step by step.
        space: Levels and budget.
        builder: Makes models of plans.
        scorers: What plans are scored by, the finalists first and those of the search second; None where there is no data.
        memo: Remembers scores.
        settings: Of the run.
        listener: Hears how it goes.
        actual: Measures what a finished model costs, where the price is only an estimate of that.
        team: Who evaluates plans; None for threads of this process.

    Attributes:
        journal: Every plan tried.
        baselines: Plans in closed form, by name.
        finals: What the plans scored that were refitted in full.
        paces: The plans that were timed, by which the table of times was off.
        aimed: The space with the budget that finalists must meet.
        source: Who proposes plans, for the record.
        seconds: Of ordering the channels, the import of the agent's library included; of the search; of its part in which
            onnxruntime was running; of the full refit of the best few.

    """

    def __init__(
        self, units: Units, space: Space, builder: Builder, scorers: tuple[Scorer, Scorer] | None, memo: Memo,
        settings: Settings, listener: Listener, actual: Actual | None = None, team: Team | None = None,
    ) -> None:  # fmt: skip
        self.units, self.space, self.builder, self.memo = units, space, builder, memo
        self.scorers, self.settings, self.listener, self.actual = scorers, settings, listener, actual
        self.team = team
        self.journal = Journal(self.evaluate, self._tell, rule=self._rule())
        self.baselines: dict[str, Tried] = {}
        self.finals: list[Tried] = []
        self.errors: list[np.ndarray] = []
        self.paces, self.aimed, self.source = list[Known](), space, settings.policy
        self.ready: tuple[Tried, onnx.ModelProto] | None = None
        self._before = 0
        self.seconds = {"ranking": 0.0, "search": 0.0, "search_onnxruntime": 0.0, "refit": 0.0}

    def _rule(self) -> Rule:
        """How good a plan is, as the user wants to have it."""
        name, plain = self.settings.reward, Rule(scale=self.scorers[0].scale) if self.scorers else Rule()
        if name == "error":
            return plain
        if name in REWARDS:
            price = self.units.prices[name]
            return replace(plain, cost=lambda counts: float(price(counts[None])[0]))
        return replace(plain, own=partial(users, imported(name, "--reward"), name, self.units.shares))

    @cached_property
    def _race(self) -> str:
        """Whom this search's estimates are for."""
        s = self.settings
        return f"{s.policy} {s.budget.kind} {self.space.limit} {s.episodes} {s.reward}"

    def choose(self) -> np.ndarray:
        """Return the counts to deliver: the best plan seen, or the very one that was asked for."""
        if self.settings.budget.kind == "channels":
            return self.space.at(self.settings.budget.ratio)
        if not len(self.space):
            return self.space.full
        if self.scorers is None:
            return self.within(propose(self.space, self.settings.policy, []))
        began = time.perf_counter()
        self.listener.stage("ranking", None)
        self.builder.prepare()
        warm(self.settings.policy)
        before, start = RUNNING.seconds, time.perf_counter()
        with ExitStack() as stack:
            crew = self.team or stack.enter_context(Crew(self.settings.workers, self.settings.ahead))
            self.journal.begin = lambda counts: self.begun(counts, crew)
            self._search(crew)
            self.journal.begin = None
        middle = time.perf_counter()
        self.seconds["ranking"] += start - began
        self.seconds["search"] += middle - start
        self.seconds["search_onnxruntime"] += RUNNING.seconds - before
        chosen = self.within(self._final())
        self.seconds["refit"] += time.perf_counter() - middle
        return chosen

    def evaluate(self, counts: np.ndarray) -> Sequence[float]:
        """Score and loss of a plan, and those of parts of the samples, in turn."""
        kept = self.builder.kept(counts)
        return self.memo.get(_key("plan", counts), lambda: self._scorer(1).numbers(self.builder.drafted(kept)))

    def begun(self, counts: np.ndarray, crew: Team, *, race: bool = False) -> Later:
        """The same, begun by the crew and waited for later; in a race a hopeless plan is not scored on all samples."""
        kept, scorer = self.builder.kept(counts), self._scorer(1)
        build = partial(scorer.opened, partial(self.builder.drafted, kept))
        bars = self.journal.bars(self.settings.finalists, RACED) if race else {}
        # What is hopeless here may be welcome to another search that shares the memo.
        kind = f"plan raced by {self._race}" if bars else "plan"
        return self.memo.later(_key(kind, counts), lambda: crew.begin(build, partial(scorer.numbers, bars=bars)))

    def _scorer(self, which: int) -> Scorer:
        if self.scorers is None:
            raise RuntimeError("a run without data evaluates nothing")
        return self.scorers[which]

    def _tell(self, tried: Tried) -> None:
        done = len(self.journal.trials) - self._before
        ratio = self.space.ratio(tried.counts)
        best = self.journal.best.score
        self.listener.tried(tried)
        self.listener.advance(
            done, f"{tried.source}: {shown(tried.score)} at {ratio:.1%}, best by reward {shown(best)}"
        )

    def _stage(self, name: str, plans: int) -> None:
        """Say that a stage begins in which so many plans are tried."""
        self._before = len(self.journal.trials)
        self.listener.stage(name, plans)

    def _search(self, crew: Team) -> None:
        """Try the baselines, and what the policy thinks of."""
        settings, space = self.settings, self.space
        if settings.policy == "knapsack" or settings.policy not in CLOSED:
            self.listener.stage("sensitivity", len(space))
            self.errors = self.builder.errors(space.levels, lambda n, _: self.listener.advance(n), self.memo, crew)
            if settings.budget.kind == "latency":
                space = self.aimed = self._paced()
        closed = settings.policy in CLOSED
        names = list(dict.fromkeys(("uniform", settings.policy))) if closed else CLOSED
        self._stage("baselines", len(names))
        asked = {name: self.journal.put(propose(space, name, self.errors), name) for name in names}
        self.baselines |= {name: self.journal.result(one) for name, one in asked.items()}
        if self.errors:
            self._stage("second pass", len(space) + 1)
            self.baselines["knapsack"], self.errors = second_pass(
                space, self.journal, self.errors, self.baselines["knapsack"]
            )
        if closed:
            return
        self.journal.begin = lambda counts: self.begun(counts, crew, race=True)
        self._stage(f"search ({settings.policy})", settings.episodes)
        search(
            space,
            self.units.facts,
            self.journal,
            policy=settings.policy,
            episodes=settings.episodes,
            seed=settings.seed,
            starts=list(self.baselines.values()) if settings.policy in AGENTS else [],
            errors=self.errors,
            luggage=Luggage(settings.agent, settings.save_agent, settings.tensorboard),
            ahead=settings.ahead,
            pace=self._moved,
        )

    def _paced(self) -> Space:
        """The space, its budget moved to where the knapsack's plan really takes what is allowed."""
        goal, limit = (1 - SLACK) * self.space.limit, self.space.limit
        bracket = Bracket(goal)
        for _ in range(PACES):
            counts = propose(replace(self.space, limit=limit), "knapsack", self.errors)
            price, spent = self.space.price(counts), self._timed(counts)
            if abs(spent / goal - 1) <= SLACK:
                return replace(self.space, limit=price)
            if spent > goal:
                bracket.beyond = price, spent
            else:
                bracket.fits = price, spent
            before, limit = limit, max(bracket.wanted(), self.space.price(self.space.smallest))
            if limit == before:
                break
        return replace(self.space, limit=int(bracket.fits[0]) or limit)

    def _moved(self, space: Space, counts: np.ndarray) -> Space:
        """The space, its budget moved to what plans like this one, the best that was found, may cost by the table."""
        if self.settings.budget.kind != "latency":
            return space
        self.paces = []
        pace = self._timed(counts) / self.space.price(counts)
        limit = max(int((1 - SLACK) * self.space.limit / pace), self.space.price(self.space.smallest))
        self.aimed = replace(self.space, limit=limit)
        return self.aimed

    def _timed(self, counts: np.ndarray) -> float:
        """What a plan's model takes: apart from what is measured of it if it is delivered, which this may foretell."""
        spent = self.spent(counts, lambda: self.builder.unrefitted(counts), "pace")
        self.paces.append((None, self.space.price(counts), spent))
        return spent

    def foretold(self, counts: np.ndarray) -> float:
        """The share of the original's time that a plan is to take, by the table and by what other plans took."""
        share = self.units.prices["latency"](counts[None])[0] / self.units.wholes["latency"]
        return pace_of(self.space.price(counts), key_of(counts), self.paces) * float(share)

    def _final(self) -> np.ndarray:
        """Refit the best few plans as they would be delivered, those of the baselines too, and return the one that is best then.

        A policy in closed form has said which one that is.
        """
        if self.settings.policy in CLOSED:
            self._refine(list(self.baselines.values()))
            return self.baselines[self.settings.policy].counts
        first: dict[bytes, Tried] = {}
        for tried in self.baselines.values():
            first.setdefault(tried.key, tried)  # whoever proposed it first has, as the record says of what is delivered
        plain = sorted(first.values(), key=lambda t: (-t.reward, t.source != "uniform"))
        keys = {t.key for t in plain}
        others = [t for t in self.journal.distinct if t.key not in keys and self.aimed.feasible(t.counts)]
        others.sort(key=lambda t: t.rank, reverse=True)
        few = [t for i, t in enumerate(plain) if i < FINAL_BASELINES or t.source == "uniform"]
        chosen = [*others[: self.settings.finalists], *few]
        self._refine(chosen)
        return max(self.finals, key=lambda t: t.reward).counts

    def _refine(self, several: Sequence[Tried]) -> None:
        """Build plans and score them as they would be delivered; the best model of them is kept."""
        self.listener.stage("finals", len(several))
        built: dict[bytes, onnx.ModelProto] = {}

        def build(tried: Tried) -> onnx.ModelProto:
            built[tried.key] = self.builder.refined(self.builder.kept(tried.counts))
            return built[tried.key]

        with Crew(self.settings.workers, self.builder.abreast) as crew:

            def begin(tried: Tried) -> Callable[[], list[float]]:
                scorer = self._scorer(0)
                return crew.begin(partial(scorer.opened, partial(build, tried)), scorer.numbers)

            each = {t.key: t for t in several}  # baselines may propose the same
            waits = {key: self.memo.later(_key("final", t.counts), partial(begin, t)) for key, t in each.items()}
            for done, tried in enumerate(several, start=1):
                value, loss, *parts = waits[tried.key]()
                found = replace(tried, score=value, loss=loss, parts=tuple(parts))
                self.finals.append(found)
                model = built.pop(tried.key, None)
                if model is not None and (self.ready is None or found.reward > self.ready[0].reward):
                    self.ready = found, model
                self.listener.advance(done, f"{found.source}: {shown(tried.score)}, refitted {shown(found.score)}")

    def ready_for(self, counts: np.ndarray) -> onnx.ModelProto | None:
        """The refitted model of these counts, if the finals have just built it."""
        return self.ready[1] if self.ready is not None and self.ready[0].key == key_of(counts) else None

    def model_of(self, counts: np.ndarray) -> onnx.ModelProto:
        """The refitted model of a plan."""
        return self.ready_for(counts) or self.builder.refined(self.builder.kept(counts))

    def within(self, counts: np.ndarray, *, fill: bool = True) -> np.ndarray:
        """These counts, or others whose finished model costs no more than was asked for, nor leaves much of the time unused.

        Args:
            counts: int (groups,).
            fill: Whether time that is left unused is a reason to look for others.

        Raises:
            BudgetError: After several tries the model still costs too much.

        """
        if self.actual is None:
            return counts
        whole, timed = self.space.limit, self.settings.budget.kind == "latency"
        bracket = Bracket(whole)
        fits, beyond = None, list[float]()
        for attempt in range(1, TRIES + 1):
            price, spent = self.space.price(counts), self.spent(counts, lambda c=counts: self.finished(c))  # type: ignore[misc]
            if timed:
                self.paces.append((key_of(counts), price, spent))
            if spent > whole:
                beyond.append(spent)
                bracket.beyond = price, spent
            else:
                fits, bracket = counts, Bracket((1 - SLACK) * whole, (price, spent), bracket.beyond)
                if not (timed and fill) or spent >= (1 - UNUSED) * whole or attempt == TRIES:
                    break
            # What keeps all is the file as it came: that it is too large says nothing of those that are written anew.
            as_it_came = not timed and np.array_equal(counts, self.space.full)
            space = replace(self.space, limit=price - 1 if as_it_came else bracket.wanted())
            other = self._best_in(space, counts) if space.feasible(space.smallest) else space.smallest
            if any(np.array_equal(other, known) for known in (counts, fits) if known is not None):
                break
            counts = other
        if fits is None:
            raise self._beyond(beyond)
        return fits

    def _beyond(self, measured: Sequence[float]) -> BudgetError:
        """What to say where no plan's model was measured to be small enough."""
        budget, whole = self.settings.budget, self.units.wholes[self.settings.budget.kind]
        first, least = (upward(spent / whole) for spent in (measured[0], min(measured)))
        return BudgetError(
            f"{budget.ratio:.4g} of the {self.space.unit} was asked for, but the best plan's model costs {first:.4f} as measured, "
            f"{measured[0] / max(self.space.limit, 1):.4f} of what is allowed; the smallest measured is {least:.4f}",
            where=budget.option,
            fix=(f"ask for {least:.4f} or more, or " if least <= 1 else "") + "lower --min-keep, or --keep what grows",
        )

    def spent(self, counts: np.ndarray, build: Callable[[], onnx.ModelProto], what: str = "cost") -> float:
        """What the model of a plan costs, measured once."""
        if self.actual is None:
            raise RuntimeError("this budget is exact")
        actual = self.actual
        # Of time the share is remembered: what all of it is may be measured anew by a run that goes on.
        unit = self.space.price(self.space.full) if self.settings.budget.kind == "latency" else 1
        return self.memo.get(_key(what, counts), lambda: [actual(build()) / unit])[0] * unit

    def taken(self, counts: np.ndarray) -> float | None:
        """The share of the original's time that a plan's model was measured to take; None where it was not."""
        known = self.memo.known(_key("cost", counts))
        return None if known is None else known[0]

    def finished(self, counts: np.ndarray) -> onnx.ModelProto:
        """The model of a plan as it would be delivered; what is ready stays as it is."""
        return self.builder.deliverable(self.builder.kept(counts), deepcopy(self.ready_for(counts)))

    def _best_in(self, space: Space, counts: np.ndarray) -> np.ndarray:
        """The best plan within another budget than these counts were found in: of those tried, and of some more near by."""
        policy = self.settings.policy
        if policy in CLOSED:
            return propose(space, policy, self.errors)
        if space.feasible(counts):
            self._stage("larger plans", LARGER)
            refine(space, self.journal, self.errors, self.source, LARGER, np.random.default_rng(self.settings.seed))
        else:
            self._stage("smaller plans", 3 if self.errors else 1)
            self.journal.ask(local.below(space, [], counts), self.source)
            if self.errors:
                self.journal.ask(baselines.knapsack(space, explained(space, self.journal, self.errors)), "knapsack")
                self.journal.ask(local.below(space, self.errors, counts), self.source)
        fitting = [t for t in self.journal.distinct if space.feasible(t.counts)]
        self.ready = None
        self._refine(sorted(fitting, key=lambda t: t.rank, reverse=True)[:OTHERS])
        return max((t for t in self.finals if space.feasible(t.counts)), key=lambda t: t.reward).counts


def _key(kind: str, counts: np.ndarray) -> str:
    return f"{kind} " + " ".join(map(str, counts.tolist()))
