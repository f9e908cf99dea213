"""Who may import whom, who may print, how long things may get; each rule is shown a source that breaks it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREE = {
    path.relative_to(ROOT / "onnx_amc").as_posix(): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "onnx_amc").rglob("*.py"))
}

MAY = {
    "errors": set(),
    "files": {"errors"},
    "archive": {"errors"},
    "fit": {"errors"},
    "graph": {"errors", "files"},
    "search": {"errors", "files", "archive"},
    "report": {"errors", "files"},
    "prune": {"errors", "files", "graph", "fit"},
    "run": {"errors", "files", "archive", "graph", "fit", "prune"},
    "recover": {"errors", "files", "archive", "graph", "fit", "prune", "run"},
}
"""What each package may import besides itself."""

ORDER = ["config", "rundir", "inspection", "granularity", "delivery", "listener", "intake", "builder", "thinner", "timing",
         "training", "quantising", "searching", "details", "compression", "guarantee", "pipeline", "envs", "__init__", "display",
         "options", "claims", "cli", "__main__"]  # fmt: skip
"""The modules above the packages: each may import all packages, and of these those before it."""

DOORS = {
    "torch": ("search/agent.py", "recover/"),
    "stable_baselines3": ("search/agent.py",),
    "onnx_graphsurgeon": ("graph/",),
    "onnxruntime": ("graph/", "run/"),
    "ray": ("run/parcel.py", "run/relay.py"),
    "rich": ("display.py",),
    "vl_convert": ("report/",),
    "jinja2": ("report/",),
    "pyarrow": ("run/tables.py",),
    "datasets": ("run/hugging.py",),
}
"""Where the heavy packages come in; nowhere else."""

SHUT = {"onnx": ("fit/", "search/")}
"""Who has never heard of a package."""

MODULE, FUNCTION = 400, 80
"""Lines at most."""


def imports(source: str) -> Iterator[str]:
    """Every module or name that is imported, wherever in the file, dotted; a relative one begins with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def part(path: str) -> str:
    """The package or top module that a file belongs to."""
    return path.split("/", maxsplit=1)[0].removesuffix(".py")


def directions(path: str, source: str) -> Iterator[str]:
    """Imports go one way."""
    me, parts = part(path), {part(p) for p in TREE}
    if me not in MAY and me not in ORDER:
        yield "it has no place in the order"
        return
    allowed = {me, *MAY.get(me, [*MAY, *ORDER[: ORDER.index(me) if me in ORDER else 0]])}
    for name in imports(source):
        root, _, rest = name.partition(".")
        inner = rest.split(".")[0]
        target = inner if inner in parts else "__init__"
        if not root or (root == "onnx_amc" and target not in allowed):
            yield f"imports {name}"


def doors(path: str, source: str) -> Iterator[str]:
    """Heavy packages have one door each."""
    for name in imports(source):
        package = name.split(".")[0]
        if not path.startswith(DOORS.get(package, "")) or path.startswith(SHUT.get(package, ("//",))):
            yield f"imports {name}"


