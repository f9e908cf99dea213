"""Whether cut networks are faster: each cut by several roundings, timed against its original in turn, paired medians.

    python benchmarks/latency.py [--shared ../shared] [--channels 0.9] [--only resnet ...] [--seconds 15] [--out FILE.md]

Weights are drawn: this measures speed alone. Timings are of batch 1, all cores, and hold for the machine they were taken on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

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
ROUNDINGS: dict[str, int | None] = {"auto": None, "8": 8, "1": 1}
HEAD = (
    "| graph | channels asked |"
    + "".join(f" MACs left, {k} | latency, {k} |" for k in ROUNDINGS)
    + "\n"
    + "|---" * 8
    + "|"
)


def row(name: str, model: onnx.ModelProto, channels: float, seconds: float) -> str:
    """Cut one network with each rounding, and time them in turn with the original."""
    cut = [compress(model, channels=channels, policy="uniform", refit=False, round_to=k) for k in ROUNDINGS.values()]
    times = measure([model, *(c.model for c in cut)], one_feed(load(model)), seconds=seconds)
    cells = [
        f"{c.record['compressed']['macs'] / c.record['original']['macs']:.1%} | {t.ratio:.3f}"
        for c, t in zip(cut, times[1:], strict=True)
    ]
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
