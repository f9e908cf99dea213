"""Runs killed by `kill -9` at random moments and then resumed end with the same bytes as the run that nobody stopped.

    python benchmarks/kills.py [--kills 30] [--seed 0] [--model ../models/digits_resnet.onnx] [--options "..."] [--out FILE.md]

The moments are drawn over the wall time of the uninterrupted run, so that they fall into analysis, calibration, search, recovery
and writing; each is a run of its own, killed once and resumed, and two in three are killed again while they resume. Where nothing
had been written yet, the command without `--resume` is what its message asks for. Compared are model and plan, byte by byte, and
that neither lock nor temporary file is left.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
OPTIONS = "--flops 0.5 --episodes 8 --recover --recover-epochs 3"
AGAIN = 2 / 3
"""Share of runs that are killed while they resume, too."""


@dataclass(frozen=True)
class Runner:
    """Starts one command in a folder.

    Args:
        model: What is compressed.
        options: Of `compress`.
        folder: Where output and run directory go.

    """

    model: Path
    options: str
    folder: Path

    def run(self, *more: str, kill_after: float | None = None) -> tuple[int, str]:
        """Exit code and stderr; negative where it was killed."""
        argv = [sys.executable, "-m", "onnx_amc", "compress", str(self.model), *shlex.split(self.options)]
        argv += ["-o", str(self.folder / "out.onnx"), *more]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
        ) as child:
            try:
                _, heard = child.communicate(timeout=kill_after)
            except subprocess.TimeoutExpired:
                os.kill(child.pid, signal.SIGKILL)
                _, heard = child.communicate()
        return child.returncode, heard

    def outcome(self) -> dict[str, bytes]:
        """What must be the same."""
        return {name: (self.folder / name).read_bytes() for name in ("out.onnx", "out.run/plan.json")}

    def left(self) -> list[str]:
        """What must not be there when all is done."""
        files = [p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()]
        return sorted(f for f in files if f.endswith((".tmp", "/lock", ".npz")))


def finished(runner: Runner, rng: np.random.Generator, seconds: float) -> tuple[str, list[float]]:
    """Kill a run once or twice and let it finish; the stage it was first killed in, and the moments."""
    moments = [float(rng.uniform(0.0, seconds))]
    code, heard = runner.run(kill_after=moments[0])
    stage = (
        "too late"
        if code == 0
        else (re.findall(r"^([a-z][a-z ()0-9]*) \.\.\.", heard, re.MULTILINE) or ["starting"])[-1]
    )
    if rng.random() < AGAIN:
        moments.append(float(rng.uniform(0.0, seconds)))
        resumed(runner, moments[1])
    code, heard = resumed(runner, None)
    if code:
        raise RuntimeError(f"resumed after {moments}: exit {code}\n{heard}")
    return stage, moments


def resumed(runner: Runner, kill_after: float | None) -> tuple[int, str]:
    """Go on as the messages say."""
    code, heard = runner.run("--resume", kill_after=kill_after)
    if code == 2 and "there is no run to resume" in heard:
        return runner.run(kill_after=kill_after)
    return code, heard


def main() -> int:
    """Run, print, and write the table where asked; 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "digits_resnet.onnx")
    parser.add_argument("--options", default=OPTIONS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines, stages, wrong = ["| run | killed in | after s | same bytes |", "|---:|---|---:|---|"], Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        whole = Runner(args.model, args.options, Path(scratch))
        start = time.perf_counter()
        code, heard = whole.run()
        seconds = time.perf_counter() - start
        if code:
            raise RuntimeError(heard)
        wanted = whole.outcome()
        print(f"seed {args.seed}, uninterrupted: {seconds:.1f} s\n" + "\n".join(lines), flush=True)
        for i in range(args.kills):
            rng = np.random.default_rng([args.seed, i])
            with tempfile.TemporaryDirectory(prefix="kills-") as place:
                runner = Runner(args.model, args.options, Path(place))
                stage, moments = finished(runner, rng, seconds)
                same = [name for name, value in runner.outcome().items() if value != wanted[name]] or runner.left()
            stages[stage] += 1
            wrong += bool(same)
            after = ", ".join(f"{m:.1f}" for m in moments)
            lines.append(f"| {i} | {stage} | {after} | {'yes' if not same else ', '.join(same)} |")
            print(lines[-1], flush=True)
    summary = f"{args.kills - wrong} of {args.kills} the same (seed {args.seed}); " + ", ".join(
        f"{count} in {stage}" for stage, count in stages.most_common()
    )
    print(summary)
    if args.out:
        args.out.write_text("\n".join([*lines, "", summary]) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
