"""The documentation: what its pages tell the reader to type runs, and every option is on its page."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest

import onnx_amc
from onnx_amc import errors, training
from onnx_amc.cli import main
from onnx_amc.config import Settings
from onnx_amc.delivery import Result
from onnx_amc.listener import Listener
from onnx_amc.options import parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUN = {"python", "bash"}


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Language, file name or nothing, and text of every block of a page."""
    return [(m[1], m[2] or "", m[3]) for m in BLOCK.finditer(page.read_text(encoding="utf-8"))]


WITH_EXAMPLES = [p for p in PAGES if any(language in RUN for language, _, _ in blocks(p))]


@pytest.mark.filterwarnings("ignore")  # exporters warn of themselves
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda p: p.stem)
def test_what_a_page_tells_to_type_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.stem == "keras" and find_spec("keras") is None:
        pytest.skip("Keras is not installed")
    shutil.copytree(ROOT / "models", tmp_path / "models")
    if page.stem in {"README", "errors"}:  # which speak of the reader's own files
        shutil.copy(ROOT / "models" / "digits_mlp.onnx", tmp_path / "model.onnx")
        shutil.copy(ROOT / "models" / "digits_mlp.npz", tmp_path / "calibration.npz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(training, "MOST_EPOCHS", 3)  # what is typed is held to run, not how far a training goes
    names: dict[str, object] = {}
    for language, title, text in blocks(page):
        if title:
            (tmp_path / title).write_text(text)
        elif language == "python":
            exec(compile(text, f"{page.name}", "exec"), names)
        elif language == "bash":
            for line in text.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "onnx-amc", f"{page.name} tells to type {line!r}, which no test runs"
                assert main(arguments) == 0, line


def test_pages_with_examples_were_found() -> None:
    assert {"README", "pytorch", "keras", "detector", "transformer", "tabular", "pipelines", "research"} <= {
        p.stem for p in WITH_EXAMPLES
    }


def test_every_option_is_on_its_page() -> None:
    text = (DOCS / "options.md").read_text(encoding="utf-8")
    commands = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    shown = {
        option
        for command in commands.values()
        for action in command._actions
        for option in action.option_strings
        if option.startswith("--") and action.help != argparse.SUPPRESS and option != "--help"
    }
    assert len(shown) > 30
    assert not sorted(option for option in shown if not re.search(rf"[`\[]{option}(?![\w-])", text))
    invented = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) - shown - {"--help"}
    assert not invented


def test_the_pages_build(tmp_path: Path) -> None:
    """Every link between pages leads somewhere, and every page is in the menu."""
    pytest.importorskip("mkdocs", reason="MkDocs is not installed")
    pytest.importorskip("material", reason="MkDocs Material is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "tutorials" / "pytorch" / "index.html").stat().st_size > 10_000


ELSEWHERE = {"approximate", "preset", "criterion", "memory", "node", "latency_table"}
"""Fields of the page's tables that only other runs write: with such options, on such networks, by time."""


def fields_of(document: object) -> set[str]:
    """Names of all fields, those within fields too."""
    if isinstance(document, dict):
        return set(document).union(*map(fields_of, document.values()))
    return set().union(*map(fields_of, document)) if isinstance(document, list) else set()


def test_the_page_tells_of_the_fields_of_a_runs_files_and_of_no_others(tmp_path: Path) -> None:
    shutil.copy(ROOT / "models" / "digits_mlp.onnx", tmp_path / "model.onnx")
    shutil.copy(ROOT / "models" / "digits_mlp.npz", tmp_path / "model.npz")
    found: set[str] = set()
    trained = ["--recover", "--recover-epochs", "1"]
    for more in (["--flops", "0.6,0.4", "--no-refit"], ["--channels", "0.5", "--no-refit", *trained],
                 ["--max-drop", "3", "--no-recover"], ["--flops", "0.6", "--episodes", "2", "--no-recover", "--policy", "random"],
                 ["--granularity", "weight", "--params", "0.5", "--int8", "--no-recover"]):  # fmt: skip
        words = ["compress", str(tmp_path / "model.onnx"), "--policy", "uniform", *more, "--quiet"]
        assert main([*words, "-o", str(tmp_path / "out.onnx")]) == 0
        for path in (tmp_path / "out.run").rglob("*.json"):
            if path.name in {"plan.json", "record.json"}:
                document = json.loads(path.read_text())
                if isinstance(course := document.get("recover"), dict) and "course" in course:
                    course["course"] = {}  # for `apply` alone
                found |= fields_of(document)
    page = (DOCS / "files.md").read_text(encoding="utf-8").split("## `--json")[0]
    tables = "\n".join(line for line in page.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"[`\"](\w+)[`\"]", page))
    assert {"masked_equals_cut", "max_drop", "slices", "elements", "int8", "held_out", "front", "shares"} <= found
    assert found <= named, f"docs/files.md does not tell of {sorted(found - named)}"
    told = {name for line in tables.splitlines() for name in re.findall(r"`([a-z_]+\w*)`", line.split(" | ")[0])}
    assert told - ELSEWHERE <= found, f"docs/files.md tells of {sorted(told - ELSEWHERE - found)}"
    assert not ELSEWHERE & found


