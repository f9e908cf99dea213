"""Latency measured by a command of the user's, for a device elsewhere."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from timed import MODELS, built, levels, network

from onnx_amc.cli import main
from onnx_amc.errors import OptionError
from onnx_amc.graph import light
from onnx_amc.run import clock
from onnx_amc.run.clock import Effort, measure_by_command, measure_table_by_command, probe_plans
from onnx_amc.run.table import LatencyTable


def script(folder: Path, text: str) -> str:
    """A command that runs this Python text; the model's path is its last argument."""
    path = folder / "a script.py"
    path.write_text(f"import os, sys, time\n{text}\n", encoding="utf-8")
    return shlex.join([sys.executable, "-S", str(path), "--device", "a b"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("print('99\\nlatency: 12.5 ms\\n\\n')", 12.5),
        ("print('mean 3 median', '1.5e-2')", 0.015),
        ("print('.5ms', end='')", 0.5),
        ("print(os.path.getsize(sys.argv[-1]), 'ms'); print('done', file=sys.stderr)", 5.0),
        ("print(len(sys.argv), sys.argv[2] == 'a b', 4)", 4.0),
    ],
)
def test_a_command_tells_the_milliseconds_last(tmp_path: Path, text: str, wanted: float) -> None:
    model = tmp_path / "some model.onnx"
    model.write_bytes(b"12345")
    assert measure_by_command(script(tmp_path, text), model) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("print(7); sys.exit('no\\nboard is connected')", "failed with exit code 1: board is connected"),
        ("os._exit(3)", "failed with exit code 3: it said nothing"),
        ("time.sleep(60)", "took longer than 0.5 s"),
        ("print('5 ms'); print('finished')", "printed no number on its last line: 'finished'"),
        ("pass", "printed no number on its last line: ''"),
        ("print(-2.5)", "printed -2.5, which is not a positive number"),
        ("print('0.0 ms')", "printed 0.0, which is not a positive number"),
        ("print('nan')", "printed nan, which is not a positive number"),
        ("print('inf')", "printed inf, which is not a positive number"),
        ("print('1e999')", "printed 1e999, which is not a positive number"),
    ],
)
def test_a_command_that_fails_says_how(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        measure_by_command(script(tmp_path, text), tmp_path / "m.onnx", timeout=0.5 if "sleep" in text else 60)
    assert message in caught.value.what
    assert caught.value.where == "--latency-command"
    assert caught.value.fix


@pytest.mark.parametrize(
    ("command", "message"),
    [("", "it is empty"), ("time 'model", "No closing quotation"), ("/no/such/program -x", "cannot be run")],
)
def test_a_command_that_is_none_is_refused(command: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        measure_by_command(command, "m.onnx")


def test_the_command_of_the_readme_hands_the_model_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell reads it: what stands for the model is not for the shell to fill in."""
    text = (MODELS.parent / "README.md").read_text(encoding="utf-8")
    typed = text.partition("--latency-command ")[2].partition("\n")[0]
    command = subprocess.run(["sh", "-c", f"printf %s {typed}"], capture_output=True, text=True, check=True).stdout
    for name, does in (("scp", f'cp "$2" {tmp_path}/there.onnx'), ("ssh", "echo took 7.5")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    model = MODELS / "digits_mlp.onnx"
    assert measure_by_command(command, model) == 7.5
    assert (tmp_path / "there.onnx").read_bytes() == model.read_bytes()


def test_a_table_of_a_network_that_stays_whole_says_nothing_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = script(tmp_path, "print(os.path.getsize(sys.argv[-1]))")
    options = ["--latency", "1", "--keep", "*", "--policy", "uniform", "--no-recover", "--cache", str(tmp_path)]
    place = ["-o", str(tmp_path / "o.onnx"), "--latency-command", command]
    assert main(["compress", str(MODELS / "digits_mlp.onnx"), *options, *place]) == 0
    said = capsys.readouterr()
    assert "nan" not in said.out + said.err


def test_a_table_is_learnt_from_a_command(tmp_path: Path) -> None:
    analysis, seen = network("digits_mlp"), list[tuple[int, int]]()
    command = script(tmp_path, "print(os.path.getsize(sys.argv[-1]) / 1e4)")
    effort = Effort(random=12, rounds=1)

    def learnt() -> LatencyTable:
        return measure_table_by_command(
            analysis, lambda c: built(analysis, c), levels(analysis), command, probes=effort, cache=tmp_path / "kept",
            progress=lambda done, total: seen.append((done, total)),
        )  # fmt: skip

    table = learnt()
    assert table.basis == "networks"
    plans = probe_plans(levels(analysis), 10, 9)
    truth = [len(built(analysis, p).SerializeToString()) / 1e4 for p in plans]
    assert np.abs(table.many(plans) / truth - 1).max() < 0.05
    assert seen[-1] == (len(seen), len(seen))
    before = len(seen)
    assert learnt().many(plans).tolist() == table.many(plans).tolist()
    assert len(seen) == before
    assert script(tmp_path, "print(2 + os.path.getsize(sys.argv[-1]) / 1e4)") == command
    assert learnt().many(plans).min() > 2, "the same words now mean another device"


def test_a_model_too_large_for_one_file_is_handed_over_in_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = network()
    monkeypatch.setattr(light, "LARGEST", 10_000)
    path = clock._written(analysis.model.original, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert path.stat().st_size < light.size(analysis.model.original) / 2
    kept = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for tensor in analysis.model.original.graph.initializer:
        assert np.array_equal(kept[tensor.name], numpy_helper.to_array(tensor))
