"""Line coverage and mutation score: how much of a sample of small faults in the code the tests notice.

    pip install -e ".[test,benchmarks]"
    python benchmarks/mutation.py [--mutants 100] [--seed 0] [--only onnx_amc/prune ...] [--work FOLDER] [--out FILE.md]

The whole suite runs once under `coverage`, which tells what lines each test reaches and how long it takes. Then places are drawn
evenly from all that Cosmic Ray can change in the analysis, the surgery and the refit, as far as the tests reach it; one change is
made at each in a copy of the project, and the tests that reach the line are run, the quickest first and for a minute at most in
all. A change that makes a test fail, or run beyond its time, is killed. What it says is a lower bound: the tests that did not fit
into the minute might have noticed, and some changes make no difference to anybody. With `--work` the folder is kept, and what is
there is not done again.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from coverage import CoverageData

ROOT = Path(__file__).parents[1]
PARTS = ("onnx_amc/graph/", "onnx_amc/prune/", "onnx_amc/fit/")
BUDGET = 60.0
"""Seconds of tests, as the run under coverage took them, that a change is given."""

RC = """[run]
source = onnx_amc
parallel = true
concurrency = thread, multiprocessing
dynamic_context = test_function
patch = subprocess
data_file = {folder}/data/.coverage
"""


@dataclass(frozen=True)
class Mutant:
    """One change.

    Args:
        module: File, from the project's root.
        line: Its first line there, from 1.
        operator: Cosmic Ray's name of it.
        occurrence: Which one of those that this operator could make in the file, from 0.

    """

    module: str
    line: int
    operator: str
    occurrence: int


@dataclass(frozen=True)
class Reach:
    """What the tests reach.

    Args:
        lines: Module -> line -> tests that run it; none for what runs at import.
        seconds: Of each test that passed.
        covered: Share of the lines.

    """

    lines: Mapping[str, Mapping[int, frozenset[str]]]
    seconds: Mapping[str, float]
    covered: float

    def tests(self, mutant: Mutant) -> list[str]:
        """The quickest tests that reach a change, within the budget; of its whole module where the line runs at import."""
        lines = self.lines[mutant.module]
        found = lines.get(mutant.line) or frozenset().union(*lines.values())
        chosen: list[str] = []
        total = 0.0
        for test in sorted(found, key=lambda t: (self.seconds.get(t, np.inf), t)):
            total += self.seconds.get(test, np.inf)
            if total > BUDGET and chosen:
                break
            chosen.append(test)
        return chosen


def project(folder: Path) -> dict[str, str]:
    """Copy what the tests need into a folder, and return the environment to run them there."""
    if not (folder / "onnx_amc").exists():
        kept = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, kept.split("\0")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        if (ROOT.parent / "shared").exists():
            (folder.parent / "shared").symlink_to((ROOT.parent / "shared").resolve())
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def reach(folder: Path, env: dict[str, str]) -> Reach:
    """Run the suite under coverage, if that has not been done, and read what it found."""
    rc, junit, report = folder / "cov.rc", folder / "junit.xml", folder / "coverage.json"
    if not report.exists():
        rc.write_text(RC.format(folder=folder))
        (folder / "data").mkdir(exist_ok=True)
        command = [sys.executable, "-m", "coverage"]
        suite = ["-m", "pytest", f"--junitxml={junit}", "-o", "junit_family=xunit1"]
        subprocess.run([*command, "run", f"--rcfile={rc}", *suite], cwd=folder, env=env, check=False)
        subprocess.run([*command, "combine", f"--rcfile={rc}"], cwd=folder, env=env, check=True)
        subprocess.run([*command, "json", f"--rcfile={rc}", "-o", report], cwd=folder, env=env, check=True)
    data = CoverageData(str(folder / "data" / ".coverage"))
    data.read()
    seconds: dict[str, float] = defaultdict(float)
    failed = set()
    for case in ET.parse(junit).getroot().iter("testcase"):
        name = f"{case.get('file')}::{str(case.get('name')).split('[')[0]}"
        seconds[name] += float(case.get("time") or 0.0)
        failed |= {name} if any(case.iter("failure")) or any(case.iter("error")) else set()
    lines: dict[str, dict[int, frozenset[str]]] = {}
    for file in data.measured_files():
        found = data.contexts_by_lineno(file)
        tests = {line: frozenset(filter(None, map(_node, names))) - failed for line, names in found.items()}
        lines[str(Path(file).relative_to(folder))] = tests
    totals = json.loads(report.read_text())["totals"]
    return Reach(lines, {k: v for k, v in seconds.items() if k not in failed}, totals["percent_covered"] / 100)


def _node(context: str) -> str | None:
    """`test_x.test_y` of coverage as pytest's name of it."""
    file, _, rest = context.partition(".")
    return f"tests/{file}.py::{rest.replace('.', '::')}" if file.startswith("test_") and rest else None


