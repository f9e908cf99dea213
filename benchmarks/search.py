"""Does the agent earn its place? Every policy on every network at the same number of evaluations, three seeds.

    python benchmarks/search.py [--shared ../shared] [--only resnet20] [--episodes 60] [--seeds 0 1 2] [--out FILE.md]

Each run searches and refits on the `search` data as `compress` does; what it delivers is scored on the `test` data, which nothing
was tuned on. Every search, random too, starts from the same baselines (uniform, shallow, deep, and the knapsack with its second
pass), may deliver one of them, and spends the same number of evaluations: search.md has 60 on ResNet-20, 40 on ResNet-56, 30 and
20 on the MobileNet (`--episodes`), besides the baselines. Policies of one seed share the calibration. Runs that are in the log
already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from quality import ROWS
from threadpoolctl import threadpool_limits

from onnx_amc import evaluate
from onnx_amc.compression import Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.listener import Listener

POLICIES = ("uniform", "shallow", "deep", "knapsack", "random", "evolution", "ddpg", "td3", "sac")


def one(first: Compression, policy: str, episodes: int, test: str) -> dict[str, Any]:
    """Search, deliver and measure once more, on the calibration of the first run."""
    began = time.perf_counter()
    run = first.again(policy=policy, episodes=episodes)
    result = run.deliver(run.choose())
    record = result.record
    return {
        "model": Path(run.model.source).stem, "flops": run.settings.budget.ratio, "policy": policy,
        "seed": run.settings.seed, "evaluations": len(run.search.journal.trials), "test": evaluate(result.model, test)["score"],
        "reward": record["compressed"]["score"], "delivered": record["delivered"],
        "macs": record["compressed"]["macs"] / record["original"]["macs"],
        "minutes": (time.perf_counter() - began) / 60, "counts": [g["kept"] for g in record["groups"]],
    }  # fmt: skip


def table(runs: list[dict[str, Any]]) -> str:
    """Mean and spread of the top-1 on `test`, a row per network and budget, a column per policy."""
    lines = ["| model | --flops | evaluations | " + " | ".join(POLICIES) + " |", "|---" * (3 + len(POLICIES)) + "|"]
    for name, _, _, ratio in ROWS:
        mine = [r for r in runs if r["model"] == name and r["flops"] == ratio]
        if not mine:
            continue
        cells = []
        for policy in POLICIES:
            tests = [100 * r["test"] for r in mine if r["policy"] == policy]
            cells.append(f"{np.mean(tests):.1f} ± {np.std(tests):.1f} ({len(tests)})" if tests else "")
        lines.append(f"| {name} | {ratio:g} | {max(r['evaluations'] for r in mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run what is not in the log, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--only", default="")
    parser.add_argument("--flops", type=float)
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="none: only print the table")
    parser.add_argument("--log", type=Path, default=Path(__file__).with_name("search.jsonl"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    done = {(r["model"], r["flops"], r["policy"], r["seed"]) for r in runs}
    for (name, search, test, ratio), seed in product(ROWS, args.seeds):
        todo = [p for p in args.policies if (name, ratio, p, seed) not in done]
        if args.only not in name or args.flops not in {None, ratio} or not todo:
            continue
        with threadpool_limits(limits=1, user_api="blas"):
            settings = Settings(Budget("flops", ratio), seed=seed, recover=False)
            data = args.shared / "data"
            first = Compression(args.shared / "models" / f"{name}.onnx", str(data / search), settings, Listener())
            for policy in todo:
                runs.append(one(first, policy, args.episodes, str(data / test)))
                with args.log.open("a", encoding="utf-8") as log:
                    log.write(json.dumps(runs[-1]) + "\n")
                print({k: v for k, v in runs[-1].items() if k != "counts"}, file=sys.stderr, flush=True)
    print(table(runs))
    if args.out:
        args.out.write_text(table(runs) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
