"""The documentation: what its pages tell the reader to type runs, and every option is on its page."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from onnx_amc.cli import main
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
    if page == README:  # which speaks of the reader's own files
        shutil.copy(ROOT / "models" / "digits_mlp.onnx", tmp_path / "model.onnx")
        shutil.copy(ROOT / "models" / "digits_mlp.npz", tmp_path / "calibration.npz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
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


def test_every_field_of_a_runs_files_is_on_its_page(tmp_path: Path) -> None:
    shutil.copy(ROOT / "models" / "digits_mlp.onnx", tmp_path / "model.onnx")
    shutil.copy(ROOT / "models" / "digits_mlp.npz", tmp_path / "model.npz")
    found: set[str] = set()
    for more in (["--flops", "0.6"], ["--max-drop", "3"], ["--granularity", "weight", "--params", "0.5", "--int8"]):
        words = ["compress", str(tmp_path / "model.onnx"), *more, "--policy", "uniform", "--no-recover", "--quiet"]
        assert main([*words, "-o", str(tmp_path / "out.onnx")]) == 0
        record, plan = (json.loads((tmp_path / "out.run" / f"{name}.json").read_text()) for name in ("record", "plan"))
        found |= {*record, *record["original"], *record["checks"], *record["seconds"], *plan}
        found |= {key for entry in [*plan.get("groups", []), *plan.get("weights", [])] for key in entry}
    named = set(re.findall(r"[`\"](\w+)[`\"]", (DOCS / "files.md").read_text(encoding="utf-8")))
    assert {"macs", "masked_equals_cut", "max_drop", "slices", "elements", "int8"} <= found
    assert found <= named, f"docs/files.md does not tell of {sorted(found - named)}"


@pytest.mark.parametrize("section", ["How it works", "What works and what does not"])
def test_the_documentation_says_of_it_what_the_readme_says(section: str) -> None:
    text = README.read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0].strip()
    absolute = text.replace("](benchmarks/", "](https://github.com/onnx-amc/onnx-amc/blob/main/benchmarks/")
    assert len(text) > 1_000
    assert absolute in (DOCS / "how-it-works.md").read_text(encoding="utf-8")
