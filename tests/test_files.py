"""What lies on the disk: whole or not at all, one process at a time, and nothing trusted that comes from there."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from onnx_amc import archive, files
from onnx_amc.archive import ArchiveError, read_arrays
from onnx_amc.cli import main
from onnx_amc.errors import OptionError
from onnx_amc.rundir import RunDir, held

MODELS = Path(__file__).parents[1] / "models"
GONE = 2**22 + 1
"""No process has this number: it is beyond the largest that Linux gives."""


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: what a full disk does to who writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


# ---- whole or not at all -------------------------------------------------------------------------------------------


def test_a_file_is_replaced_by_a_whole_one_only(tmp_path: Path) -> None:
    path = tmp_path / "a[1].json"
    files.write_text(path, "old")
    with small_disk(1000), pytest.raises(OptionError, match="cannot be written") as caught:
        files.write_text(path, "x" * 5000)
    assert "room" in caught.value.fix
    assert path.read_text() == "old"
    (tmp_path / f".{path.name}.{GONE}.tmp").write_text("left by a process that was killed")
    (tmp_path / f".{path.name}.{os.getppid()}.tmp").write_text("of one that is alive")
    files.write_text(path, "new")
    assert path.read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".{path.name}.{os.getppid()}.tmp", path.name]


def test_a_full_disk_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.onnx"
    out.write_text("precious")
    command = ["compress", str(MODELS / "digits_mlp.onnx"), "--channels", "0.5", "--no-refit", "--policy", "uniform"]
    with small_disk(2000):
        assert main([*command, "--quiet", "-o", str(out)]) == 2
    message = capsys.readouterr().err
    assert "cannot be written" in message
    assert "->" in message
    assert out.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"], "an empty run directory goes as it came"


# ---- the run directory ---------------------------------------------------------------------------------------------


def test_two_processes_do_not_share_a_run_directory(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    command = ["compress", str(MODELS / "digits_mlp.onnx"), "--flops", "0.5", "--run-dir", str(folder), "-o"]
    with held(folder):
        (folder / "kept").write_text("")
        taken = [sys.executable, "-m", "onnx_amc", *command, str(tmp_path / "o.onnx")]
        found = subprocess.run(taken, capture_output=True, text=True, check=False)
        assert found.returncode == 2
        assert f"another process is at work in it (process {os.getpid()})" in found.stderr
        assert "--run-dir of its own" in found.stderr
    assert [p.name for p in folder.iterdir()] == ["kept"]
    assert not (tmp_path / "o.onnx").exists()


def test_the_lock_of_a_dead_process_holds_nobody_up(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    script = f"""
import os, signal
from pathlib import Path
from onnx_amc.rundir import held
with held(Path({str(folder)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert (folder / "lock").is_file()
    with held(folder), pytest.raises(OptionError, match="another process"), held(folder):
        pass
    assert not list(folder.iterdir())


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot be written"), held(tmp_path / "file" / "run"):
        pass


def journal(folder: Path, results: int) -> Path:
    """The journal of a run with so many results."""
    run = RunDir(folder, {"model": "m"}, resume=False)
    for i in range(results):
        run.get(f"k{i}", lambda i=i: [i / 3])  # type: ignore[misc]
    return folder / "evaluations.jsonl"


def known(folder: Path) -> int:
    """How many results a resumed run need not compute."""
    run, asked = RunDir(folder, {"model": "m"}, resume=True), []
    for i in range(4):
        assert run.get(f"k{i}", lambda i=i: asked.append(i) or [i / 3]) == [i / 3]  # type: ignore[misc,func-returns-value]
    return 4 - len(asked)


@pytest.mark.parametrize(("cut", "left"), [(0, 4), (1, 3), (20, 3), (70, 2)])
def test_a_torn_end_is_dropped_and_written_again(tmp_path: Path, cut: int, left: int) -> None:
    path = journal(tmp_path, 4)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut])
    assert known(tmp_path) == left
    assert path.read_bytes() == whole


@pytest.mark.parametrize("end", range(0, 90, 15))
def test_a_run_stopped_before_its_first_result_begins_anew(tmp_path: Path, end: int) -> None:
    path = journal(tmp_path, 4)
    whole = path.read_bytes()
    path.write_bytes(whole[:end])
    assert known(tmp_path) == 0
    assert path.read_bytes() == whole


def test_a_changed_last_line_is_dropped_and_another_is_reported(tmp_path: Path) -> None:
    path = journal(tmp_path, 4)
    lines = path.read_text().splitlines(keepends=True)
    assert "0.333" in lines[2]
    path.write_text("".join(lines[:-1]) + lines[-1].replace("1.0", "1.1"))
    assert known(tmp_path) == 3
    path.write_text("".join(lines).replace("0.333", "0.334"))
    with pytest.raises(OptionError, match=r"line 3 of evaluations\.jsonl is damaged"):
        known(tmp_path)
    assert path.read_text() == "".join(lines).replace("0.333", "0.334"), "what cannot be read is left as it is"


def test_a_full_disk_stops_the_run_and_leaves_it_to_be_resumed(tmp_path: Path) -> None:
    size = journal(tmp_path, 2).stat().st_size
    with small_disk(size + 10), pytest.raises(OptionError, match="cannot be written"):
        known(tmp_path)
    assert known(tmp_path) == 2


# ---- archives ------------------------------------------------------------------------------------------------------


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(self.path),)  # type: ignore[return-value]


def test_the_canary_sings(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "sung")))
    assert (tmp_path / "sung").exists()