def changes(module: str, code: str) -> Iterator[tuple[tuple[Any, ...], Mutant]]:
    """All that can be changed in a module, with the place of each; annotations are not looked at, for nothing runs them."""
    notes: set[tuple[int, int]] = set()
    for node in ast.walk(ast.parse(code)):
        for note in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            for part in ast.walk(note) if note is not None else ():
                if isinstance(part, ast.expr):
                    notes |= {(part.lineno, part.col_offset), (part.lineno, (part.end_col_offset or 0) + 1)}
    nodes = list(ast_nodes(get_ast(code)))
    for name in plugins.operator_names():
        if name.endswith(("VariableReplacer", "VariableInserter")):  # they need names of variables
            continue
        operator, count = plugins.get_operator(name)(), 0
        for node in nodes:
            for start, end in operator.mutation_positions(node):
                if start not in notes:
                    yield (start, end), Mutant(module, start[0], name, count)
                count += 1


def sample(folder: Path, known: Reach, number: int, seed: int, only: Sequence[str]) -> list[Mutant]:
    """Draw places evenly, and one change at each."""
    places: dict[tuple[Any, ...], list[Mutant]] = defaultdict(list)
    for module in sorted(known.lines):
        if module.startswith(tuple(only)):
            for place, mutant in changes(module, (folder / module).read_text()):
                if mutant.line in known.lines[module]:
                    places[module, *place].append(mutant)
    rng, keys = np.random.default_rng(seed), sorted(places)
    drawn = rng.choice(len(keys), min(number, len(keys)), replace=False)
    return [places[keys[i]][rng.integers(len(places[keys[i]]))] for i in drawn]


def verdict(folder: Path, env: dict[str, str], known: Reach, mutant: Mutant) -> str:
    """Make a change, run the tests that reach it, and put the file back."""
    path = folder / mutant.module
    code = path.read_text()
    changed = mutate_code(code, plugins.get_operator(mutant.operator)(), mutant.occurrence)
    tests = known.tests(mutant)
    if changed is None or not tests:
        return "no test"
    path.write_text(changed)
    allowed = 60 + 5 * sum(known.seconds.get(test, BUDGET) for test in tests)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
            cwd=folder, env=env, check=False, capture_output=True, timeout=allowed,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        path.write_text(code)
    return "survived" if ended.returncode == 0 else "killed"


def table(known: Reach, found: list[dict[str, Any]]) -> str:
    """The score, and what nothing noticed."""
    counts = Counter(f["verdict"] for f in found)
    killed = counts["killed"] + counts["timeout"]
    lines = ["| | |", "|---|---|", f"| line coverage | {known.covered:.1%} |", f"| changes | {len(found)} |",
             f"| killed | {killed} ({killed / max(len(found), 1):.0%}), {counts['timeout']} by time |", "",
             "Not noticed:", ""]  # fmt: skip
    missed = (f for f in found if f["verdict"] in {"survived", "no test"})
    lines += [f"- {f['module']}:{f['line']} {f['operator'].removeprefix('core/')}" for f in missed]
    return "\n".join(lines)


def main() -> int:
    """Run the suite, then the changes, and print the table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=PARTS, help="how the paths of the modules begin")
    parser.add_argument("--work", type=Path, help="where the copy of the project is kept")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = ((args.work or Path(scratch)) / "project").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        env = project(folder)
        known = reach(folder, env)
        log = folder / "verdicts.jsonl"
        found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        done = {tuple(f[key] for key in ("module", "operator", "occurrence")) for f in found}
        for mutant in sample(folder, known, args.mutants, args.seed, args.only):
            if (mutant.module, mutant.operator, mutant.occurrence) not in done:
                found.append({**asdict(mutant), "verdict": verdict(folder, env, known, mutant)})
                with log.open("a") as file:
                    file.write(json.dumps(found[-1]) + "\n")
                print(f"{len(found)} of {args.mutants}: {found[-1]}", file=sys.stderr, flush=True)
        print(table(known, found))
        if args.out:
            args.out.write_text(table(known, found) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
