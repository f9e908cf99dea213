"""How well latency is predicted: plans that the table was not learnt from, predicted and measured, whole models in turn.

    python benchmarks/latency_table.py [--shared ../shared] [--only resnet56 ...] [--threads 1] [--by onnxruntime command]
        [--plans 12] [--seconds 3] [--out FILE.md]

Each plan is measured in two rounds in different orders, in turn with the whole network; what is compared is the mean ratio to the
whole network's time. "Repeatability" is how far the two rounds lie apart: the prediction cannot be held to less. With one thread,
times are those of the processor, which other processes on the machine disturb little. `--by command` learns from whole models that
a command of its own times: this file, called with `--time MODEL`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from zoo import weights_of

from onnx_amc.builder import Builder
from onnx_amc.config import Budget, Settings
from onnx_amc.delivery import one_feed
from onnx_amc.graph import cost
from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import load
from onnx_amc.prune.surgery import finish
from onnx_amc.run.blocks import block_of
from onnx_amc.run.clock import Effort, measure_table, measure_table_by_command, probe_plans
from onnx_amc.run.kernels import in_turn, undisturbed
from onnx_amc.run.table import LatencyTable
from onnx_amc.search.space import levels_of

NETWORKS = (
    "resnet56_cifar10", "mobilenet_v1_0.75_imagenet", "resnet20_cifar10", "ultraface_rfb_320", "tv_mobilenet_v3", "tv_shufflenet",
)  # fmt: skip
UNIFORM = (0.3, 0.42, 0.5, 0.58, 0.72, 0.9)
HEAD = (
    "| network | by | learnt from | probes | seconds | held out, median / max | random plans, median / max | by MACs | "
    "uniform plans, median / max | by MACs | repeatability |\n" + "|---" * 11 + "|"
)


class Case:
    """A network, how it is cut, and at which levels."""

    def __init__(self, model: str | onnx.ModelProto) -> None:
        self.analysis: Analysis = analyse(load(model))
        self.builder = Builder(self.analysis, Settings(Budget("flops", 0.5), refit=False), None, np.zeros(0, int))
        self.levels = [levels_of(g.channels, None, 0.2, g.lanes, block_of()) for g in self.analysis.groups]
        self.full = np.array([lv[-1] for lv in self.levels], dtype=np.int64)
        self.feed = one_feed(self.analysis.model)

    def build(self, counts: np.ndarray) -> onnx.ModelProto:
        """Cut, by magnitude."""
        return finish(self.analysis, self.builder.build(self.builder.kept(counts)))

    def fresh(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Random and uniform plans that are not among the probes."""
        known = {tuple(p) for p in probe_plans(self.levels, Effort().random, 0).tolist()}
        drawn = probe_plans(self.levels, count, 99)[-count:]
        even = np.array([[lv[np.argmin(np.abs(lv - r * lv[-1]))] for lv in self.levels] for r in UNIFORM])
        kept = [np.array([p for p in plans.tolist() if tuple(p) not in known]) for plans in (drawn, even)]
        return kept[0], kept[1]

    def measured(self, plans: np.ndarray, threads: int, seconds: float) -> np.ndarray:
        """Ratios to the whole network's time, (rounds, plans)."""
        found = np.zeros((2, len(plans)))
        for turn in range(2):
            order = np.random.default_rng(turn + 7).permutation(len(plans))
            for start in range(0, len(order), 3):
                some = order[start : start + 3]
                models = [self.analysis.model.original, *(self.build(plans[i]) for i in some)]
                allowed = seconds * len(models)
                laps, _ = in_turn(models, self.feed, threads=threads, runs=60, seconds=allowed, watch=False)
                found[turn, some] = list(map(undisturbed, laps[1:]))
        return found

    def table(self, by: str, threads: int) -> LatencyTable:
        """Learn from probes."""
        if by == "onnxruntime":
            return measure_table(self.analysis, self.build, self.levels, self.feed, threads=threads)
        command = shlex.join([sys.executable, str(Path(__file__).resolve()), "--threads", str(threads), "--time"])
        return measure_table_by_command(self.analysis, self.build, self.levels, command)


def row(name: str, model: str | onnx.ModelProto, by: str, threads: int, count: int, seconds: float) -> str:
    """Learn a table of one network, and hold it against fresh plans."""
    case = Case(model)
    begun = time.monotonic()
    table = case.table(by, threads)
    spent = time.monotonic() - begun
    macs, cells = cost.macs(case.analysis), []
    plans = case.fresh(count)
    found = case.measured(np.concatenate(plans), threads, seconds)
    for some, truth in zip(plans, np.split(found.mean(axis=0), [len(plans[0])]), strict=True):
        for predict in (table.many, macs.many):
            errors = np.abs(predict(some) / predict(case.full[None]) / truth - 1)
            cells.append(f"{np.median(errors):.1%} / {errors.max():.1%}")
    apart = np.abs(found[0] / found[1] - 1)
    probes = len(probe_plans(case.levels, Effort().random, 0))
    start = [name, by, table.basis, str(probes), f"{spent:.0f}", f"{table.error:.1%} / {table.worst:.1%}"]
    return "| " + " | ".join([*start, *cells, f"{np.median(apart):.1%} / {apart.max():.1%}"]) + " |"


def milliseconds(path: str, threads: int) -> float:
    """Median of one model's runs, for `--by command`."""
    model = onnx.load(path)
    laps, _ = in_turn([model], one_feed(load(model)), threads=threads, runs=100, seconds=2.0, watch=False)
    return float(np.median(laps[0]) * 1e3)


def main() -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--by", nargs="*", default=["onnxruntime"], choices=["onnxruntime", "command"])
    parser.add_argument("--plans", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--time", metavar="MODEL", help="only print a model's milliseconds")
    args = parser.parse_args()
    if args.time:
        print(milliseconds(args.time, args.threads))
        return 0
    lines = [HEAD]
    print(HEAD, flush=True)
    drawn = weights_of(args.shared)
    for path in [*sorted((args.shared / "models").glob("*.onnx")), *sorted((args.shared / "zoo").glob("*.onnx"))]:
        for by in args.by if any(part in path.name for part in args.only) else ():
            model = drawn(path) if path.parent.name == "zoo" else str(path)
            lines.append(row(path.stem, model, by, args.threads, args.plans, args.seconds))
            print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
