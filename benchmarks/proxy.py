"""What should the search look at? How well each candidate reward predicts a plan's accuracy on samples that it never saw.

    python benchmarks/proxy.py [--shared ../shared] [--only resnet20] [--plans 30] [--out FILE.md]

The `search` data falls into three parts: calibration, reward, and a third that neither sees. Plans near the knapsack's, and some
random ones, are built in the ways a search could afford, and as they would be delivered; the table gives Spearman's correlation
of each candidate, computed on the reward part, with the top-1 of the delivered model on the third part.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from quality import ROWS
from scipy.special import log_softmax, softmax
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

from onnx_amc.builder import FIRM, Kept
from onnx_amc.compression import Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.listener import Listener
from onnx_amc.run.crew import Crew
from onnx_amc.run.metrics import top1
from onnx_amc.run.score import Scorer
from onnx_amc.run.sequential import Effort
from onnx_amc.rundir import Memo
from onnx_amc.search import baselines, local
from onnx_amc.search.shaping import SHAPING

EFFORTS = (
    Effort(50, 1_000, rounds=1, ridges=FIRM),
    Effort(100, 1_000, rounds=1, ridges=FIRM),  # what the search takes
    Effort(100, 4_000, rounds=1),
    Effort(200, 8_000, rounds=1),
)

SIZES = (250, 500, 750, 1_500)


def candidates(scorer: Scorer, outputs: np.ndarray) -> Iterator[tuple[str, float]]:
    """Each reward on the first so many samples, and its name."""
    for size in [s for s in SIZES if s <= len(outputs)]:
        z, z0 = outputs[:size], scorer.reference[0][:size]
        hits = float((z.argmax(1) == np.asarray(scorer.labels)[:size]).mean())
        loss = float(np.square(z - z0).sum() / np.square(z0 - z0.mean(0)).sum())
        yield f"top-1, {size} samples", hits
        yield f"agreement, {size} samples", float((z.argmax(1) == z0.argmax(1)).mean())
        yield f"-KL, {size} samples", float((softmax(z0, 1) * (log_softmax(z, 1) - log_softmax(z0, 1))).sum(1).mean())
        yield f"-output error, {size} samples", -loss
        yield f"top-1 - {SHAPING:g} x output error, {size} samples", hits - SHAPING * loss


def main() -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--only", default="resnet20", help="one of quality.py's rows, the first whose name has this")
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    name, samples, _, ratio = next(row for row in ROWS if args.only in row[0])
    settings = Settings(Budget("flops", ratio), judged=SIZES[-1], recover=False)
    with threadpool_limits(limits=1, user_api="blas"):
        run = Compression(args.shared / "models" / f"{name}.onnx", args.shared / "data" / samples, settings, Listener())
        builder, space, data = run.builder, run.search.space, run.data
        if data is None or run.scorer is None or builder.sequential is None:
            raise SystemExit("no data")
        seen = np.concatenate(data.split(0, settings.calibration, settings.judged))
        third = Scorer(run.model.original, data, np.setdiff1d(np.arange(len(data)), seen), top1, "top1")
        rng = np.random.default_rng(0)
        with Crew(None, 1) as crew:
            best = baselines.knapsack(space, builder.errors(space.levels, lambda _a, _b: None, Memo(), crew))
        plans = [best, baselines.uniform(space), *(baselines.random(space, rng) for _ in range(args.plans // 6))]
        while len(plans) < args.plans:
            start = best
            for _ in range(int(rng.integers(1, 4))):
                start = local.neighbour(space, start, rng)
            plans.append(start)
        ways: list[tuple[str, Callable[[Kept], onnx.ModelProto]]] = [("one-shot", builder.build)]
        for effort in EFFORTS:
            draft = builder.sequential.lighter(effort)
            what = f"sequential, {effort.samples} samples, {effort.rows:,} rows, ridges {effort.ridges}"
            ways.append((what, partial(builder.refined_by, draft)))
        table: dict[str, list[float]] = {}
        truth: list[float] = []
        for plan in plans:
            kept = builder.kept(plan)
            for way, build in ways:
                began = time.perf_counter()
                model = build(kept)
                table.setdefault(f"{way} | seconds to build", []).append(time.perf_counter() - began)
                for reward, value in candidates(run.scorer, run.scorer.outputs(model)[0]):
                    table.setdefault(f"{way} | {reward}", []).append(value)
            truth.append(third(builder.refined(kept)).value)
            print(len(truth), f"{truth[-1]:.4f}", file=sys.stderr, flush=True)
    lines = ["| refit | candidate | Spearman, all plans | Spearman, plans near the knapsack's |", "|---|---|---|---|"]
    near = [0, *range(2 + args.plans // 6, len(plans))]
    for row, values in table.items():
        if row.endswith("build"):
            lines.append(f"| {row} | {np.median(values):.2f} | |")
            continue
        whole, part = (spearmanr(np.array(values)[i], np.array(truth)[i]).statistic for i in (range(len(truth)), near))
        lines.append(f"| {row} | {whole:.2f} | {part:.2f} |")
    text = "\n".join(lines)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
