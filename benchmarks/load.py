"""Many runs, one after the other in one process and several at a time: memory stays, and nothing is left behind.

    python benchmarks/load.py [--runs 100] [--minutes M] [--parallel 8] [--out FILE.md]

One process calls `onnx_amc.compress` on the three networks of models/ in turn, search, refit and training included, `--runs` times
or for `--minutes`; after each it counts its memory, its open files and its threads. Then as many command lines as `--parallel` says
start at the same moment on the same model. All work in a temporary folder of their own, which must hold nothing at the end but what
onnxruntime and torch leave there when they are imported; runs of the same model must give the same bytes. 1 where memory grew by
more than 5 %, something is left, or anything differs.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
NETWORKS = ("digits_mlp", "digits_mobilenet", "digits_resnet")
WARM = 12
"""Runs until caches and pools have the size that they keep."""

GROWTH = 0.05


def state() -> tuple[int, int, int]:
    """Memory in MB without what the allocator keeps for later, open files and threads of this process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (
        pages * os.sysconf("SC_PAGE_SIZE") // 2**20,
        len(list(Path("/proc/self/fd").iterdir())),
        threading.active_count(),
    )


def of_imports(folder: Path) -> set[str]:
    """What libraries leave in the temporary folder by themselves."""
    names = "onnxruntime", "torch._dynamo"  # the latter is imported by every optimizer of torch
    command = [sys.executable, "-c", f"import {', '.join(names)}"]
    subprocess.run(command, check=True, env=os.environ | {"TMPDIR": str(folder)})
    return {p.name for p in folder.iterdir()}


def in_turn(runs: int, minutes: float | None, out: Path) -> tuple[list[tuple[int, int, int]], dict[str, set[str]]]:
    """What the process holds after each run, and the different results by network."""
    import onnx_amc  # noqa: PLC0415  after the temporary folder is set

    began, states, results = time.monotonic(), list[tuple[int, int, int]](), dict[str, set[str]]()
    while (time.monotonic() - began) < 60 * minutes if minutes else len(states) < runs:
        name = NETWORKS[len(states) % len(NETWORKS)]
        model = ROOT / "models" / f"{name}.onnx"
        found = onnx_amc.compress(str(model), flops=0.5, episodes=3, recover_epochs=1, recover=True)
        found.save(out)
        results.setdefault(name, set()).add(hashlib.sha256(out.read_bytes()).hexdigest())
        states.append(state())
        memory, files, threads = states[-1]
        print(f"run {len(states)}: {name}, {memory} MB, {files} files, {threads} threads", file=sys.stderr, flush=True)
    return states, results


def at_once(count: int, folder: Path) -> set[str]:
    """The different results of command lines that run side by side on one model."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = ["--flops", "0.5", "--episodes", "3", "--recover", "--recover-epochs", "1", "--quiet"]
    model, outs = ROOT / "models" / "digits_mlp.onnx", [folder / f"{i}.onnx" for i in range(count)]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "onnx_amc", "compress", str(model), *options, "-o", str(out)], env=environment
        )
        for out in outs
    ]
    codes = [child.wait() for child in children]
    if any(codes):
        raise RuntimeError(f"exit codes {codes}")
    return {hashlib.sha256(out.read_bytes()).hexdigest() for out in outs}


def main() -> int:
    """Run all, print what was found, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--minutes", type=float, help="for so long, in place of a number of runs")
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load-") as place:
        scratch, outputs, imports = (Path(place) / name for name in ("tmp", "out", "imports"))
        for folder in (scratch, outputs, imports):
            folder.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
        states, results = in_turn(args.runs, args.minutes, outputs / "out.onnx")
        results["side by side"] = at_once(args.parallel, outputs)
        theirs = of_imports(imports)
        left = sorted(p.name for p in scratch.iterdir() if p.name not in theirs)
    settled, end = (np.median(part, axis=0) for part in (states[WARM : WARM + 10], states[-10:]))
    growth = end[0] / settled[0] - 1
    differ = [name for name, found in results.items() if len(found) > 1]
    lines = [
        "| | |",
        "|---|---|",
        f"| runs one after the other | {len(states)} |",
        f"| memory, runs {WARM + 1} to {WARM + 10} and the last 10 | {settled[0]:.0f} MB, {end[0]:.0f} MB ({growth:+.1%}) |",
        f"| open files | {settled[1]:.0f}, {end[1]:.0f} |",
        f"| threads | {settled[2]:.0f}, {end[2]:.0f} |",
        f"| runs side by side | {args.parallel} |",
        f"| left in the temporary folder | {', '.join(left) or 'nothing'} (by libraries: {', '.join(sorted(theirs))}) |",
        f"| differing bytes | {', '.join(differ) or 'none'} |",
    ]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(growth > GROWTH or end[1] > settled[1] or bool(left) or bool(differ))


if __name__ == "__main__":
    sys.exit(main())
