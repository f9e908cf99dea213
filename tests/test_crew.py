"""Evaluations at a time: what is found does not depend on how many there are."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import onnx_amc
from onnx_amc.cli import main
from onnx_amc.listener import Listener
from onnx_amc.run.crew import Crew
from onnx_amc.run.session import Meter, open_session, threads
from onnx_amc.search.journal import Journal, Later

RESNET, MOBILE = (Path(__file__).parents[1] / "models" / f"digits_{name}.onnx" for name in ("resnet", "mobilenet"))
EMPTY = onnx.ModelProto()


@pytest.mark.parametrize(("granularity", "budget"), [("channel", {"flops": 0.5}), ("weight", {"params": 0.4})])
def test_the_number_of_workers_changes_nothing(granularity: str, budget: dict[str, float]) -> None:
    options: dict[str, Any] = {"granularity": granularity, "episodes": 6, "finalists": 2, "recover": False, **budget}
    one, other = [onnx_amc.compress(MOBILE, workers=n, **options) for n in (1, 3)]
    assert [t.counts.tolist() for t in other.trials] == [t.counts.tolist() for t in one.trials]
    assert [t.reward for t in other.trials] == [t.reward for t in one.trials]
    assert other.model.SerializeToString(deterministic=True) == one.model.SerializeToString(deterministic=True)
    assert 0 < one.record["seconds"]["search_onnxruntime"] < one.record["seconds"]["search"]
    assert (one.record["seconds"]["ranking"] > 0.01) == (granularity == "channel"), "weights are chosen plan by plan"


def test_whatever_the_caller_lets_blas_have_a_run_gives_it_one_core() -> None:
    """Not only for its speed: the last bits of a refit depend on it."""
    seen: list[int] = []

    class Looks(Listener):
        def advance(self, done: int, note: str = "", total: int | None = None) -> None:
            seen.extend(lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas")

    with threadpool_limits(limits=2, user_api="blas"):
        found = onnx_amc.compress(RESNET, flops=0.5, policy="uniform", recover=False, listener=Looks())
        assert set(seen) == {1}
        seen.clear()
        onnx_amc.apply(RESNET, found.plan, listener=Looks())
    assert set(seen) == {1}


def test_an_interrupted_run_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    command = ["compress", str(MOBILE), "--flops", "0.5", "--episodes", "6", "--no-recover", "--quiet"]
    command += ["-o", str(tmp_path / "small.onnx")]
    assert main([*command, "--workers", "1"]) == 0
    first, journal = (tmp_path / "small.onnx").read_bytes(), tmp_path / "small.run" / "evaluations.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-5]))
    assert main([*command, "--workers", "3", "--resume"]) == 0
    assert (tmp_path / "small.onnx").read_bytes() == first
    assert journal.read_text().splitlines(keepends=True) == lines


def test_so_many_are_evaluated_at_a_time_and_one_is_built_meanwhile() -> None:
    """Of five jobs two are evaluated at a time while the third is being built, and no more."""
    counts, most, lock = {"build": 0, "evaluate": 0}, {"build": 0, "evaluate": 0, "all": 0}, threading.Lock()

    def busy(what: str) -> None:
        with lock:
            counts[what] += 1
            most[what], most["all"] = max(most[what], counts[what]), max(most["all"], sum(counts.values()))
        time.sleep(0.05)
        with lock:
            counts[what] -= 1

    def build() -> onnx.ModelProto:
        busy("build")
        return EMPTY

    def evaluate(_model: onnx.ModelProto, number: int) -> int:
        busy("evaluate")
        return number

    with Crew(2, 4) as crew:
        waits = [crew.begin(build, lambda m, i=i: evaluate(m, i)) for i in range(5)]  # type: ignore[misc]
        assert [wait() for wait in waits] == list(range(5))
    assert most["evaluate"] == 2
    assert most["all"] == 3


def test_what_fails_in_a_worker_is_heard_of() -> None:
    def evaluate(_model: onnx.ModelProto) -> int:
        raise ZeroDivisionError("so it is")

    with Crew(1, 4) as crew, pytest.raises(ZeroDivisionError, match="so it is"):
        crew.begin(lambda: EMPTY, evaluate)()


def test_trials_are_written_down_in_the_order_they_were_asked_for() -> None:
    """However long each takes, and the next plan is chosen while so many are under way."""
    done: list[int] = []

    def begin(counts: np.ndarray) -> Later:
        def wait() -> tuple[float, float]:
            done.append(int(counts[0]))
            return float(counts[0]), 0.0

        return wait

    journal = Journal(lambda _counts: (0.0, 0.0), begin=begin)
    for n in range(6):
        journal.put(np.array([n]), "test")
        journal.settle(2)
        assert len(journal.trials) == max(0, n - 1)
    assert journal.knows(np.array([5]))
    last = journal.put(np.array([3]), "again")
    assert journal.result(last).score == 3
    assert [t.score for t in journal.trials] == [0, 1, 2, 3, 4, 5, 3]
    assert done == [0, 1, 2, 3, 4, 5, 3]


def test_time_is_counted_once_however_many_are_at_it() -> None:
    meter = Meter()

    def work() -> None:
        with meter:
            time.sleep(0.2)

    several = [threading.Thread(target=work) for _ in range(4)]
    for one in several:
        one.start()
    for one in several:
        one.join()
    assert 0.2 <= meter.seconds < 0.4


def test_sessions_of_a_thread_have_the_threads_that_were_asked_for() -> None:
    def of_session() -> int:
        return int(open_session(str(RESNET)).get_session_options().intra_op_num_threads)

    with threads(1):
        assert of_session() == 1
        with threads(3):
            assert of_session() == 3
    assert of_session() == 0


@pytest.mark.parametrize(
    ("option", "value"), [("--workers", -1), ("--ahead", -1), ("--workers", 99_999), ("--threads", 99_999)]
)
def test_numbers_that_are_none(option: str, value: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", str(RESNET), "--flops", "0.5", option, str(value)]) == 2
    assert f"{value} is no whole number from {int(option == '--workers')}" in capsys.readouterr().err
