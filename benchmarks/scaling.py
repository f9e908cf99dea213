"""How analysis, calibration, an episode and memory grow with depth, width, samples and workers.

    python benchmarks/scaling.py [--out benchmarks/scaling.svg]

Networks of residual blocks (Conv, Relu, Conv, Add) on 16 x 16 positions, weights and samples drawn. One number is varied at a time
from 8 blocks, 32 channels, 500 samples and one worker; each point is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from threadpoolctl import threadpool_limits

from onnx_amc.compression import Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.listener import Listener
from onnx_amc.run.crew import Crew
from onnx_amc.search import baselines

mpl.use("svg")
import matplotlib.pyplot as plt

SIDE, PLANS = 16, 8


@dataclass(frozen=True)
class Point:
    """What is varied."""

    depth: int = 8
    width: int = 32
    samples: int = 500
    workers: int = 1


SWEEPS = {"depth": (4, 8, 16, 32), "width": (16, 32, 64, 128), "samples": (250, 500, 1_000, 2_000), "workers": (1, 2)}


def network(point: Point) -> onnx.ModelProto:
    """A stem, residual blocks, a mean and a layer of ten outputs."""
    rng, w = np.random.default_rng(0), point.width
    kernels = {"stem": (w, 3), **{f"{k}{i}": (w, w) for i in range(point.depth) for k in "uv"}}
    weights = {n: rng.standard_normal((*s, 3, 3)) / np.sqrt(9 * s[1] * point.depth) for n, s in kernels.items()}
    weights["head"] = rng.standard_normal((w, 10)) / np.sqrt(w)
    nodes = [helper.make_node("Conv", ["x", "stem"], ["h0"], pads=[1] * 4)]
    for i in range(point.depth):
        nodes.append(helper.make_node("Conv", [f"h{i}", f"u{i}"], [f"a{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"a{i}"], [f"r{i}"]))
        nodes.append(helper.make_node("Conv", [f"r{i}", f"v{i}"], [f"b{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Add", [f"h{i}", f"b{i}"], [f"h{i + 1}"]))
    nodes.append(helper.make_node("GlobalAveragePool", [f"h{point.depth}"], ["p"]))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"]))
    nodes.append(helper.make_node("MatMul", ["f", "head"], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])
    tensors = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "blocks", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def measured(point: Point) -> dict[str, float]:
    """Seconds of analysis, calibration and an episode, and the peak memory of this process in GB."""
    images = np.random.default_rng(1).standard_normal((point.samples, 3, SIDE, SIDE), dtype=np.float32)
    settings = Settings(Budget("flops", 0.5), recover=False, workers=point.workers)
    run = Compression(network(point), {"x": images}, settings, Listener())
    run.builder.prepare()
    rng = np.random.default_rng(0)
    plans = [baselines.random(run.search.space, rng) for _ in range(PLANS + 1)]
    with Crew(point.workers, settings.ahead) as crew:
        run.search.begun(plans[0], crew)()
        began = time.perf_counter()
        for wait in [run.search.begun(counts, crew) for counts in plans[1:]]:
            wait()
        episode = (time.perf_counter() - began) / PLANS
    return {
        "analysis": run.seconds["analyse"],
        "calibration": run.seconds["calibrate"],
        "an episode": episode,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def draw(found: dict[str, list[tuple[int, dict[str, float]]]], out: Path) -> None:
    """Times above, memory below, a column for each number that is varied."""
    mpl.rcParams["svg.hashsalt"] = "scaling"
    figure, axes = plt.subplots(2, len(found), figsize=(3 * len(found), 5.5), sharey="row", sharex="col")
    for (name, points), (upper, lower) in zip(found.items(), axes.T, strict=True):
        across = [value for value, _ in points]
        for what in ("calibration", "an episode", "analysis"):
            upper.loglog(across, [one[what] for _, one in points], "o-", label=what)
        lower.plot(across, [one["memory"] for _, one in points], "o-", color="black")
        lower.set(xlabel={"depth": "blocks", "width": "channels"}.get(name, name), xscale="log")
        lower.set_xticks(across, [str(value) for value in across])
        lower.minorticks_off()
    axes[0, 0].set(ylabel="seconds")
    axes[1, 0].set(ylabel="peak memory, GB", ylim=(0, None))
    axes[0, 0].legend()
    figure.savefig(out, metadata={"Date": None}, bbox_inches="tight")


def main() -> int:
    """Measure each point, print the figures and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("scaling.svg"))
    args = parser.parse_args()
    if args.one:
        with threadpool_limits(limits=1, user_api="blas"):
            print(json.dumps(measured(Point(**json.loads(args.one)))))
        return 0
    known: dict[Point, dict[str, float]] = {}
    found: dict[str, list[tuple[int, dict[str, float]]]] = {name: [] for name in SWEEPS}
    for name, values in SWEEPS.items():
        for value in values:
            point = replace(Point(), **{name: value})
            if point not in known:
                words = [sys.executable, __file__, "--one", json.dumps(asdict(point))]
                known[point] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            found[name].append((value, known[point]))
            told = ", ".join(f"{k} {v:.2f}" for k, v in known[point].items())
            print(f"{name} {value}: {told}", flush=True)
    draw(found, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
