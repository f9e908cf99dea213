"""Mutated models, data files and plans through the command line: each is refused with a remedy, or works, soon, in little memory.

    python benchmarks/fuzz.py [--models 5000] [--data 1000] [--plans 1000] [--first 0] [--seed 0] [--keep FOLDER] [--out FILE.md]

Every case is a function of seed and number, so that one is repeated by `--models 1 --first NUMBER`. Cases run in a worker process
with limits, which is begun again when it dies. What is counted: `refused` (exit code 2 or 3), `worked` (0), `limit` (refused for
want of memory), and as failures `fault` (anything else, with its traceback), `crash` (a signal: native code), `hang` (beyond 60 s),
`memory` (beyond 4 GB) and `litter` (a file written for what was refused). A failed input is kept in FOLDER.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import queue
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from fuzz_data import odd_data  # noqa: E402
from fuzz_models import NUMBERS, Draw, chance, flipped, mutated, pick  # noqa: E402

from onnx_amc.cli import main as command_line  # noqa: E402

KINDS = ("models", "data", "plans")
SECONDS, MEMORY, ADDRESSES = 60.0, 4 * 2**30, 6 * 2**30
"""Limits of a case: wall time, resident memory, and addresses, of which onnxruntime and torch reserve more than they use."""


def surroundings(folder: Path) -> None:
    """What paths of external data can lead to."""
    (folder.parent / "secret").write_bytes(bytes(2**16))
    (folder / "short").write_bytes(bytes(64))
    (folder / "link").symlink_to("../secret")
    os.mkfifo(folder / "pipe")


def run_model(folder: Path, rng: Draw) -> list[int]:
    """Look at a mutated model, cut half of what can be cut, and at times do all of `compress`."""
    path, out = folder / "m.onnx", folder / "out.onnx"
    path.write_bytes(mutated(rng))
    surroundings(folder)
    codes = [command(["inspect", path, "--json", folder / "i.json"])]
    if codes[0] == 0:
        groups = json.loads((folder / "i.json").read_text())["groups"]
        kept = [{"name": g["name"], "kept": list(range(0, g["channels"], 2))} for g in groups]
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        plan = {"format": 1, "model_sha256": sha, "refit": False, "groups": kept}
        (folder / "p.json").write_text(json.dumps(plan))
        codes.append(command(["apply", path, folder / "p.json", "-o", out]))
    if chance(rng, 0.04):
        options = [
            "--flops",
            "0.6",
            "--policy",
            "uniform",
            "--quiet",
            "--run-dir",
            folder / "run",
            "-o",
            folder / "c.onnx",
        ]
        codes.append(command(["compress", path, *options]))
    return codes


# ---- data ------------------------------------------------------------------------------------------------------------


def run_data(folder: Path, rng: Draw) -> list[int]:
    """Score a model on a mutated file, or on a folder of odd images."""
    network = pick(rng, ("digits_mlp", "digits_resnet"))
    return [command(["evaluate", ROOT / "models" / f"{network}.onnx", "--data", odd_data(folder, network, rng)])]


# ---- plans -----------------------------------------------------------------------------------------------------------

PLANS = {
    "plain": ["--channels", "0.5", "--policy", "uniform", "--no-refit"],
    "refit": ["--flops", "0.5", "--policy", "uniform", "--no-recover"],
    "trained": ["--flops", "0.5", "--policy", "uniform", "--recover", "--recover-epochs", "1"],
    "weights": ["--params", "0.3", "--policy", "uniform", "--granularity", "weight", "--no-refit"],
}


def plans(folder: Path) -> dict[str, Any]:
    """One of each kind."""
    found = {}
    folder.mkdir()
    for name, options in PLANS.items():
        out = ["-o", str(folder / "o.onnx"), "--run-dir", str(folder / name), "--quiet"]
        command_line(["compress", str(ROOT / "models" / "digits_mlp.onnx"), *options, *out])
        found[name] = json.loads((folder / name / "plan.json").read_text())
    return found


def spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: what holds it, and its key."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield value, key
        yield from spots(part)


def run_plan(folder: Path, rng: Draw) -> list[int]:
    """Replay a mutated plan."""
    kept = folder.parents[2] / "plans.json"
    kind = pick(rng, ("plain", "plain", "weights", "refit", "trained"))
    plan = json.loads(kept.read_text())[kind]
    for entry in plan.get("groups", []):
        del entry["slices"]  # nothing reads them
    if chance(rng, 0.15):
        text = flipped(json.dumps(plan).encode(), rng)
    else:
        values: tuple[Any, ...] = (
            *NUMBERS,
            None,
            True,
            False,
            "",
            "x",
            [],
            {},
            [[]],
            [1],
            {"a": 1},
            0.5,
            1e308,
            float("nan"),
            float("inf"),
            "9" * 5000,
        )
        top = [
            spot for spot in spots(plan) if spot[0] is plan or chance(rng, 0.005 if isinstance(spot[0], list) else 0.5)
        ]
        for _ in range(int(rng.integers(1, 4))):
            holder, key = pick(rng, top)
            if isinstance(holder, dict) and chance(rng, 0.15):
                holder.pop(key, None)
            elif key in holder if isinstance(holder, dict) else True:
                holder[key] = pick(rng, values)
        text = json.dumps(plan).encode()
    (folder / "p.json").write_bytes(text)
    return [command(["apply", ROOT / "models" / "digits_mlp.onnx", folder / "p.json", "-o", folder / "out.onnx"])]


# ---- one case ----------------------------------------------------------------------------------------------------------

RUN: dict[str, Callable[[Path, Draw], list[int]]] = {"models": run_model, "data": run_data, "plans": run_plan}
OUTPUTS = ("out.onnx", "c.onnx", "out.onnx.data", "c.onnx.data")
FINE = ("worked", "refused", "limit")
said: list[str] = []
"""What the commands of the current case wrote to stderr."""


def command(argv: list[Any]) -> int:
    """Run the command line in this process; its exit code, and that nothing was written where it is not 0."""
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard), contextlib.redirect_stdout(io.StringIO()):
        code = command_line([str(a) for a in argv])
    said.append(heard.getvalue())
    out = Path(str(argv[argv.index("-o") + 1])) if "-o" in argv else None
    if code and out is not None:
        litter = [p.name for p in out.parent.iterdir() if p.name.startswith((out.name, f".{out.name}"))]
        if litter:
            raise AssertionError(f"litter: {litter}")
    if code in {2, 3} and "->" not in said[-1]:
        raise AssertionError(f"no remedy: {said[-1]}")
    return code


def peak() -> int:
    """Bytes of resident memory at most, since it was last reset."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition("VmHWM:")[2].split()[0])