def test_the_page_tells_of_the_fields_that_other_commands_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, out = (
        str(p) for p in (ROOT / "models" / "digits_mlp.onnx", ROOT / "models" / "digits_mlp.npz", tmp_path / "o.onnx")
    )
    page = (DOCS / "files.md").read_text(encoding="utf-8").split("## `--json FILE` of the other")[1]
    rows = {line.split("`")[1]: line.split(" | ")[1] for line in page.splitlines() if line.startswith("| `")}
    plain = ["--policy", "uniform", "--no-refit", "--quiet"]
    assert main(["compress", model, "--flops", "0.5", *plain, "-o", out]) == 0
    commands = [["inspect", model], ["apply", model, str(tmp_path / "o.run/plan.json"), "-o", out],
                ["evaluate", model, "--data", data], ["bench", model, "--seconds", "0.05"]]  # fmt: skip
    for command in commands:
        capsys.readouterr()
        assert main([*command, "--json", "-"]) == 0
        found = json.loads(capsys.readouterr().out)
        found["fed"] = []
        assert fields_of(found) | {"fed"} == set(re.findall(r"`(\w+)`", rows[command[0]])) | {"fed"}, command[0]


def test_every_public_name_is_on_the_page_for_python() -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    rows = [line[2:].split(" | ") for line in page.splitlines() if line.startswith("| `")]
    first = {name: row for row in rows for name in re.findall(r"`(\w+)", row[0])}
    called = [getattr(onnx_amc, name) for name in onnx_amc.__all__]
    functions = [f for f in called if inspect.isfunction(f)]
    assert len(functions) >= 5
    for function in functions:
        told = re.findall(r"(\*{0,2}\w+)(?:=([\w.\"]+))?(?=[,)])", first[function.__name__][0])
        taken = inspect.signature(function).parameters.values()
        assert [name.lstrip("*") for name, _ in told] == [p.name for p in taken], function
        for (_, shown), parameter in zip(told, taken, strict=True):
            assert not shown or shown.replace('"', "'") == repr(parameter.default), (function, parameter)
    for error in set(called) - set(functions) - {errors.AmcError}:
        assert error.exit_code == 2 or f"`exit_code` {error.exit_code}" in " ".join(first[error.__name__]), error
    members = {*vars(Listener), *vars(Result), *(f.name for f in fields(Result))}
    assert {name for name in members if not name.startswith("_")} <= first.keys()


def test_every_setting_is_on_the_page_for_python_with_its_default() -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8").split("## Settings")[1].split("## Listener")[0]
    told: dict[str, str] = {}
    for line in page.splitlines():
        if line.startswith("| `"):
            names, values = (re.findall(r"`([^`]+)`", cell) for cell in line.split(" | ")[:2])
            told |= zip(names, values if len(values) > 1 else values * len(names), strict=True)
    of_compress = {"budget", "max_drop"}
    assert told == {f.name: repr(f.default) for f in fields(Settings) if f.name not in of_compress}


@pytest.mark.parametrize("section", ["How it works", "What works and what does not"])
def test_the_documentation_says_of_it_what_the_readme_says(section: str) -> None:
    text = README.read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0].strip()
    absolute = text.replace("](benchmarks/", "](https://github.com/onnx-amc/onnx-amc/blob/main/benchmarks/")
    assert len(text) > 1_000
    assert absolute in (DOCS / "how-it-works.md").read_text(encoding="utf-8")
