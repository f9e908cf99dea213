"""What a run without data is worth: the same command with Gaussian noise for data, with none, and with real images.

    python benchmarks/nodata.py [--shared ../shared] [--policy uniform knapsack] [--flops 0.75] [--seed 0] [--real] [--out FILE.md]

Each row compresses MobileNet-V1 and scores it on the `test` images, which nothing was tuned on. The first row, magnitude without
a refit, is what needs no inputs at all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

MODEL = "mobilenet_v1_0.75_imagenet"
SAMPLES = 256
HEAD = "| calibration inputs | policy | MACs left | top-1 test | minutes |\n|---|---|---|---|---|"


def amc(*arguments: object) -> None:
    """Run the command line, from where it finds this checkout."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "onnx_amc", *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path}, capture_output=True)


def row(folder: Path, shared: Path, title: str, *options: object) -> str:
    """Compress with these options and measure; returns a row of the table."""
    policy, out, record, score = options[1], folder / "small.onnx", folder / "record.json", folder / "score.json"
    model = folder / f"{MODEL}.onnx"
    if not model.exists():
        model.symlink_to((shared / "models" / model.name).resolve())
    amc("compress", model, "--no-recover", "--quiet", "-o", out, "--json", record, *options)
    amc("evaluate", out, "--data", shared / "data" / "imagenette" / "test", "--json", score)
    told, found = json.loads(record.read_text()), json.loads(score.read_text())
    left = told["compressed"]["macs"] / told["original"]["macs"]
    minutes = told["seconds"]["total"] / 60
    return f"| {title} | {policy} | {left:.1%} | {found['score']:.1%} | {minutes:.1f} |"


def main() -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--policy", nargs="+", default=["uniform", "knapsack"])
    parser.add_argument("--flops", type=float, default=0.75)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true", help="as many real images too")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    noise = folder / "noise.npz"
    x = np.random.default_rng(args.seed).standard_normal((SAMPLES, 3, 224, 224), np.float32)
    np.savez(noise, input=x)
    lines = [HEAD]
    print(HEAD, flush=True)
    same = ("--flops", args.flops, "--seed", args.seed)
    jobs: list[tuple[object, ...]] = [("none (magnitude, no refit)", "--policy", "uniform", "--no-refit", *same)]
    for policy in args.policy:
        jobs += [("Gaussian noise", "--policy", policy, "--data", noise, *same)]
        jobs += [("made-up images", "--policy", policy, *same)]
        if args.real:
            real = args.shared / "data" / "imagenette" / "search"
            jobs += [("1,500 photographs of 10 classes", "--policy", policy, "--data", real, *same)]
    for title, *options in jobs:
        lines.append(row(folder, args.shared, str(title), *options))
        print(lines[-1], flush=True)
        if args.out:
            args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
