"""What each step is worth: from the smallest weights to the whole method, top-1 on `test` data after each.

    python benchmarks/ablation.py [--shared ../shared] [--only resnet20] [--episodes 60] [--seeds 0 1 2] [--out FILE.md]

No step trains. Everything is chosen and fitted on the `search` data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from quality import ROWS
from threadpoolctl import threadpool_limits

from onnx_amc import evaluate
from onnx_amc.builder import Builder
from onnx_amc.compression import Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.inspection import facts_of
from onnx_amc.listener import Listener
from onnx_amc.prune.surgery import cut
from onnx_amc.run.crew import Crew
from onnx_amc.rundir import Memo
from onnx_amc.search import baselines
from onnx_amc.search.journal import Journal
from onnx_amc.search.loop import AHEAD, REFINING, search, second_pass


def steps(run: Compression, episodes: int, seed: int) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Each step's name and the model it gives."""
    builder, space = run.builder, run.search.space
    even = baselines.uniform(space)
    plain = Builder(run.analysis, replace(run.settings, criterion="magnitude"), run.data, builder.calibration)
    yield "uniform, magnitude, no refit", cut(run.analysis, plain.kept(even))
    for criterion in ("random", "fpgm", "wanda"):
        other = Builder(run.analysis, replace(run.settings, criterion=criterion), run.data, builder.calibration)
        yield f"(the same by {criterion}, one-shot refit)", other.build(other.kept(even), correct=False)
    yield "(the same by magnitude, one-shot refit)", plain.build(plain.kept(even), correct=False)
    alone = Builder(run.analysis, replace(run.settings, weighted=False), run.data, builder.calibration)
    yield "elimination (OBS) instead, no refit", cut(run.analysis, alone.kept(even))
    yield "+ one-shot refit", alone.build(alone.kept(even), correct=False)
    yield "readers' errors weighted by their worth at the output", builder.build(builder.kept(even), correct=False)
    yield "+ statistics correction", builder.build(builder.kept(even))
    yield "sequential refit instead", builder.refined(builder.kept(even))
    local = [
        np.array([ranking.error(int(n)) for n in levels])
        for ranking, levels in zip(builder.rankings, space.levels, strict=True)
    ]
    yield "+ knapsack on each layer's own errors", builder.refined(builder.kept(baselines.knapsack(space, local)))
    with Crew(None, AHEAD) as crew:
        errors = builder.errors(space.levels, lambda _a, _b: None, Memo(), crew)
    table = baselines.knapsack(space, errors)
    yield "knapsack on errors at the output instead", builder.refined(builder.kept(table))
    first = Journal(run.search.evaluate)
    second, errors = second_pass(space, first, errors, first.ask(table, "knapsack"))
    yield "+ second pass, measured in the cut network", builder.refined(builder.kept(second.counts))
    for name, seeded, share in (
        ("DDPG, cold", False, 0.0),
        ("DDPG, seeded with the baselines", True, 0.0),
        ("DDPG, seeded, then around its best plan", True, REFINING),
    ):
        journal = Journal(run.search.evaluate, rule=first.rule)
        starts = [journal.ask(even, "uniform"), journal.ask(second.counts, "knapsack")] if seeded else []
        search(
            space,
            facts_of(run.analysis),
            journal,
            policy="ddpg",
            episodes=episodes,
            seed=seed,
            starts=starts,
            errors=errors,
            refining=share,
        )
        yield name, builder.refined(builder.kept(journal.best.counts))


def main() -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--only", default="resnet20", help="one of quality.py's rows, the first whose name has this")
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    name, samples, test, ratio = next(row for row in ROWS if args.only in row[0])
    model, data = args.shared / "models" / f"{name}.onnx", args.shared / "data"
    found: dict[str, list[float]] = {}
    with threadpool_limits(limits=1, user_api="blas"):
        for seed in args.seeds:
            settings = Settings(Budget("flops", ratio), seed=seed, recover=False)
            run = Compression(model, str(data / samples), settings, Listener())
            for step, result in steps(run, args.episodes, seed):
                found.setdefault(step, []).append(100 * evaluate(result, str(data / test))["score"])
                print(seed, step, f"{found[step][-1]:.2f}", file=sys.stderr, flush=True)
    lines = [f"| step ({name}, --flops {ratio:g}) | top-1 on test | gain |", "|---|---|---|"]
    before: float | None = None
    for step, scores in found.items():
        mean = float(np.mean(scores))
        aside = step.startswith("(") or before is None
        lines.append(
            f"| {step} | {mean:.1f} ± {np.std(scores):.1f} | {'' if aside else f'{mean - (before or 0):+.1f}'} |"
        )
        before = before if step.startswith("(") else mean
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
