"""Whether cut networks are faster: each cut by several roundings, timed against its original in turn, paired medians.

    python benchmarks/latency.py [--shared ../shared] [--channels 0.9] [--only resnet ...] [--seconds 15] [--out FILE.md]

Weights are drawn: this measures speed alone. Timings are of batch 1, all cores, and hold for the machine they were taken on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from zoo import weights_of

from onnx_amc import compress
from onnx_amc.delivery import one_feed
from onnx_amc.graph.load import load
from onnx_amc.run.latency import measure

NETWORKS = (
    "tv_mobilenet_v2",
    "tv_resnet50",
    "tv_shufflenet_v2_x0_5",
    "tv_densenet121",
    "tv_googlenet",
    "tv_squeezenet1_1",
)
ROUNDINGS: tuple[int | None, ...] = (None, 8, 1)
TITLES = [
    "graph",
    "channels asked",
    *(f"{what}, {k or 'auto'}" for k in ROUNDINGS for what in ("MACs left", "latency")),
]
HEAD = f"| {' | '.join(TITLES)} |\n" + "|---" * len(TITLES) + "|"


def by_rounding(
    model: onnx.ModelProto, roundings: Sequence[int | None], seconds: float, **budget: Any
) -> list[tuple[float, float]]:
    """Cut a network uniformly with each rounding, and time them in turn with the original: MACs left, and latency ratios."""
    cut = [compress(model, policy="uniform", refit=False, round_to=k, **budget) for k in roundings]
    times = measure([model, *(c.model for c in cut)], one_feed(load(model)), seconds=seconds)
    left = [c.record["compressed"]["macs"] / c.record["original"]["macs"] for c in cut]
    return [(macs, time.ratio) for macs, time in zip(left, times[1:], strict=True)]


def row(name: str, model: onnx.ModelProto, channels: float, seconds: float) -> str:
    """One network, cut with each rounding."""
    found = by_rounding(model, ROUNDINGS, seconds, channels=channels)
    cells = [f"{macs:.1%} | {latency:.3f}" for macs, latency in found]
    return " | ".join([f"| {name}", f"{channels:g}", *cells]) + " |"


def main() -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--channels", type=float, default=0.9)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    drawn = weights_of(args.shared)
    lines = [HEAD]
    print(HEAD, flush=True)
    for path in sorted((args.shared / "zoo").glob("*.onnx")):
        if any(part in path.name for part in args.only):
            lines.append(row(path.stem, drawn(path), args.channels, args.seconds))
            print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