def outcome(kind: str, number: int, seed: int, folder: Path) -> tuple[str, str]:
    """What becomes of a case: a word, and what is to be said of it."""
    rng = np.random.default_rng([seed, KINDS.index(kind), number])
    Path("/proc/self/clear_refs").write_text("5")
    said.clear()
    place = folder / "in" / "here"
    place.mkdir(parents=True)
    try:
        codes = RUN[kind](place, rng)
    except MemoryError:
        return "memory", traceback.format_exc()
    except BaseException as error:  # noqa: BLE001  that is what is looked for
        return ("litter" if "litter" in str(error) else "fault"), traceback.format_exc()
    heard = "\n".join(said)
    if peak() > MEMORY:
        return "memory", f"{peak() / 2**30:.1f} GB\n{heard[-2000:]}"
    if not set(codes) <= {0, 2, 3}:
        return "fault", heard
    if any(word in heard for word in ("bad_alloc", "memory does not suffice", "allocate memory")):
        return "limit", ""
    return ("worked", "") if not any(codes) else ("refused", heard.strip().splitlines()[0] if heard.strip() else "")


def work(kind: str, numbers: range, seed: int, folder: Path) -> None:
    """Run cases and print what becomes of them, a line of JSON each."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # native code prints too
    os.chdir(folder)
    for number in numbers:
        place = folder / str(number)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        print(json.dumps([number]), file=out, flush=True)
        word, note = outcome(kind, number, seed, place)
        if word in FINE:
            shutil.rmtree(place)
        print(json.dumps([number, word, note]), file=out, flush=True)


# ---- all of them -------------------------------------------------------------------------------------------------------


def cases(kind: str, numbers: range, seed: int, folder: Path) -> Iterator[tuple[int, str, str]]:
    """Number, outcome and note of every case; a worker that dies or does not answer costs the case it was at."""
    at = numbers.start
    while at < numbers.stop:
        argv = [sys.executable, __file__, "--worker", kind, str(at), str(numbers.stop), str(seed), str(folder)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
            lines: queue.Queue[str | None] = queue.Queue()
            threading.Thread(target=_pump, args=(worker, lines), daemon=True).start()
            began = False
            while True:
                try:
                    line = lines.get(timeout=SECONDS + (30 if not began else 0))
                except queue.Empty:
                    worker.kill()
                    yield at, "hang", f"no answer in {SECONDS:.0f} s"
                    at += 1
                    break
                if line is None:
                    if at < numbers.stop:
                        yield at, "crash", f"exit {worker.wait()}"
                        at += 1
                    break
                found = json.loads(line)
                began = True
                if len(found) == 3:
                    yield found[0], found[1], found[2]
                    at = found[0] + 1


def _pump(worker: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        lines.put(line)
    lines.put(None)


def survey(kind: str, numbers: range, seed: int, keep: Path) -> tuple[Counter[str], list[str]]:
    """Run all cases of a kind; what became of them, and a line for each failure."""
    counts: Counter[str] = Counter()
    failures = []
    start = time.perf_counter()
    for number, word, note in cases(kind, numbers, seed, keep):
        counts[word] += 1
        if word not in FINE:
            last = [line for line in note.splitlines() if line.strip() and "fault of ours" not in line][-1:] or [""]
            where = [line.strip() for line in note.splitlines() if "onnx_amc/" in line][-1:]
            failures.append(f"{kind} {number}: {word}: {last[0][:160]} {' '.join(where)[-120:]}")
            print(failures[-1], flush=True)
            (keep / f"{kind}-{number}.txt").write_text(note)
    print(f"{kind}: {dict(counts)} in {time.perf_counter() - start:.0f} s", flush=True)
    return counts, failures


def main() -> int:
    """Run, print, and write the table where asked; 1 where anything failed."""
    if sys.argv[1:2] == ["--worker"]:
        kind, start, stop, seed, folder = sys.argv[2:]
        work(kind, range(int(start), int(stop)), int(seed), Path(folder))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, number in zip(KINDS, (5000, 1000, 1000), strict=True):
        parser.add_argument(f"--{kind}", type=int, default=number, metavar="N")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    words = ("worked", "refused", "limit", "fault", "crash", "hang", "memory", "litter")
    lines = [f"| seed {args.seed} | cases | {' | '.join(words)} |", f"|---|{'---:|' * (len(words) + 1)}"]
    failures = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        for kind in KINDS:
            place = (args.keep or Path(scratch)).resolve() / kind
            place.mkdir(parents=True, exist_ok=True)
            if kind == "plans" and args.plans:
                (place / "plans.json").write_text(json.dumps(plans(Path(scratch) / "made")))
            numbers = range(args.first, args.first + getattr(args, kind))
            counts, found = survey(kind, numbers, args.seed, place)
            failures += found
            lines.append(f"| {kind} | {len(numbers)} | {' | '.join(str(counts[w]) for w in words)} |")
    text = "\n".join(lines)
    print(text)
    if args.out:
        args.out.write_text("\n".join([text, *(f"- {f}" for f in failures)]) + "\n", encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
