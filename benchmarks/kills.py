"""Runs killed by `kill -9` at random moments and then resumed end with the same bytes as the run that nobody stopped.

    python benchmarks/kills.py [--kills 30] [--seed 0] [--model ../models/digits_resnet.onnx] [--options "..."] [--out FILE.md]

Three in four moments are drawn over the processor time that the uninterrupted run takes, which other load does not stretch: they
fall into analysis, calibration, search and recovery. One in four falls into the writing: shortly after a file of the result has
appeared. Each run is killed once and resumed, and two in three are killed again while they resume. Where nothing had been written
yet, the command without `--resume` is what its message asks for. Compared are model and plan, byte by byte, and that neither lock,
state of a training nor temporary file is left.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
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

WRITING = 1 / 4
"""Share of moments that fall into the writing of the result."""

WRITTEN = (
    ".out.onnx.*.tmp",
    "out.onnx",
    "out.run/.plan.json.*.tmp",
    "out.run/plan.json",
    "out.run/record.json",
    "out.run/details.json",
)
"""Files of the result, in turn."""


@dataclass(frozen=True)
class Moment:
    """When a run is killed.

    Args:
        seconds: Of processor time; or, where a file is named, of wall time after it has appeared.
        pattern: Of a file of the run.

    """

    seconds: float
    pattern: str = ""

    @staticmethod
    def drawn(rng: np.random.Generator, seconds: float) -> Moment:
        """One at random, in a run of so many seconds of processor time."""
        if rng.random() < WRITING:
            return Moment(float(rng.exponential(0.003)), WRITTEN[int(rng.integers(len(WRITTEN)))])
        return Moment(float(rng.uniform(0.0, seconds)))

    def reached(self, pid: int, folder: Path) -> bool:
        """Whether it has come."""
        if not self.pattern:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") >= self.seconds
        if not any(folder.glob(self.pattern)):
            return False
        time.sleep(self.seconds)
        return True

    def __str__(self) -> str:
        """As it is printed."""
        return f"{self.seconds:.3f} s after {self.pattern}" if self.pattern else f"{self.seconds:.1f} s"


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

    def run(self, *more: str, until: Moment | None = None) -> tuple[int, str]:
        """Exit code and stderr; negative where it was killed."""
        argv = [sys.executable, "-m", "onnx_amc", "compress", str(self.model), *shlex.split(self.options)]
        argv += ["-o", str(self.folder / "out.onnx"), *more]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        heard = self.folder / "stderr"
        with heard.open("w") as file, subprocess.Popen(argv, stdout=file, stderr=file, env=environment) as child:
            while until is not None and child.poll() is None:
                if until.reached(child.pid, self.folder):
                    os.kill(child.pid, signal.SIGKILL)
                    break
                time.sleep(0.001)
        return child.returncode, heard.read_text()

    def outcome(self) -> dict[str, bytes]:
        """What must be the same."""
        return {name: (self.folder / name).read_bytes() for name in ("out.onnx", "out.run/plan.json")}

    def left(self) -> list[str]:
        """What must not be there when all is done."""
        files = [p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()]
        return sorted(f for f in files if f.endswith((".tmp", "/lock", ".npz")))


def finished(runner: Runner, rng: np.random.Generator, seconds: float) -> tuple[str, list[Moment]]:
    """Kill a run once or twice and let it finish; the stage it was first killed in, and the moments."""
    moments = [Moment.drawn(rng, seconds)]
    code, heard = runner.run(until=moments[0])
    stages = re.findall(r"^([a-z][a-z ()0-9]*) \.\.\.", heard, re.MULTILINE) or ["starting"]
    stage = "too late" if code == 0 else "writing" if moments[0].pattern else stages[-1]
    if rng.random() < AGAIN:
        moments.append(Moment.drawn(rng, seconds))
        resumed(runner, moments[1])
    code, heard = resumed(runner, None)
    if code:
        raise RuntimeError(f"resumed after {moments}: exit {code}\n{heard}")
    return stage, moments


def resumed(runner: Runner, until: Moment | None) -> tuple[int, str]:
    """Go on as the messages say."""
    code, heard = runner.run("--resume", until=until)
    if code == 2 and "there is no run to resume" in heard:
        return runner.run(until=until)
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
    lines, stages, wrong = ["| run | killed in | after | same bytes |", "|---:|---|---|---|"], Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        whole = Runner(args.model, args.options, Path(scratch))
        code, heard = whole.run()
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = spent.ru_utime + spent.ru_stime
        if code:
            raise RuntimeError(heard)
        wanted = whole.outcome()
        print(f"seed {args.seed}, uninterrupted: {seconds:.1f} s of processor time\n" + "\n".join(lines), flush=True)
        for i in range(args.kills):
            rng = np.random.default_rng([args.seed, i])
            with tempfile.TemporaryDirectory(prefix="kills-") as place:
                runner = Runner(args.model, args.options, Path(place))
                stage, moments = finished(runner, rng, seconds)
                same = [name for name, value in runner.outcome().items() if value != wanted[name]] or runner.left()
            stages[stage] += 1
            wrong += bool(same)
            after = ", ".join(map(str, moments))
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
