"""The latency column of the README's main table: real networks at a budget, beside what a script says that is not ours.

    python benchmarks/quality.py [--shared ../shared] [--only resnet20] [--round-to auto 1] [--seed 0] [--out FILE.md]

Each row runs `onnx-amc compress` on the `search` data and `measure.py` on the `test` data, which nothing was tuned on. The latency
is what the run reports, and beside it what `measure.py` finds, whose two sessions disturb each other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROWS = (
    ("resnet20_cifar10", "cifar10/search.npz", "cifar10/test.npz", 0.5),
    ("resnet56_cifar10", "cifar10/search.npz", "cifar10/test.npz", 0.5),
    ("mobilenet_v1_0.75_imagenet", "imagenette/search", "imagenette/test", 0.5),
    ("mobilenet_v1_0.75_imagenet", "imagenette/search", "imagenette/test", 0.75),
)
HEAD = (
    "| model | --flops | --round-to | MACs left | top-1 base | uniform (reward) | delivered (reward) | top-1 test "
    "| latency ratio | by measure.py | self-check | minutes |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def row(shared: Path, name: str, search: str, test: str, ratio: float, rounding: str, seed: int) -> str:
    """Compress and measure one network; returns a row of the table."""
    model, folder = shared / "models" / f"{name}.onnx", Path(tempfile.mkdtemp())
    out, record = folder / "small.onnx", folder / "record.json"
    command = ["compress", model, "--data", shared / "data" / search, "--flops", ratio, "--round-to", rounding]
    command += ["--seed", seed, "--no-recover", "--quiet", "-o", out, "--json", record]
    subprocess.run([sys.executable, "-m", "onnx_amc", *map(str, command)], check=True)
    measure = [shared / "check" / "measure.py", out, "--data", shared / "data" / test, "--against", model, "--json"]
    found = json.loads(subprocess.run([sys.executable, *map(str, measure)], check=True, capture_output=True).stdout)
    told: dict[str, Any] = json.loads(record.read_text())
    cells = [
        name,
        f"{ratio:g}",
        rounding,
        f"{found['macs_ratio']:.2%}",
        f"{found['top1_original']:.1%}",
        f"{told['baselines']['uniform']['score']:.1%}",
        f"{told['compressed']['score']:.1%} ({told['delivered']})",
        f"{found['top1']:.1%}",
        f"{told['compressed']['latency_ratio']:.2f}",
        f"{found['latency_ratio']:.2f}",
        f"{told['checks']['masked_equals_cut']:.0e}",
        f"{told['seconds']['total'] / 60:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--only", default="")
    parser.add_argument("--round-to", nargs="+", default=["auto", "1"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = [HEAD]
    print(HEAD, flush=True)
    for rounding in args.round_to:
        for name, search, test, ratio in ROWS:
            if args.only in name:
                lines.append(row(args.shared, name, search, test, ratio, rounding, args.seed))
                print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