def silence(path: str, source: str) -> Iterator[str]:
    """Only the command line prints."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            and path != "cli.py"
        ):
            yield f"prints in line {node.lineno}"


def lengths(_path: str, source: str) -> Iterator[str]:
    """No long file, no long function."""
    if (lines := len(source.splitlines())) > MODULE:
        yield f"has {lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > FUNCTION:
                yield f"{node.name} has {lines} lines"


RULES = {rule.__name__: rule for rule in (directions, doors, silence, lengths)}


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps_the_rule(rule: str) -> None:
    assert [f"{path}: {fault}" for path, source in TREE.items() for fault in RULES[rule](path, source)] == []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        ("directions", "graph/load.py", "from onnx_amc.prune.plan import Plan"),
        ("directions", "graph/load.py", "import onnx_amc.fit.solve"),
        ("directions", "fit/solve.py", "from onnx_amc import graph"),
        ("directions", "prune/refit.py", "def f():\n    from onnx_amc.run import capture"),
        ("directions", "run/capture.py", "from onnx_amc.search.space import Space"),
        ("directions", "search/loop.py", "if TYPE_CHECKING:\n    from onnx_amc.run.score import Score"),
        ("directions", "search/loop.py", "from onnx_amc.config import Settings"),
        ("directions", "search/loop.py", "from . import space"),
        ("directions", "search/loop.py", "from onnx_amc import compress"),
        ("directions", "errors.py", "from onnx_amc.graph.load import Model"),
        ("directions", "builder.py", "from onnx_amc.pipeline import compress"),
        ("directions", "pipeline.py", "import onnx_amc.cli"),
        ("directions", "utils/helpers.py", ""),
        ("doors", "search/loop.py", "def f():\n    import torch"),
        ("doors", "agent.py", "from stable_baselines3.common import buffers"),
        ("doors", "run/correct.py", "import onnx_graphsurgeon as gs"),
        ("doors", "prune/refit.py", "import onnxruntime as ort"),
        ("doors", "fit/solve.py", "from onnx import numpy_helper"),
        ("silence", "pipeline.py", "def f():\n    print('hello')"),
        ("lengths", "graph/rules.py", "x = 0\n" * 401),
        ("lengths", "graph/rules.py", "class A:\n  def f():\n" + "    x = 0\n" * 80),
    ],
)
def test_the_rule_can_be_broken(rule: str, path: str, source: str) -> None:
    assert list(RULES[rule](path, source))


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (
            "directions",
            "run/capture.py",
            "from onnx_amc.graph import load\nfrom onnx_amc.run.data import Dataset\nimport numpy",
        ),
        ("directions", "cli.py", "from onnx_amc import pipeline, __version__"),
        ("doors", "search/agent.py", "import torch"),
        ("silence", "cli.py", "print('hello')"),
        ("lengths", "graph/rules.py", "x = 0\n" * 400),
        ("lengths", "graph/rules.py", "def f():\n" + "    x = 0\n" * 79),
    ],
)
def test_the_rule_forbids_no_more(rule: str, path: str, source: str) -> None:
    assert not list(RULES[rule](path, source))


# ---- what is loaded -----------------------------------------------------------------------------------------------

LEARNING = {"torch", "stable_baselines3"}
HEAVY = LEARNING | {"numpy", "onnx", "onnxruntime", "scipy", "rich", "gymnasium"}
MODEL = ROOT / "models" / "digits_mlp.onnx"


def loaded(*command: str) -> set[str]:
    """Top packages that a fresh Python loads for a command."""
    found = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip().split(".")[0] for line in found.stderr.splitlines()}


@pytest.mark.parametrize(
    ("command", "unwanted"),
    [
        (["-c", "import onnx_amc.cli"], HEAVY),
        (["-m", "onnx_amc", "--help"], HEAVY),
        (["-m", "onnx_amc", "compress", "--help"], HEAVY),
        (["-c", "import onnx_amc, onnx_amc.pipeline"], LEARNING),
        (["-c", f"import onnx_amc; onnx_amc.inspect({str(MODEL)!r})"], LEARNING),
    ],
    ids=["import cli", "--help", "compress --help", "import pipeline", "inspect"],
)
def test_what_does_not_learn_loads_no_torch(command: list[str], unwanted: set[str]) -> None:
    found = loaded(*command)
    assert "onnx_amc" in found
    assert not found & unwanted


def test_a_loaded_torch_would_be_noticed() -> None:
    assert loaded("-c", "import onnx_amc.search.agent") >= LEARNING


FIRST = """
import random
import sys
import numpy as np
import onnx_amc
from onnx_amc.run.crew import Crew

begin, found = Crew.begin, []
before = random.getstate(), np.random.get_state()[1].tolist()

def watched(*args):
    found.append({"torch._dynamo", "stable_baselines3"} <= sys.modules.keys())
    return begin(*args)

Crew.begin = watched
onnx_amc.compress(MODEL, flops=0.5, episodes=2, recover=False)
print(len(found) > 10, all(found), (random.getstate(), np.random.get_state()[1].tolist()) == before)
"""


@pytest.fixture(scope="module")
def first_search() -> list[str]:
    """What is said of the first search of a process, which imports what an agent needs."""
    script = f"MODEL = {str(MODEL)!r}{FIRST}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()[-3:]


def test_nothing_heavy_is_imported_beside_running_threads(first_search: list[str]) -> None:
    assert first_search[:2] == ["True", "True"]


def test_the_first_search_leaves_the_caller_s_generators_as_they_were(first_search: list[str]) -> None:
    assert first_search[2] == "True"
