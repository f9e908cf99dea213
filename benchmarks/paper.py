"""The CIFAR table of AMC (He et al. 2018) on our networks, before and after recovery, and recovery on a MobileNet.

    python benchmarks/paper.py [--shared ../shared] [--rows resnet20 ...] [--policies ddpg ...] [--seeds 0 1 2] [--out FILE.md]

Each run searches and refits on its data as `compress` does, is scored on `test`, trains towards the original's outputs, and
is scored there again; nothing was tuned there. The labels of `search` are taken away before anything sees them; the row on
train.zip uses labels (`--recover-labels`) and mirrors images (`--recover-flip`), as the paper's fine-tuning does. Runs that are
in the log already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from onnx_amc import evaluate
from onnx_amc.compression import Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.delivery import input_specs
from onnx_amc.graph.load import load
from onnx_amc.listener import Listener
from onnx_amc.run import data as sources

OURS = Path(__file__).parents[1] / "models"
POLICIES = ("uniform", "shallow", "deep", "random", "knapsack", "ddpg")


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        name: What to call it.
        model: File, in the project's models/ if it is there, else in those of ../shared.
        search: What is searched, refitted and trained on.
        test: What is reported on.
        minutes: For the training; None for no limit.
        epochs: At most; None for the default.
        labels: Whether the training sees labels.
        flip: Whether the training mirrors images.

    """

    name: str
    model: str
    search: str
    test: str
    minutes: float | None
    epochs: int | None = None
    labels: bool = False
    flip: bool = False


ROWS = (
    Row("plain20", "plain20_cifar10.onnx", "cifar10/search.npz", "cifar10/test.npz", 15),
    Row("resnet20", "resnet20_cifar10.onnx", "cifar10/search.npz", "cifar10/test.npz", 15),
    Row("resnet56", "resnet56_cifar10.onnx", "cifar10/search.npz", "cifar10/test.npz", 30),
    Row("mobilenet", "mobilenet_v1_0.75_imagenet.onnx", "imagenette/search", "imagenette/test", 30),
    Row(
        "resnet20, train.zip", "resnet20_cifar10.onnx", "cifar10/train.zip", "cifar10/test.npz", None, 40,
        labels=True, flip=True,
    ),
)  # fmt: skip


def unpacked(archive: Path, folder: str) -> Path:
    """The images of train.zip in a folder, with the normalisation that search.npz has."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    with np.load(archive.with_name("search.npz")) as known:
        feed = {key: known[key].tolist() for key in ("mean", "std")}
    (Path(folder) / "train" / "preprocess.json").write_text(json.dumps(feed))
    return Path(folder) / "train"


def device() -> str:
    """What the training runs on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def one(run: Compression, row: Row, policy: str, test: str) -> dict[str, Any]:
    """Search, cut, refit, score, train and score again."""
    began = time.perf_counter()
    counts = run.choose()
    before = evaluate(run.builder.deliverable(run.builder.kept(counts), run.search.ready_for(counts)), test)["score"]
    result = run.deliver(counts)
    record = result.record
    return {
        "row": row.name, "policy": policy, "seed": run.settings.seed, "delivered": record["delivered"],
        "macs": record["compressed"]["macs"] / record["original"]["macs"], "before": before,
        "after": evaluate(result.model, test)["score"], "held_out": record["recover"],
        "recover_minutes": record["seconds"]["recover"] / 60, "minutes": (time.perf_counter() - began) / 60,
        "peak_rss_mb": record["peak_rss_mb"], "device": device(),
    }  # fmt: skip


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Mean and spread of the top-1 on `test`, before and after recovery."""
    lines = [
        "| row | policy | MACs left | before | after recovery | minutes of recovery | on | memory |",
        "|---" * 8 + "|",
    ]
    for row in ROWS:
        for policy in POLICIES:
            mine = [r for r in runs if (r["row"], r["policy"]) == (row.name, policy)]
            if not mine:
                continue
            where = ", ".join(sorted({r.get("device", "CPU") for r in mine}))
            cells = [
                f"{100 * np.mean([r[key] for r in mine]):.1f} ± {100 * np.std([r[key] for r in mine]):.1f}"
                for key in ("before", "after")
            ]
            lines.append(
                f"| {row.name} | {policy} ({len(mine)}) | {np.mean([r['macs'] for r in mine]):.1%} | {cells[0]} | {cells[1]} "
                f"| {np.mean([r['recover_minutes'] for r in mine]):.0f} | {where} "
                f"| {max(r['peak_rss_mb'] for r in mine)} MB |"
            )
    return "\n".join(lines)


def rerun(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    """Run what is not in the log."""
    done = {(r["row"], r["policy"], r["seed"]) for r in runs}
    for row in (r for r in ROWS if not args.rows or r.name in args.rows):
        ours, theirs = OURS / row.model, args.shared / "models" / row.model
        model = ours if ours.exists() else theirs
        for seed in args.seeds:
            todo = [p for p in args.policies if (row.name, p, seed) not in done]
            if not todo or not model.exists():
                continue
            with tempfile.TemporaryDirectory() as folder, threadpool_limits(limits=1, user_api="blas"):
                place = args.shared / "data" / row.search
                specs = input_specs(load(model).proto)
                data = sources.load(unpacked(place, folder) if place.suffix == ".zip" else place, specs)
                settings = Settings(
                    Budget("flops", 0.5), seed=seed, recover=True, recover_minutes=args.minutes or row.minutes,
                    recover_epochs=row.epochs, recover_labels=row.labels, recover_flip=row.flip,
                )  # fmt: skip
                first = Compression(model, data if row.labels else replace(data, labels=None), settings, Listener())
                for policy in todo:
                    test = str(args.shared / "data" / row.test)
                    runs.append(one(first.again(policy=policy, episodes=args.episodes), row, policy, test))
                    with args.log.open("a", encoding="utf-8") as log:
                        log.write(json.dumps(runs[-1]) + "\n")
                    print(runs[-1], file=sys.stderr, flush=True)
                del first, data  # else they are there while the next ones are made


def main() -> int:
    """Run what is not in the log, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--rows", nargs="+", choices=[r.name for r in ROWS], default=[])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--minutes", type=float, help="of training, at most, instead of what the row says")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="none: only print the table")
    parser.add_argument("--log", type=Path, default=Path(__file__).with_name("paper.jsonl"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    rerun(args, runs)
    print(table(runs))
    if args.out:
        args.out.write_text(table(runs) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
