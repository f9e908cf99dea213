"""Does the agent earn its place? Every policy on every network at the same number of evaluations, three seeds.

    python benchmarks/search.py [--shared ../shared] [--only resnet20] [--episodes 60] [--seeds 0 1 2] [--out FILE.md]

Each run is a whole `compress`: it searches and refits on the `search` data, and what it delivers is scored on the `test` data,
which nothing was tuned on. Runs that are in the log already, `search.jsonl` unless `--log` says otherwise, are not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from onnx_amc import evaluate
from onnx_amc.compression import Compression, Listener
from onnx_amc.config import Budget, Settings
from onnx_amc.rundir import Memo

ROWS = (
    ("resnet20_cifar10", "cifar10/search.npz", "cifar10/test.npz", 0.5),
    ("resnet56_cifar10", "cifar10/search.npz", "cifar10/test.npz", 0.5),
    ("mobilenet_v1_0.75_imagenet", "imagenette/search", "imagenette/test", 0.75),
    ("mobilenet_v1_0.75_imagenet", "imagenette/search", "imagenette/test", 0.5),
)
POLICIES = ("uniform", "shallow", "deep", "knapsack", "random", "evolution", "ddpg", "td3", "sac")


def one(
    shared: Path, row: tuple[str, str, str, float], policy: str, seed: int, episodes: int, memo: Memo
) -> dict[str, Any]:
    """Compress once; what plans scored is shared between policies of the same seed."""
    name, search, test, ratio = row
    settings = Settings(Budget("flops", ratio), policy=policy, seed=seed, episodes=episodes)
    began = time.perf_counter()
    with threadpool_limits(limits=1, user_api="blas"):
        run = Compression(shared / "models" / f"{name}.onnx", str(shared / "data" / search), settings, Listener())
        run.memo = memo
        result = run.deliver(run.choose())
    found = evaluate(result.model, str(shared / "data" / test))["score"]
    record = result.record
    return {
        "model": name, "flops": ratio, "policy": policy, "seed": seed, "episodes": record["episodes"], "test": found,
        "reward": record["compressed"]["score"], "delivered": record["delivered"],
        "macs": record["compressed"]["macs"] / record["original"]["macs"],
        "latency_ratio": record["compressed"]["latency_ratio"], "minutes": (time.perf_counter() - began) / 60,
        "counts": [g["kept"] for g in record["groups"]],
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
        lines.append(f"| {name} | {ratio:g} | {max(r['episodes'] for r in mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run what is not in the log, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--only", default="")
    parser.add_argument("--flops", type=float)
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--log", type=Path, default=Path(__file__).with_name("search.jsonl"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    done = {(r["model"], r["flops"], r["policy"], r["seed"]) for r in runs}
    for row in ROWS:
        if args.only not in row[0] or args.flops not in {None, row[3]}:
            continue
        for seed in args.seeds:
            memo = Memo()
            for policy in args.policies:
                if (row[0], row[3], policy, seed) in done:
                    continue
                runs.append(one(args.shared, row, policy, seed, args.episodes, memo))
                with args.log.open("a", encoding="utf-8") as log:
                    log.write(json.dumps(runs[-1]) + "\n")
                print({k: v for k, v in runs[-1].items() if k != "counts"}, file=sys.stderr, flush=True)
    print(table(runs))
    if args.out:
        args.out.write_text(table(runs) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
