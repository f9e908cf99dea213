"""A metric of the user's own: what the function is given, and every way in which it may fail."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import onnx_amc
from onnx_amc.cli import main

MLP = Path(__file__).parents[1] / "models" / "digits_mlp.onnx"
SIDECAR = MLP.with_suffix(".npz")

Evaluated = Callable[[str, int], str]


@pytest.fixture
def evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Evaluated:
    """Evaluate the MLP by a function `f` of a module with this body; return what is printed, or the message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def run(body: str, code: int) -> str:
        name = f"metric_{tmp_path.name}"
        sys.modules.pop(name, None)
        Path(f"{name}.py").write_text("import numpy as np\n" + textwrap.dedent(body))
        assert main(["evaluate", str(MLP), "--data", str(SIDECAR), "--metric", f"{name}:f"]) == code
        said = capsys.readouterr()
        if code:
            assert f"--metric {name}:f" in said.err or f"'{name}:f'" in said.err
            assert "->" in said.err
            assert "Traceback" not in said.err
        return (said.err if code else said.out).replace(name, "NAME")

    return run


@pytest.mark.parametrize("form", ["float(v)", "v", "np.asarray(v)", "np.float32(v)", "int(v > 0.5)", "bool(v > 0.5)"])
def test_a_function_is_given_raw_outputs(evaluated: Evaluated, form: str) -> None:
    told = evaluated(
        f"""
        def f(outputs, labels, reference):
            assert outputs[0].shape == reference[0].shape == (len(labels), 10)
            v = (outputs[0].argmax(axis=1) == labels).mean()
            return {form}
        """,
        0,
    )
    score = onnx_amc.evaluate(MLP, SIDECAR, metric="top1")["score"]
    assert told == f"NAME:f {score if '0.5' not in form else 1:.4f} on 500 samples\n"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def f(z, y, z0): return 1 / 0", ("raised ZeroDivisionError: division by zero", "correct the function", "(N, 10)")),
        ("def f(z, y, z0): raise SystemExit(3)", ("raised SystemExit: 3",)),
        ("def f(z): return 1.0", ("raised TypeError", "takes 1 positional", "(outputs, labels or None, the original's outputs)")),
        ("def f(z, y, z0): z[0][:] = 0", ("raised ValueError", "read-only")),
        ("def f(z, y, z0): z0[0] *= 2", ("raised ", "read-only")),
        ("def f(z, y, z0): pass", ("returned None (NoneType), no number", "return one float")),
        ("def f(z, y, z0): return '0.5'", ("returned '0.5' (str)",)),
        ("def f(z, y, z0): return [1.0]", ("returned [1.0] (list)",)),
        ("def f(z, y, z0): return z[0].mean(axis=1)", ("(ndarray), no number",)),
        ("def f(z, y, z0): return 1j", ("returned 1j (complex)",)),
        ("def f(z, y, z0): return float('nan')", ("the original itself scores nan", "check the function")),
        ("def g(): pass", ("cannot import", "AttributeError", "no attribute 'f'")),
        ("f = 3", ("'NAME:f' is a int", "name a function")),
        ("def f(:", ("cannot import", "SyntaxError")),
        ("raise RuntimeError('no GPU')", ("cannot import", "RuntimeError: no GPU")),
        ("import no_such_thing", ("cannot import", "ModuleNotFoundError", "no_such_thing")),
    ],
)  # fmt: skip
def test_a_function_may_fail(evaluated: Evaluated, body: str, words: tuple[str, ...]) -> None:
    said = evaluated(body, 2)
    for word in words:
        assert word in said, f"{word!r} is not in: {said}"


def test_a_run_does_not_go_on_with_what_another_function_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    name, out = f"changed_{tmp_path.name}", tmp_path / "out.onnx"
    command = ["compress", str(MLP), "--flops", "0.5", "--policy", "uniform", "--no-recover", "-o", str(out)]
    for factor, code in ((1.0, 0), (0.5, 2)):
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        body = f"def f(z, labels, _): return {factor} * float((z[0].argmax(axis=1) == labels).mean())"
        Path(f"{name}.py").write_text(body)
        assert main([*command, "--metric", f"{name}:f", *["--resume"] * (code > 0)]) == code
    assert "made with another model" in " ".join(capsys.readouterr().err.split())