def pickles(folder: Path) -> list[Path]:
    """A bare pickle, a pickled array in an archive, and one in torch's form."""
    import torch

    objects = np.array([Canary(folder / "sung")], dtype=object)
    paths = [folder / f"{name}.npz" for name in ("bare", "archive", "torch")]
    paths[0].write_bytes(pickle.dumps(Canary(folder / "sung")))
    np.savez(paths[1], x=objects)
    torch.save({"x": Canary(folder / "sung")}, paths[2])
    return paths


def test_no_pickle_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(MODELS / "digits_mlp.onnx")
    for path in pickles(tmp_path):
        with pytest.raises(ArchiveError):
            read_arrays(path)
        assert main(["evaluate", model, "--data", str(path)]) == 2
        options = ["--flops", "0.5", "--episodes", "1", "--agent", str(path), "-o", str(tmp_path / "o.onnx")]
        assert main(["compress", model, *options]) == 2
        assert main(["apply", model, str(path), "-o", str(tmp_path / "o.onnx")]) == 2
        message = capsys.readouterr().err
        assert message.count("->") == 3
        assert "Traceback" not in message
    assert not (tmp_path / "sung").exists()
    assert not (tmp_path / "o.onnx").exists()


def test_a_pickle_in_a_run_directory_is_not_executed(tmp_path: Path) -> None:
    """Neither in place of the journal, nor of the state of a training: without a state it is trained from the start."""
    model, run = str(MODELS / "digits_mlp.onnx"), tmp_path / "run"
    command = ["compress", model, "--flops", "0.5", "--policy", "uniform", "--recover", "--recover-epochs", "1"]
    command += ["--quiet", "--run-dir", str(run), "-o"]
    assert main([*command, str(tmp_path / "a.onnx")]) == 0
    for path in pickles(tmp_path):
        (run / "recovery-0.5.npz").write_bytes(path.read_bytes())
        assert main([*command, str(tmp_path / "b.onnx"), "--resume"]) == 0
        assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()
    (run / "evaluations.jsonl").write_bytes(pickle.dumps(Canary(tmp_path / "sung")) + b"\n\n")
    assert main([*command, str(tmp_path / "b.onnx"), "--resume"]) == 2
    assert not (tmp_path / "sung").exists()


def bomb(path: Path, header: dict[str, object], zeros: int) -> Path:
    """An archive of one array: a header, and so many zeros, which take a thousandth of their number."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("x.npy", "w", force_zip64=True) as member:
        start = io.BytesIO()
        np.lib.format.write_array_header_1_0(start, header)
        member.write(start.getvalue())
        for _ in range(zeros // 2**20):
            member.write(bytes(2**20))
    return path


def test_an_archive_that_would_fill_the_memory_is_refused_unread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "LARGEST", 2**24)
    kind = {"descr": "|u1", "fortran_order": False}
    path = bomb(tmp_path / "bomb.npz", {**kind, "shape": (2**25,)}, 2**25)
    assert path.stat().st_size < 2**18
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArchiveError, match="would unpack to 335"):
        read_arrays(path)
    for shape in ((2**50,), (-1, 2**20), (2**20, 2)):
        with pytest.raises(ArchiveError, match=r"the file holds 1048576|negative"):
            read_arrays(bomb(path, {**kind, "shape": shape}, 2**20))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**14
    assert main(["evaluate", str(MODELS / "digits_mlp.onnx"), "--data", str(path)]) == 2
    assert "array 'x'" in capsys.readouterr().err
    assert len(read_arrays(bomb(path, {**kind, "shape": (2**20,)}, 2**20))["x"]) == 2**20


def test_json_that_is_nested_too_deeply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.json").write_text("[" * 100_000)
    argv = [
        "apply",
        str(MODELS / "digits_mlp.onnx"),
        str(tmp_path / "plan.json"),
        "-o",
        str(tmp_path / "o.onnx"),
    ]
    assert main(argv) == 2
    assert "nested too deeply" in capsys.readouterr().err
    with pytest.raises(ValueError, match="nested"):
        files.parse_json("[" * 100_000)
    assert files.parse_json(json.dumps({"a": [1]})) == {"a": [1]}


# ---- kill -9 -------------------------------------------------------------------------------------------------------


def test_a_killed_run_that_is_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    """Killed once there is something in the run directory, at the first evaluations, and when the training has begun."""
    command = ["compress", str(MODELS / "digits_mlp.onnx"), "--flops", "0.5", "--policy", "random", "--episodes", "4"]
    command += ["--recover", "--recover-epochs", "2", "--quiet", "-o"]
    whole, out = tmp_path / "whole.onnx", tmp_path / "out.onnx"
    assert main([*command, str(whole)]) == 0
    run = tmp_path / "out.run"
    moments = [run / "lock", run / "evaluations.jsonl", run / "recovery-0.5.npz"]
    for i, moment in enumerate(moments):
        killed = [sys.executable, "-m", "onnx_amc", *command, str(out), *(["--resume"] if i else [])]
        with subprocess.Popen(killed) as child:
            while child.poll() is None and not moment.exists():
                time.sleep(0.001)
            child.kill()
        assert child.returncode == -signal.SIGKILL, f"not killed at {moment.name}"
        assert not out.exists()
    assert main([*command, str(out), "--resume"]) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert (run / "plan.json").read_bytes() == (tmp_path / "whole.run" / "plan.json").read_bytes()
    assert sorted(p.name for p in run.iterdir()) == ["details.json", "evaluations.jsonl", "plan.json", "record.json"]
