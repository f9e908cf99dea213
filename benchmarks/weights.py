"""Single weights: what is left of a network's accuracy when most of its weights are zero, before and after recovery.

    python benchmarks/weights.py [--shared ../shared] [--only resnet56] [--policies uniform ...] [--seeds 0 1 2] [--out FILE.md]

Each run searches and refits on the `search` data as `compress --granularity weight --params R` does, without labels in any fit.
What it delivers is scored on the `test` data, which nothing was tuned on. `plain` prunes uniformly by magnitude and refits
nothing, as most tools do; `magnitude` chooses the same weights and refits those that stay. The searched policies of one seed
share the calibration. With `--no-recover` nothing is trained. Runs that are in the log already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from paper import device
from threadpoolctl import threadpool_limits

from onnx_amc import evaluate
from onnx_amc.compression import Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.listener import Listener

ROWS = (
    ("resnet56_cifar10", "cifar10/search.npz", "cifar10/test.npz", 0.4, False),
    ("resnet56_cifar10", "cifar10/search.npz", "cifar10/test.npz", 0.2, True),
    ("mobilenet_v1_0.75_imagenet", "imagenette/search", "imagenette/test", 0.6, True),
)
"""Network, data, test data, share of the weights, and whether it is trained afterwards."""

POLICIES = ("plain", "magnitude", "uniform", "knapsack", "ddpg")


def one(run: Compression, policy: str, test: str) -> dict[str, Any]:
    """Search, cut, refit, score, train where that is wanted, and score again."""
    began = time.perf_counter()
    counts = run.choose()
    before = evaluate(run.search.finished(counts), test)["score"]
    result = run.deliver(counts)
    record = result.record
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        result.save(file.name)
        after = evaluate(file.name, test)["score"]
        size = Path(file.name).stat().st_size
    return {
        "model": Path(run.model.source).stem, "params": run.settings.budget.ratio, "policy": policy,
        "seed": run.settings.seed, "delivered": record["delivered"], "before": before, "after": after,
        "base": evaluate(run.model.original, test)["score"],
        "nonzeros": record["compressed"]["nonzeros"] / record["original"]["params"],
        "bytes": size / record["original"]["bytes"], "recover_minutes": record["seconds"]["recover"] / 60,
        "minutes": (time.perf_counter() - began) / 60, "peak_rss_mb": record["peak_rss_mb"], "device": device(),
    }  # fmt: skip


def key(run: dict[str, Any]) -> tuple[str, float, str, int, bool]:
    """Which run it is, and whether it trained."""
    return run["model"], run["params"], run["policy"], run["seed"], run["recover_minutes"] > 0


def table(runs: list[dict[str, Any]]) -> str:
    """Mean of the top-1 on `test`, before and after recovery."""
    lines = ["| model | weights left | bytes left | policy | base | before | after recovery |", "|---" * 7 + "|"]
    for (name, _, _, ratio, _), policy, trained in product(ROWS, POLICIES, (False, True)):
        mine = [r for r in runs if key(r)[:3] == (name, ratio, policy) and key(r)[-1] == trained]
        if mine:
            mean = {k: np.mean([r[k] for r in mine]) for k in ("nonzeros", "bytes", "base", "before", "after")}
            after = f"{100 * mean['after']:.1f}" if trained else ""
            lines.append(
                f"| {name} | {mean['nonzeros']:.1%} | {mean['bytes']:.1%} | {policy} ({len(mine)}) "
                f"| {100 * mean['base']:.1f} | {100 * mean['before']:.1f} | {after} |"
            )
    return "\n".join(lines)


def main() -> int:
    """Run what is not in the log, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--only", default="")
    parser.add_argument("--params", type=float)
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--no-recover", action="store_true")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="none: only print the table")
    parser.add_argument("--log", type=Path, default=Path(__file__).with_name("weights.jsonl"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    done = set(map(key, runs))
    for (name, search, test, ratio, trained), seed in product(ROWS, args.seeds):
        recover = trained and not args.no_recover
        todo = [p for p in args.policies if (name, ratio, p, seed, recover and p != "plain") not in done]
        if args.only not in name or args.params not in {None, ratio} or not todo:
            continue
        with threadpool_limits(limits=1, user_api="blas"):
            budget, data = Budget("params", ratio), args.shared / "data"
            model, first = args.shared / "models" / f"{name}.onnx", None
            for policy in todo:
                settings = Settings(
                    budget, granularity="weight", seed=seed, recover=recover, recover_minutes=30 if recover else None
                )
                if policy in {"plain", "magnitude"}:
                    refit = policy != "plain"
                    how: dict[str, Any] = {} if refit else {"recover": False, "recover_minutes": None}
                    simple = replace(settings, criterion="magnitude", policy="uniform", refit=refit, **how)
                    run = Compression(model, str(data / search), simple, Listener())
                else:
                    first = first or Compression(model, str(data / search), settings, Listener())
                    run = first.again(policy=policy, episodes=args.episodes)
                runs.append(one(run, policy, str(data / test)))
                with args.log.open("a", encoding="utf-8") as log:
                    log.write(json.dumps(runs[-1]) + "\n")
                print(runs[-1], file=sys.stderr, flush=True)
    print(table(runs))
    if args.out:
        args.out.write_text(table(runs) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
