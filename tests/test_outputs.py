"""Where results go: nothing that is there is lost, and what stops reading or stops the run costs no file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnx_amc
from onnx_amc.cli import main
from onnx_amc.run.cluster import software

MODELS = Path(__file__).parents[1] / "models"
PLAIN = ["--flops", "0.5", "--policy", "uniform", "--no-refit", "--no-recover", "--quiet"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the MLP and its data, which is the current one."""
    for suffix in (".onnx", ".npz"):
        shutil.copy(MODELS / f"digits_mlp{suffix}", tmp_path / f"m{suffix}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "onnx_amc", *words], text=True, check=False, **more)


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["compress", "m.onnx", *PLAIN, "-o", "m.onnx"], "MODEL"),
        (["compress", "m.onnx", *PLAIN, "--json", "m.onnx"], "MODEL"),
        (["compress", "m.onnx", *PLAIN, "--json", "m.npz"], "the data beside MODEL"),
        (["compress", "m.onnx", *PLAIN, "--data", "other.npz", "-o", "other.npz"], "--data"),
        (["compress", "m.onnx", *PLAIN, "-o", "x.onnx", "--json", "./x.onnx"], "-o"),
        (["compress", "m.onnx", *PLAIN, "-o", "x.onnx", "--report", "link.onnx"], "MODEL"),
        (["inspect", "m.onnx", "--json", "m.onnx"], "MODEL"),
        (["apply", "m.onnx", "other.npz", "-o", "other.npz"], "PLAN"),
        (["evaluate", "m.onnx", "--data", "other.npz", "--json", "other.npz"], "--data"),
        (["bench", "m.onnx", "--json", "m.onnx"], "MODEL m.onnx"),
        (["compress", "m.onnx", *PLAIN, "--data", "mine:pairs", "--json", "mine.py"], "--data"),
        (["compress", "m.onnx", *PLAIN, "--metric", "mine:score", "-o", "mine.py"], "--metric"),
        (["compress", "m.onnx", *PLAIN, "--json", "m.amc.run/plan.json"], "the run's plan.json"),
        (["compress", "m.onnx", *PLAIN, "--report", "m.amc.run/record.json"], "the run's record.json"),
        (["report", "m.amc.run", "-o", "m.amc.run/record.json"], "the run's record.json"),
        (["report", "m.amc.run", "--json", "m.amc.run/details.json"], "the run's details.json"),
    ],
)
def test_nothing_that_is_given_is_written_over(
    place: Path, command: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("m.npz", "other.npz")
    Path("mine.py").write_text("pairs = score = print\n")
    Path("m.amc.run").mkdir()
    Path("link.onnx").symlink_to("m.onnx")
    before = {p: p.read_bytes() for p in place.iterdir() if p.is_file()}
    assert main(command) == 2
    assert f"is {what} itself" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in place.iterdir() if p.is_file()} == before


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("m-0.5.onnx", ["-o", "m.onnx", "--flops", "0.75,0.5"]),
        ("m-0.5.int8.onnx", ["-o", "m.onnx", "--flops", "0.75,0.5", "--int8"]),
        ("m.int8.onnx", ["-o", "m.onnx", "--flops", "0.5", "--int8"]),
        ("p-0.5.onnx", ["-o", "o.onnx", "--report", "p.onnx", "--flops", "0.75,0.5"]),
    ],
)
def test_what_several_budgets_write_is_not_what_they_read(
    place: Path, model: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move("m.onnx", model)
    before = (place / model).read_bytes()
    assert main(["compress", model, "--policy", "uniform", "--no-refit", "--quiet", *options]) == 2
    assert "is MODEL itself" in capsys.readouterr().err
    assert (place / model).read_bytes() == before


@pytest.fixture
def apart(place: Path) -> Path:
    """A model whose weights lie in a file beside it, under the name that those of `o.onnx` would have."""
    onnx.save(onnx.load("m.onnx"), "big.onnx", save_as_external_data=True, location="o.onnx.data", size_threshold=0)
    return place / "o.onnx.data"


def test_weights_beside_a_model_are_not_written_over(apart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = apart.read_bytes()
    assert main(["compress", "big.onnx", *PLAIN, "-o", "o.onnx"]) == 2
    assert "the weights of MODEL" in capsys.readouterr().err
    assert main(["compress", "big.onnx", *PLAIN, "-o", "p.onnx", "--run-dir", "run"]) == 0
    assert main(["apply", "big.onnx", "run/plan.json", "-o", "o.onnx"]) == 2
    assert main(["compress", "big.onnx", *PLAIN, "-o", "p.onnx", "--json", apart.name]) == 2
    assert main(["compress", "big.onnx", *PLAIN, "-o", apart.name]) == 2
    assert main(["compress", "big.onnx", *PLAIN, "-o", "q.onnx", "--json", "q.onnx.data"]) == 2
    assert "the weights of -o q.onnx.data: is --json itself" in " ".join(capsys.readouterr().err.split())
    assert apart.read_bytes() == before
    assert main(["compress", "m.onnx", *PLAIN, "-o", "o.onnx"]) == 0, (
        "what keeps its weights inside writes no such file"
    )
    assert apart.read_bytes() == before


def test_no_empty_file_is_written_where_no_weight_lies_beside_the_model(apart: Path) -> None:
    thin = ["--params", "0.2", "--granularity", "weight", "--policy", "uniform", "--no-refit", "--quiet"]
    assert main(["compress", "big.onnx", *thin, "-o", "p.onnx"]) == 0
    assert onnx.load("p.onnx", load_external_data=False).graph.sparse_initializer
    assert sorted(p.name for p in apart.parent.glob("*.data")) == [apart.name]


def test_a_model_is_another_one_when_its_weights_beside_it_are(apart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "compress",
        "big.onnx",
        "--flops",
        "0.5",
        "--policy",
        "uniform",
        "--no-recover",
        "-o",
        "p.onnx",
        "--data",
    ]
    assert main([*command, "m.npz"]) == 0
    weights = np.frombuffer(apart.read_bytes(), np.float32)
    apart.write_bytes((2 * weights).tobytes())
    assert main([*command, "m.npz", "--resume"]) == 2
    assert main(["apply", "big.onnx", "p.run/plan.json", "--data", "m.npz", "-o", "q.onnx"]) == 2
    assert "another model" in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes of this kind")
def test_json_goes_into_a_pipe_and_a_model_does_not(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(place / "pipe")
    told: list[str] = []
    reader = threading.Thread(target=lambda: told.append((place / "pipe").read_text()))
    reader.start()
    assert main(["compress", "m.onnx", *PLAIN, "--json", "pipe"]) == 0
    reader.join(10)
    assert json.loads(told[0])["out"] == "m.amc.onnx"
    assert (place / "pipe").is_fifo()
    assert main(["compress", "m.onnx", *PLAIN, "-o", "pipe"]) == 2
    assert "is no file" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_a_reader_that_stops_costs_no_file(place: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    budgets = ["--flops", "0.75,0.5", *PLAIN[2:-1]]
    done = typed("compress", "m.onnx", *budgets, "--json", "told.json", stdout=write, stderr=subprocess.PIPE)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert len(json.loads((place / "told.json").read_text())["budgets"]) == 2
    for ratio in ("0.75", "0.5"):
        onnx.checker.check_model(onnx.load(f"m.amc-{ratio}.onnx"))
    for words in (["--version"], ["inspect", "m.onnx", "--json", "-"]):
        done = typed(*words, stdout=write, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (0, "")
    os.close(write)


@pytest.mark.parametrize(
    "words",
    [["-o", "images/a/1.png"], ["--json", "images/preprocess.json"], ["--report", "images/classes.json"]],
    ids=lambda words: words[1],
)
def test_a_folder_of_data_is_not_written_over(
    place: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("images/a").mkdir(parents=True)
    for name in ("a/1.png", "preprocess.json", "classes.json", "told.json"):
        Path("images", name).write_text("{}")
    assert main(["compress", "m.onnx", *PLAIN, "--data", "images", *words]) == 2
    assert f"{words[1]}: is part of --data" in capsys.readouterr().err
    assert Path(words[1]).read_text() == "{}"
    main(["compress", "m.onnx", *PLAIN, "--data", "images", "--json", "images/told.json"])
    assert "is part of" not in capsys.readouterr().err


def test_what_says_the_same_may_lie_in_the_run_directory(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "m.onnx", *PLAIN, "--run-dir", "run", "--json", "run/record.json"]) == 2
    assert "its folder does not exist" in capsys.readouterr().err
    Path("run").mkdir()
    assert main(["compress", "m.onnx", *PLAIN, "--run-dir", "run", "--json", "run/record.json"]) == 0
    assert json.loads(Path("run/record.json").read_text())["policy"] == "uniform"
    for more in (["-o", "other"], ["--json", "other"]):
        assert main(["compress", "m.onnx", *PLAIN, *more, "--run-dir", "other"]) == 2
        assert "--run-dir other: is a file that is to be written" in capsys.readouterr().err
    assert not Path("other").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "words", [["compress", "m.onnx", *PLAIN[:-1]], ["--version"], ["inspect", "m.onnx", "--json", "-"]]
)
def test_an_output_that_is_full(place: Path, words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = typed(*words, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert "stdout: No space left on device\n  ->" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_run_directory_holds_one_run(place: Path) -> None:
    def left() -> set[str]:
        found = {p.relative_to("m.amc.run").as_posix() for p in Path("m.amc.run").rglob("*") if p.is_file()}
        return found - {"evaluations.jsonl"}

    one = {"plan.json", "record.json", "details.json"}
    assert main(["compress", "m.onnx", *PLAIN]) == 0
    assert main(["report", "m.amc.run"]) == 0
    assert left() == one | {"report.html"}
    assert main(["compress", "m.onnx", *PLAIN, "--flops", "0.75,0.5"]) == 0
    assert left() == {"record.json", *(f"{ratio}/{name}" for ratio in ("0.75", "0.5") for name in one)}
    Path("m.amc.run/0.5/mine.txt").write_text("the user's")
    assert main(["compress", "m.onnx", *PLAIN]) == 0
    assert left() == one | {"0.5/mine.txt"}
    assert not Path("m.amc.run/0.75").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell of Unix")
def test_a_closed_output_is_none(place: Path) -> None:
    words = f"{sys.executable} -m onnx_amc compress m.onnx {' '.join(PLAIN)} >&-"
    done = subprocess.run(words, shell=True, check=False, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (place / "m.amc.onnx").exists()


def test_packages_that_are_installed_by_no_name_or_another(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a checkout, and of onnxruntime-gpu in place of onnxruntime."""
    found = importlib.metadata.Distribution.from_name

    def named(name: str) -> importlib.metadata.Distribution:
        return found("none such" if name in {"onnx-amc", "onnxruntime"} else name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", named)
    software.cache_clear()
    try:
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == "0+unknown\n"
        assert main(["compress", "m.onnx", *PLAIN]) == 0
        assert software()["onnxruntime"] == ort.__version__
    finally:
        software.cache_clear()


def test_a_package_that_cannot_be_loaded_is_no_fault_of_ours(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "onnx_amc.search.agent", raising=False)
    assert main(["compress", "m.onnx", "--flops", "0.5", "--episodes", "1", "--quiet"]) == 2
    assert "a package cannot be loaded: import of torch halted" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell of Unix")
def test_no_file_gets_the_number_of_a_closed_stream(place: Path) -> None:
    """Libraries write what they warn of to descriptor 2, whatever that is."""
    code = "import os; from onnx_amc.cli import main; main(['--version']); os._exit(os.open('m.onnx', os.O_RDONLY))"
    done = subprocess.run(f'{sys.executable} -c "{code}" <&- >&- 2>&-', shell=True, check=False)
    assert done.returncode > 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_a_container_that_is_stopped_leaves_a_run_that_goes_on(place: Path) -> None:
    command = ["-m", "onnx_amc", "compress", "m.onnx", "--flops", "0.5", "--episodes", "2000", "--no-recover"]
    with subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "search (ddpg)" not in (line := process.stderr.readline()):
            assert line, "it ended before"
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "--resume goes on" in " ".join(said.split())
    assert not (place / "m.amc.onnx").exists()


def test_an_interruption_of_code_compiled_at_run_time_is_one_too(place: Path) -> None:
    """As libraries do that write functions; Python ends by the signal then, -2, if it is let."""
    (place / "mine.py").write_text('def pairs():\n    exec("raise KeyboardInterrupt")\n')
    done = typed("compress", "m.onnx", *PLAIN, "--data", "mine:pairs", capture_output=True)
    assert (done.returncode, "interrupted" in done.stderr) == (130, True)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of Unix")
@pytest.mark.parametrize(("model", "code"), [("m.onnx", 0), ("none.onnx", 2)])
def test_progress_that_nobody_reads_ends_no_run(place: Path, model: str, code: int) -> None:
    """As of `2>&1 | head -1`: the model is written all the same, and the exit code is that of the run."""
    end, begin = os.pipe()
    os.close(end)
    done = typed("compress", model, *PLAIN[:-1], stderr=begin, stdout=subprocess.PIPE)
    os.close(begin)
    assert (done.returncode, "delivered" in done.stdout) == (code, code == 0)
    assert (place / "m.amc.onnx").exists() == (code == 0)


EARLY = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, *_):
        if name == MODULE:
            os.kill(os.getpid(), signal.SIGINT)

from onnx_amc.__main__ import run
sys.meta_path.insert(0, Interrupts())
sys.argv[1:] = ["inspect", "m.onnx"]
run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
@pytest.mark.parametrize("module", ["argparse", "numpy", "onnxruntime.capi._pybind_state"])
@pytest.mark.usefixtures("place")
def test_an_interruption_before_the_command_begins_is_one_too(module: str) -> None:
    heard = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # the tests may run in the background
    )
    script = f"{heard}; MODULE = {module!r}{EARLY}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "onnx-amc: interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
@pytest.mark.usefixtures("place")
def test_what_a_shell_has_put_into_the_background_does_not_hear_the_keyboard() -> None:
    script = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); MODULE = 'numpy'{EARLY}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("option", "below"), [("-o", "x.onnx"), ("--json", "x.json"), ("--run-dir", "")])
def test_a_file_in_place_of_a_folder_is_called_so(
    place: Path, option: str, below: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "file").touch()
    assert main(["compress", "m.onnx", *PLAIN, option, str(Path("file", below))]) == 2
    assert "file is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-o", "--json", "--run-dir", "--report"])
def test_names_that_the_system_does_not_take_are_told(
    place: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", "m.onnx", *PLAIN, option, "a" * 300]) == 2
    told = capsys.readouterr().err
    assert "too long" in told
    assert "Traceback" not in told
    assert main(["inspect", "a" * 300]) == 2
    assert [p.name for p in place.iterdir() if p.suffix not in {".onnx", ".npz"}] == []


def test_a_folder_whose_name_is_not_utf8_is_refused_before_the_run(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = place / os.fsdecode(b"nu\xff")
    odd.mkdir()
    assert main(["compress", "m.onnx", *PLAIN, "-o", str(odd / "o.onnx")]) == 2
    assert "not UTF-8" in " ".join(capsys.readouterr().err.split())
    assert list(odd.iterdir()) == []
    assert main(["inspect", "m.onnx", "--json", str(odd / "r.json")]) == 0, "no matter to onnxruntime"
    shutil.move("m.onnx", odd)
    assert (
        main(["compress", str(odd / "m.onnx"), *PLAIN, "-o", "o.onnx", "--report", "o.html", "--json", "o.json"]) == 0
    )
    assert "nu\\udcff/m.onnx" in Path("o.html").read_text(encoding="utf-8")
    shutil.move(odd / "m.onnx", place)
    even = place / "n\u00fc \u65e5"
    even.mkdir()
    assert main(["compress", "m.onnx", *PLAIN, "-o", str(even / "o.onnx")]) == 0
    assert (even / "o.onnx").is_file()


def test_what_a_search_would_end_with_is_looked_at_first(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "m.onnx", "--flops", "0.5", "--save-agent", "nowhere/agent.npz"]) == 2
    assert "--save-agent" in capsys.readouterr().err
    assert main(["compress", "m.onnx", "--flops", "0.5,0.01"]) == 3
    assert "search" not in capsys.readouterr().err
    assert not list(place.glob("m.amc*.onnx"))
    assert main(["compress", "m.onnx", "--flops", "0.50000001,0.5"]) == 2


@pytest.mark.parametrize("wrong", [["--min-keep=nan"], ["--min-keep=0"], ["--min-keep=5"], ["--round-to=0"]])
@pytest.mark.usefixtures("place")
def test_inspect_refuses_what_compress_refuses(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["inspect", "m.onnx"], ["compress", "m.onnx", *PLAIN]):
        assert main([*command, *wrong]) == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
@pytest.mark.usefixtures("place")
def test_a_time_that_is_none_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "m.onnx", f"--seconds={seconds}"]) == 2
    assert "--seconds" in capsys.readouterr().err


def test_what_lies_beside_a_model_need_not_be_its_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(place / "m.npz", something=np.zeros(3))
    assert main(["compress", "m.onnx", *PLAIN[:-1], "--json", "told.json"]) == 0
    assert "m.npz is not made use of" in capsys.readouterr().err
    baselines = json.loads((place / "told.json").read_text())["baselines"]
    assert baselines["uniform"]["macs"] > 0
    assert main(["compress", "m.onnx", *PLAIN, "--data", "m.npz"]) == 2
    assert main(["compress", "m.onnx", "--flops", "0.5"]) == 2


@pytest.mark.usefixtures("place")
def test_so_many_channels_are_kept_as_are_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    """Also fewer than a search would ever keep; nobody has proposed them but the user."""
    record = onnx_amc.compress("m.onnx", channels=0.1, recover=False, round_to=1).record
    assert [g["kept"] for g in record["groups"]] == [round(0.1 * g["channels"]) for g in record["groups"]]
    assert (record["policy"], record["delivered"], record["episodes"]) == ("uniform", "uniform", 0)
    assert (record["rewards"], record["best_episode"]) == ([], None)
    assert main(["compress", "m.onnx", "--channels", "0.1", "--min-keep", "0.3"]) == 2
    assert "fewer than --min-keep" in " ".join(capsys.readouterr().err.split())
    assert main(["compress", "m.onnx", "--channels", "0.5", "--save-agent", "a.npz"]) == 2
    assert "--channels searches nothing" in " ".join(capsys.readouterr().err.split())
