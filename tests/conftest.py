"""The same examples on every machine and at every run, and nothing left in the user's folders."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import scipy.linalg  # noqa: F401  brings a BLAS of its own
from feeds import Write
from hypothesis import settings
from threadpoolctl import threadpool_limits

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

MODELS = Path(__file__).parents[1] / "models"

blas = threadpool_limits(limits=1, user_api="blas")
"""As `compress` and `apply` have it: what tests call beneath them took six times as long where BLAS was given all cores."""

cache = tempfile.mkdtemp(prefix="onnx-amc-tests-")
os.environ["XDG_CACHE_HOME"] = cache
atexit.register(shutil.rmtree, cache, ignore_errors=True)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module of a name of its own into the current directory and return the name."""
    monkeypatch.chdir(tmp_path)
    made: list[str] = []

    def module(body: str) -> str:
        made.append(f"amc_{tmp_path.name}_{len(made)}")
        Path(f"{made[-1]}.py").write_text("import numpy as np\n" + textwrap.dedent(body))
        return made[-1]

    yield module
    assert str(tmp_path) not in sys.path, "the current directory is on the path only while the data is read"
    for name in made:
        sys.modules.pop(name, None)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the MLP and its sidecar."""
    for name in ("digits_mlp.onnx", "digits_mlp.npz"):
        (tmp_path / name).write_bytes((MODELS / name).read_bytes())
    return tmp_path
