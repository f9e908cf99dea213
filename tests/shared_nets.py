"""Networks of ../shared, which the project does not ship: tests that need them skip, saying so, where they are absent."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest

SHARED = Path(__file__).parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the networks of ../shared are not here")


def hydrated(name: str) -> onnx.ModelProto:
    """A graph of the zoo with weights drawn for it, or a real network."""
    real = SHARED / "models" / f"{name}.onnx"
    if real.exists():
        return onnx.load(real)
    spec = importlib.util.spec_from_file_location("hydrate", SHARED / "zoo" / "hydrate.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError("hydrate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: onnx.ModelProto = module.hydrate(str(SHARED / "zoo" / f"{name}.onnx"))
    return found
