"""What a second node of a cluster is worth: evaluations per second, and the same plan whoever evaluates.

    python benchmarks/cluster.py [--shared ../shared] [--plans 40] [--out FILE.md]

Plans of ResNet-20 at half of its MACs, drawn at random, are evaluated on one core without Ray, by a cluster of one node of one
core, and by one of two such nodes; then a short search by each delivers a plan. All of that happens on this machine, whose cores
must be idle else, as each node computes on one of them. What a worker does once is not counted: its start, and fetching what it
needs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from ray.cluster_utils import Cluster as Nodes
from speed import random_plans
from threadpoolctl import threadpool_limits

from onnx_amc.compression import Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.listener import Listener
from onnx_amc.run.cluster import joined
from onnx_amc.run.crew import Crew, Team

STORE = 500 * 2**20
"""Bytes of a node's object store."""


@contextmanager
def team(nodes: int) -> Iterator[Team]:
    """So many nodes of one core each; 0 for one worker on one core, without Ray."""
    if nodes == 0:
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        try:
            with Crew(1, 0) as crew:  # one plan at a time, by one thread
                yield crew
        finally:
            os.sched_setaffinity(0, cores)
        return
    node = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    found = Nodes(initialize_head=True, head_node_args=node)
    for _ in range(nodes - 1):
        found.add_node(**node)
    try:
        with joined(found.address, 1, lambda note: print(note, file=sys.stderr)) as cluster:
            if cluster is not None:
                yield cluster
    finally:
        found.shutdown()


def throughput(run: Compression, plans: list[np.ndarray], crew: Team, warm: int) -> float:
    """Evaluations per second, begun all at once, the first few of them not counted."""
    for wait in [run.search.begun(counts, crew) for counts in plans[:warm]]:
        wait()
    began = time.perf_counter()
    for wait in [run.search.begun(counts, crew) for counts in plans[warm:]]:
        wait()
    return (len(plans) - warm) / (time.perf_counter() - began)


def delivered(run: Compression, crew: Team) -> list[int]:
    """The plan that a search with this crew ends with, nothing of it known before."""
    run.memo._known.clear()  # noqa: SLF001
    run.team = crew
    return [int(n) for n in run.again(episodes=10).choose()]


def main() -> int:
    """Print a line for each number of nodes, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--plans", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    model, data = args.shared / "models" / "resnet20_cifar10.onnx", args.shared / "data" / "cifar10" / "search.npz"
    settings = replace(Settings(Budget("flops", 0.5)), recover=False)
    rates, chosen = [], []
    with threadpool_limits(limits=1, user_api="blas"):
        run = Compression(model, data, settings, Listener())
        for nodes in (0, 1, 2):
            run.memo._known.clear()  # noqa: SLF001
            warm = 4 * max(nodes, 1)
            plans = random_plans(run, args.plans + warm)
            with team(nodes) as crew:
                rates.append(throughput(run, plans, crew, warm))
                chosen.append(delivered(run, crew))
            print(f"{nodes or 'without Ray'}: {rates[-1]:.2f} evaluations/s", flush=True)
    same = "the same plan" if chosen[0] == chosen[1] == chosen[2] else "DIFFERENT PLANS"
    line = (
        f"resnet20_cifar10, evaluations per second: {rates[0]:.2f} on one core without Ray, {rates[1]:.2f} by a node of one core, "
        f"{rates[2]:.2f} by two: {rates[2] / rates[1]:.2f} times one node; {same} by all"
    )
    print(line)
    if args.out:
        args.out.write_text(f"- {line}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
