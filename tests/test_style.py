"""The linters are part of the one command that runs all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_linter_finds_nothing(command: list[str]) -> None:
    found = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_linter_can_fail(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import os\n", encoding="utf-8")
    config = ["--config", str(ROOT / "pyproject.toml")]
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *config, str(tmp_path)], capture_output=True, check=False
    )
    assert found.returncode == 1
