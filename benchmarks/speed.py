"""Where the time of a search goes, and what stands beside it: the figures on speed, each measured in one run on one machine.

    python benchmarks/speed.py [--shared ../shared] [--parts overhead ...] [--only resnet20] [--out FILE.md]

`overhead`: a search by one worker, and by one per core; its wall time over the time in which onnxruntime was running.
`reference`: an episode of AMC's own method (a LinearRegression per convolution on 30,000 rows of as many inputs as stay, and the
masked network on the same samples), mean of three plans of a search of ours, against an episode of that search, on the MobileNet,
both with all cores. The rows are drawn: the time depends on their number.
`workers`: evaluations of ResNet-56 on 1,000 images by one worker on one core, and by two on all.
`commands`: whole commands, each in a process of its own.
`latency`: half of the MACs by each rounding, uniform, without refit; median of paired runs.
`memory`: the largest networks of the zoo, uniform with the whole refit on 1,500 images, on 8 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import onnx
from latency import by_rounding
from sklearn.linear_model import LinearRegression
from threadpoolctl import threadpool_limits
from zoo import weights_of

from onnx_amc.compression import Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.listener import Listener
from onnx_amc.run.crew import Crew
from onnx_amc.search import baselines

NETWORKS = {
    "resnet20_cifar10": "cifar10/search.npz",
    "resnet56_cifar10": "cifar10/search.npz",
    "mobilenet_v1_0.75_imagenet": "imagenette/search",
}
EPISODES, PLANS, ROWS = 30, 3, 30_000
SILENT = Listener()
ROUNDINGS: tuple[int | None, ...] = (None, 1, 4, 8, 16)


class Watch(Listener):
    """Notes when each stage of a run begins."""

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}

    def stage(self, name: str, total: int | None) -> None:  # noqa: ARG002  the listener's
        """Note the time."""
        self.begun[name] = time.perf_counter()


def prepared(shared: Path, name: str, listener: Listener = SILENT, **settings: object) -> Compression:
    """A run of a real network at half of its MACs, calibrated."""
    how = Settings(Budget("flops", 0.5), recover=False, **settings)  # type: ignore[arg-type]
    return Compression(shared / "models" / f"{name}.onnx", shared / "data" / NETWORKS[name], how, listener)


def overhead(shared: Path, name: str, workers: int | None) -> str:
    """A whole search by one worker, or by one per core."""
    run = prepared(shared, name, episodes=EPISODES, workers=workers)
    run.choose()
    search, inside = run.seconds["search"], run.seconds["search_onnxruntime"]
    tried = len(run.search.journal.trials)
    who = "one worker" if workers == 1 else "one worker per core"
    spent = f"{search:.0f} s, onnxruntime running in {inside:.0f} s of it: {search / inside:.2f}"
    return f"{name}, {who}: {tried} evaluations in {spent}"


def random_plans(run: Compression, number: int) -> list[np.ndarray]:
    """Plans within the budget."""
    rng = np.random.default_rng(0)
    return [baselines.random(run.search.space, rng) for _ in range(number)]


def evaluated(run: Compression, plans: list[np.ndarray], workers: int | None) -> float:
    """Seconds to evaluate plans, so many at a time."""
    began = time.perf_counter()
    with Crew(workers, run.settings.ahead) as crew:
        waits = [run.search.begun(counts, crew) for counts in plans]
        for wait in waits:
            wait()
    return time.perf_counter() - began


def reference(shared: Path) -> list[str]:
    """An episode of the reference method, and those of a search of ours, the agent's own time included."""
    watch, rng = Watch(), np.random.default_rng(0)
    run = prepared(shared, "mobilenet_v1_0.75_imagenet", watch, episodes=EPISODES)
    if run.trial is None:
        raise SystemExit("no data")
    run.choose()
    ours = (watch.begun["finals"] - watch.begun["search (ddpg)"]) / EPISODES
    began = time.perf_counter()
    walks = run.search.journal.trials[-EPISODES :: EPISODES // PLANS]
    with threadpool_limits(limits=len(os.sched_getaffinity(0)), user_api="blas"):
        for walk in walks:
            keep = run.analysis.keeper(run.builder.kept(walk.counts))
            for layer in run.builder.layers:
                groups, outputs, _, taps = layer.weight.index.shape
                inputs = int(keep(layer.inputs).sum()) * taps if layer.inputs is not None and not layer.whole else 0
                if inputs and groups == 1:
                    x, y = (rng.standard_normal((ROWS, n), dtype=np.float32) for n in (inputs, outputs))
                    LinearRegression(fit_intercept=False).fit(x, y)
    fitted = (time.perf_counter() - began) / len(walks)
    began = time.perf_counter()
    run.trial(run.model.original)  # a masked network takes as long as the whole one
    theirs = fitted + time.perf_counter() - began
    return [f"mobilenet: {theirs:.1f} s ({fitted:.1f} s of it fitting) against {ours:.1f} s: {theirs / ours:.1f} times"]


def workers(shared: Path) -> list[str]:
    """Throughput by the number of workers."""
    run = prepared(shared, "resnet56_cifar10", trial=1_000)
    plans = random_plans(run, 33)
    evaluated(run, plans[:1], 1)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    alone = evaluated(run, plans[1:17], 1) / 16
    os.sched_setaffinity(0, cores)
    two = evaluated(run, plans[17:], 2) / 16
    throughput = (
        f"{alone:.2f} by one worker on one core, {two:.2f} by two on all: {alone / two:.2f} times the throughput"
    )
    return [
        f"resnet56_cifar10 on 1,000 images, seconds per evaluation: {throughput}; 100 take {100 * two / 60:.1f} minutes"
    ]


def commands(shared: Path) -> list[str]:
    """Wall time of whole commands."""
    draw, lines = weights_of(shared), []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tv_resnet50", "tv_vit_b_16"):
            onnx.save(draw(shared / "zoo" / f"{name}.onnx"), f"{folder}/{name}.onnx")
        cut = ["--flops", "0.5", "--policy", "uniform", "--no-refit", "--quiet", "-o", f"{folder}/out.onnx"]
        for words in (
            ["--help"],
            ["inspect", f"{folder}/tv_resnet50.onnx"],
            ["compress", f"{folder}/tv_resnet50.onnx", *cut],
            ["compress", f"{folder}/tv_vit_b_16.onnx", *cut[:1], "0.6", *cut[2:]],
        ):
            taken = []
            for _ in range(3):
                began = time.perf_counter()
                subprocess.run([sys.executable, "-m", "onnx_amc", *words], check=True, capture_output=True)
                taken.append(time.perf_counter() - began)
            shown = " ".join(word.replace(f"{folder}/", "") for word in words)
            lines.append(f"`onnx-amc {shown}`: {min(taken):.2f} s")
    return lines


def latency(shared: Path) -> list[str]:
    """Half of the MACs by each rounding."""
    draw, lines = weights_of(shared), []
    mobilenet = onnx.load(shared / "models" / "mobilenet_v1_0.75_imagenet.onnx")
    for name, model in (("tv_resnet50", draw(shared / "zoo" / "tv_resnet50.onnx")), ("mobilenet", mobilenet)):
        found = by_rounding(model, ROUNDINGS, 20.0, flops=0.5)
        shown = ", ".join(
            f"{k or 'auto'}: {ratio:.2f} ({macs:.0%})" for k, (macs, ratio) in zip(ROUNDINGS, found, strict=True)
        )
        lines.append(f"{name}, latency (and MACs left) within half of the MACs by --round-to: {shown}")
    return lines


def memory(shared: Path) -> list[str]:
    """Peak memory of runs that calibrate and refit networks of 138 M and 86 M parameters."""
    draw, lines = weights_of(shared), []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tv_vgg16", "tv_vit_b_16"):
            model, told = f"{folder}/{name}.onnx", Path(folder, f"{name}.json")
            onnx.save(draw(shared / "zoo" / f"{name}.onnx"), model)
            words = ["--flops", "0.6", "--policy", "uniform", "--no-recover", "--memory", "8", "--quiet"]
            words += ["--data", str(shared / "data" / "imagenette" / "search"), "-o", f"{folder}/out.onnx"]
            words += ["--json", str(told)]
            subprocess.run([sys.executable, "-m", "onnx_amc", "compress", model, *words], check=True)
            record = json.loads(told.read_text(encoding="utf-8"))
            lines.append(
                f"{name} ({record['original']['params'] / 1e6:.0f} M parameters), calibrated and refitted with --memory 8: "
                f"at most {record['peak_rss_mb'] / 1024:.1f} GB in {record['seconds']['total'] / 60:.0f} min"
            )
    return lines


PARTS: dict[str, Callable[[Path], list[str]]] = {
    "reference": reference, "workers": workers, "commands": commands, "latency": latency, "memory": memory
}  # fmt: skip
"""What there is to measure besides `overhead`."""


def main() -> int:
    """Print a line for each measurement, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--parts", nargs="+", choices=("overhead", *PARTS), default=("overhead", *PARTS))
    parser.add_argument("--only", default="", help="networks of `overhead`")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines: list[str] = []
    with threadpool_limits(limits=1, user_api="blas"):
        for part in args.parts:
            if part == "overhead":
                for name, crew in product([n for n in NETWORKS if args.only in n], (1, None)):
                    lines.append(overhead(args.shared, name, crew))
                    print(lines[-1], flush=True)
            else:
                lines += PARTS[part](args.shared)
            print("\n".join(lines), end="\n\n", flush=True)
    if args.out:
        args.out.write_text("".join(f"- {line}\n" for line in lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
