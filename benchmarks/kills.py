"""Runs killed by `kill -9` at random moments and then resumed end with the same bytes as the run that nobody stopped.

    python benchmarks/kills.py [--kills 30] [--seed 0] [--model ../models/digits_resnet.onnx] [--options "..."] [--out FILE.md]

Analysis, calibration, search, recovery and writing are killed in turn, each at a random moment of the processor time that it takes
in the uninterrupted run, which other load does not stretch; writing shortly after a file of the result has appeared. Two in three
are killed again while they resume, in a phase drawn at random. A run that ends before its moment comes is begun anew with another
moment. Where nothing had been written yet, the command without `--resume` is what its message asks for. Compared are model and
plan, byte by byte, and that neither lock, state of a training nor temporary file is left.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
OPTIONS = "--flops 0.5 --episodes 8 --recover --recover-epochs 3"
AGAIN = 2 / 3
"""Share of runs that are killed while they resume, too."""

STAGES = {
    "analysis": "analyse",
    "calibration": "calibrate",
    "search": "sensitivity",
    "recovery": "recover",
    "end": "latency",
}
"""What a run says as it enters a phase."""

PHASES = (*list(STAGES)[:-1], "writing")
WRITTEN = (
    ".out.onnx.*.tmp",
    "out.onnx",
    "out.run/.plan.json.*.tmp",
    "out.run/plan.json",
    "out.run/record.json",
    "out.run/details.json",
)
"""Files of the result, in turn."""


def processor_time(pid: int) -> float:
    """Seconds that a process has had so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Moment:
    """When a run is killed.

    Args:
        phase: In which.
        seconds: After its begin, of processor time; in the writing of wall time.
        pattern: Of the file that the writing is waited for.

    """

    phase: str
    seconds: float
    pattern: str = ""

    @staticmethod
    def drawn(rng: np.random.Generator, phase: str, lengths: Mapping[str, float]) -> Moment:
        """One at random, in a phase of which the processor time is known."""
        if phase == "writing":
            return Moment(phase, float(rng.exponential(0.003)), WRITTEN[int(rng.integers(len(WRITTEN)))])
        return Moment(phase, float(rng.uniform(0.0, lengths[phase])))

    def __str__(self) -> str:
        """As it is printed."""
        return f"{self.phase}, {self.seconds:.3f} s after {self.pattern or 'its begin'}"


class Watch:
    """Follows a running command through its phases.

    Args:
        pid: Of the process.
        folder: Where its files are.
        heard: What it writes to stderr.

    """

    def __init__(self, pid: int, folder: Path, heard: Path) -> None:
        self.pid, self.folder, self.heard = pid, folder, heard
        self.begun = dict[str, float]()

    def look(self) -> None:
        """Note the processor time at which phases begin."""
        said = self.heard.read_text()
        for phase, stage in STAGES.items():
            if phase not in self.begun and re.search(rf"^{stage} \.\.\.", said, re.MULTILINE):
                self.begun[phase] = processor_time(self.pid)

    def reached(self, moment: Moment) -> bool:
        """Whether it has come."""
        if moment.pattern:
            if not any(self.folder.glob(moment.pattern)):
                return False
            time.sleep(moment.seconds)
            return True
        begun = self.begun.get(moment.phase)
        return begun is not None and processor_time(self.pid) >= begun + moment.seconds


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

    def run(self, *more: str, until: Moment | None = None) -> tuple[int, str, dict[str, float]]:
        """Exit code, negative where it was killed; stderr; and the processor time at which each phase began."""
        argv = [sys.executable, "-m", "onnx_amc", "compress", str(self.model), *shlex.split(self.options)]
        argv += ["-o", str(self.folder / "out.onnx"), *more]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        heard = self.folder / "stderr"
        with heard.open("w") as file, subprocess.Popen(argv, stdout=file, stderr=file, env=environment) as child:
            watch = Watch(child.pid, self.folder, heard)
            while child.poll() is None:
                watch.look()
                if until is not None and watch.reached(until):
                    os.kill(child.pid, signal.SIGKILL)
                    break
                time.sleep(0.001)
        return child.returncode, heard.read_text(), watch.begun

    def outcome(self) -> dict[str, bytes]:
        """What must be the same."""
        return {name: (self.folder / name).read_bytes() for name in ("out.onnx", "out.run/plan.json")}

    def clear(self) -> None:
        """Remove all that runs have left."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def left(self) -> list[str]:
        """What must not be there when all is done."""
        files = [p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()]
        return sorted(f for f in files if f.endswith((".tmp", "/lock", ".npz")))


def finished(runner: Runner, rng: np.random.Generator, phase: str, lengths: Mapping[str, float]) -> list[Moment]:
    """Kill a run once or twice and let it finish; the moments."""
    while True:
        moments = [Moment.drawn(rng, phase, lengths)]
        code, _, _ = runner.run(until=moments[0])
        if code < 0:
            break
        runner.clear()
    if rng.random() < AGAIN:
        moments.append(Moment.drawn(rng, PHASES[int(rng.integers(len(PHASES)))], lengths))
        resumed(runner, moments[1])
    code, heard = resumed(runner, None)
    if code:
        raise RuntimeError(f"resumed after {moments}: exit {code}\n{heard}")
    return moments


def resumed(runner: Runner, until: Moment | None) -> tuple[int, str]:
    """Go on as the messages say."""
    code, heard, _ = runner.run("--resume", until=until)
    if code == 2 and "there is no run to resume" in heard:
        code, heard, _ = runner.run(until=until)
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
    lines, wrong = ["| run | killed in | same bytes |", "|---:|---|---|"], 0
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        whole = Runner(args.model, args.options, Path(scratch))
        code, heard, begun = whole.run()
        if code:
            raise RuntimeError(heard)
        lengths = {
            phase: end - begin for (phase, begin), end in zip(begun.items(), [*begun.values()][1:], strict=False)
        }
        wanted, told = whole.outcome(), ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in lengths.items())
        print(f"seed {args.seed}, processor time uninterrupted: {told}\n" + "\n".join(lines), flush=True)
        for i in range(args.kills):
            with tempfile.TemporaryDirectory(prefix="kills-") as place:
                runner = Runner(args.model, args.options, Path(place))
                moments = finished(runner, np.random.default_rng([args.seed, i]), PHASES[i % len(PHASES)], lengths)
                same = [name for name, value in runner.outcome().items() if value != wanted[name]] or runner.left()
            wrong += bool(same)
            lines.append(f"| {i} | {'; then '.join(map(str, moments))} | {'yes' if not same else ', '.join(same)} |")
            print(lines[-1], flush=True)
    summary = f"{args.kills - wrong} of {args.kills} the same (seed {args.seed}; processor time uninterrupted: {told})"
    print(summary)
    if args.out:
        args.out.write_text("\n".join([*lines, "", summary]) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
