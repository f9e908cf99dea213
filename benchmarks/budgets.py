"""Budgets other than MACs, on real networks: latency against MACs at equal latency, and an accuracy that is guaranteed.

    python benchmarks/budgets.py [--shared ../shared] [--rows latency drop ...] [--only resnet56] [--seeds 0] [--threads 1]
                                 [--out FILE.md]

`latency`: `--latency 0.6`, then searches within MACs until one is as fast; each is timed in turn with the original, on
all cores, or by `--threads 1` on one, which is less disturbed by what else the machine does.
`drop`: `--max-drop 1` without training, and the MACs at which uniform plans with the same refit lose as much on `test`.
`drop, trained`: the same with recovery. `drop, train.zip`: that on the 45,000 images of train.zip.
Searched on `search` data unless said otherwise, reported on `test`. Runs that are in the log are not repeated, but for those marked
`rounding`, of a version that rounded to blocks of 8 channels on every machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from paper import unpacked
from threadpoolctl import threadpool_limits

from onnx_amc import evaluate
from onnx_amc.compression import Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.delivery import Result, one_feed
from onnx_amc.guarantee import Guarantee
from onnx_amc.listener import Listener
from onnx_amc.run.latency import measure

NETWORKS = {
    "resnet56_cifar10": ("cifar10/search.npz", "cifar10/test.npz"),
    "mobilenet_v1_0.75_imagenet": ("imagenette/search", "imagenette/test"),
}
ARCHIVE = "drop, train.zip"
ROWS = ("latency", "drop", "drop, trained", ARCHIVE)
TRIES = 6
"""Searches within MACs, at most, until one is as fast as the one within time."""


class Notes(Listener):
    """Says what a long run finds on its way."""

    def note(self, text: str) -> None:
        """On stderr, which is not what the table goes to."""
        print(text, file=sys.stderr, flush=True)


def point(run: Compression, test: str) -> dict[str, Any]:
    """What a run delivers is worth: measured latency, MACs and top-1 on `test`."""
    return worth(run.deliver(run.choose()), test, run.settings.threads)


def worth(result: Result, test: str, threads: int) -> dict[str, Any]:
    """What a delivered model is worth."""
    record, model = result.record, result.analysis.model
    times = measure([model.original, result.model], one_feed(model), seconds=10.0, threads=threads)
    return {
        "latency": times[1].ratio, "macs": record["compressed"]["macs"] / record["original"]["macs"],
        "top1": evaluate(result.model, test)["score"], "foretold": record.get("latency_table", {}).get("ratio"),
    }  # fmt: skip


def in_time(first: Compression, test: str, episodes: int) -> dict[str, Any]:
    """The search within time, and searches within MACs down to the same time."""
    run = first.again(episodes=episodes)
    found = point(run, test)
    others, ratio = list[dict[str, Any]](), found["macs"]
    while len(others) < TRIES and (not others or others[-1]["latency"] > found["latency"]):
        other = first.again(budget=Budget("flops", min(ratio, 1.0)), episodes=episodes)
        others.append(point(other, test))
        ratio = others[-1]["macs"] * min(0.97, found["latency"] / others[-1]["latency"])
    error = None if first.table is None else first.table.error
    return {"delivered": found, "within macs": others, "table_error": error}


def guaranteed(first: Compression, test: str, *, trained: bool) -> dict[str, Any]:
    """The smallest network within a point, and uniform ones of many sizes."""
    result = Guarantee(first, 1.0).result()
    found = worth(result, test, first.settings.threads) | {"max_drop": result.record["max_drop"]}
    others = list[dict[str, Any]]()
    for ratio in () if trained else np.arange(0.95, 0.3, -0.05):
        run = first.again(budget=Budget("flops", float(ratio)), policy="uniform", recover=False)
        others.append(point(run, test))
    return {"delivered": found, "uniform": others}


def at(points: list[dict[str, Any]], where: str, value: float, what: str) -> float:
    """`what` at a value of `where`, between the points that lie around it."""
    order = sorted(points, key=lambda p: p[where])
    return float(np.interp(value, [p[where] for p in order], [p[what] for p in order]))


def table(runs: list[dict[str, Any]]) -> str:
    """A line for every run."""
    lines = ["| network | asked | seed | latency | MACs | top-1 (base) | compared with |", "|---" * 7 + "|"]
    for run in runs:
        found, name = run["delivered"], run["model"] + ", one thread" * (run["threads"] == 1)
        if run["row"] == "latency":
            asked = "`--latency 0.6`" + ", blocks of 8" * ("rounding" in run)
            other = at(run["within macs"], "latency", found["latency"], "top1")
            beside = f"search within MACs, as fast: {other:.1%}; foretold {found['foretold']:.2f}"
        else:
            told, more = found["max_drop"], run["row"].removeprefix("drop").replace("trained", "recovery")
            asked = f"`--max-drop 1`{more}"
            beside = (
                f"held-out: {told['points']:.1f} points lost ({told['interval'][0]:.1f} to {told['interval'][1]:.1f})"
            )
            if run["uniform"]:
                beside += f"; uniform loses as much on test at {at(run['uniform'], 'top1', found['top1'], 'macs'):.0%} of the MACs"
        lines.append(
            f"| {name} | {asked} | {run['seed']} | {found['latency']:.2f} | {found['macs']:.1%} "
            f"| {found['top1']:.1%} ({run['base']:.1%}) | {beside} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run what is not in the log, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--only", default="")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="none: only print the table")
    parser.add_argument("--threads", type=int, default=0, help="of the sessions that are timed")
    parser.add_argument("--log", type=Path, default=Path(__file__).with_name("budgets.jsonl"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    done = {(r["model"], r["row"], r["seed"]) for r in runs if "rounding" not in r}
    for (name, (search, test)), row, seed in product(NETWORKS.items(), args.rows, args.seeds):
        if args.only not in name or (name, row, seed) in done or (row != "latency" and "resnet" not in name):
            continue
        began, data, trained = time.perf_counter(), args.shared / "data", row not in {"latency", "drop"}
        budget = Budget("latency", 0.6) if row == "latency" else Budget("flops", 1.0)
        settings = Settings(
            budget, max_drop=None if row == "latency" else 1.0, episodes=args.episodes, seed=seed, recover=trained,
            threads=args.threads,
        )  # fmt: skip
        model = args.shared / "models" / f"{name}.onnx"
        with threadpool_limits(limits=1, user_api="blas"), tempfile.TemporaryDirectory() as folder:
            source = data / search
            source = unpacked(source.with_name("train.zip"), folder) if row == ARCHIVE else source
            first = Compression(model, str(source), settings, Notes())
            place = str(data / test)
            told = (
                in_time(first, place, args.episodes) if row == "latency" else guaranteed(first, place, trained=trained)
            )
        told |= {
            "model": name,
            "row": row,
            "seed": seed,
            "threads": args.threads,
            "base": evaluate(str(model), place)["score"],
        }
        runs.append(told | {"minutes": (time.perf_counter() - began) / 60})
        with args.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(runs[-1]) + "\n")
        print(runs[-1], file=sys.stderr, flush=True)
    print(table(runs))
    if args.out:
        args.out.write_text(table(runs) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
