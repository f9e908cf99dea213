"""How analysis and surgery grow with the number of nodes: chains of blocks, and the graphs of the zoo.

    python benchmarks/growth.py [--zoo FILE.md] [--out benchmarks/growth.svg]

A block is Conv, Relu, Add in one residual stream. `--zoo` is the table that zoo.py wrote. The line is the chains' seconds per node.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_amc.graph.groups import analyse
from onnx_amc.graph.load import load
from onnx_amc.prune.surgery import cut, finish

mpl.use("svg")
import matplotlib.pyplot as plt

BLOCKS = (100, 300, 1_000, 3_000, 10_000)


def chain(blocks: int) -> onnx.ModelProto:
    """Conv, Relu, Add, again and again."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Conv", ["x", "stem"], ["h0"])]
    weights = {"stem": rng.standard_normal((8, 3, 1, 1)), "head": rng.standard_normal((4, 8, 1, 1))}
    for i in range(blocks):
        weights[f"w{i}"] = rng.standard_normal((8, 8, 1, 1)) / 100
        nodes.append(helper.make_node("Conv", [f"h{i}", f"w{i}"], [f"c{i}"]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        nodes.append(helper.make_node("Add", [f"h{i}", f"r{i}"], [f"h{i + 1}"]))
    nodes.append(helper.make_node("Conv", [f"h{blocks}", "head"], ["y"]))
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c, 4, 4]) for n, c in (("x", 3), ("y", 4)))
    tensors = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "chain", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def seconds(blocks: int) -> float:
    """Best of three: read, find the groups, cut half."""
    model, taken = chain(blocks), []
    for _ in range(3):
        start = time.perf_counter()
        analysis = analyse(load(model))
        finish(analysis, cut(analysis, {g.name: tuple(range(0, g.channels, 2)) for g in analysis.groups}))
        taken.append(time.perf_counter() - start)
    return min(taken)


def zoo(table: Path) -> list[tuple[int, float]]:
    """Nodes and seconds of analysis and surgery, from zoo.py's table."""
    rows = [line.split("|") for line in table.read_text(encoding="utf-8").splitlines()[2:]]
    return [(int(r[2]), float(r[5]) + float(r[6])) for r in rows if len(r) > 8]


def main() -> int:
    """Print the figures and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("growth.svg"))
    args = parser.parse_args()
    mpl.rcParams["svg.hashsalt"] = "growth"
    nodes, taken = np.array([3 * b + 2 for b in BLOCKS]), np.array([seconds(b) for b in BLOCKS])
    for n, s in zip(nodes, taken, strict=True):
        print(f"{n:6d} nodes {s:7.3f} s  {s / n * 1e3:.3f} ms per node")
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.loglog(nodes, taken, "o-", label="chains of Conv, Relu, Add")
    axes.loglog(nodes, nodes * taken[-1] / nodes[-1], "--", color="grey", label="linear")
    if args.zoo:
        points = zoo(args.zoo)
        axes.loglog(*zip(*points, strict=True), "x", alpha=0.7, label="zoo and real networks")
        times = sorted(s for _, s in points)
        print(f"zoo: median {times[len(times) // 2]:.2f} s, largest {times[-1]:.2f} s")
    axes.set(xlabel="nodes", ylabel="seconds of analysis and surgery")
    axes.legend()
    figure.savefig(args.out, metadata={"Date": None}, bbox_inches="tight")
    return 0


if __name__ == "__main__":
    sys.exit(main())
