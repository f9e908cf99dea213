"""Evaluations on a Ray cluster, a real one of two nodes of one core each: what is found is what is found without it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_amc
from onnx_amc.cli import main
from onnx_amc.compression import Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.delivery import Result
from onnx_amc.errors import AmcError, BudgetError, ClusterError, DataError
from onnx_amc.listener import Listener
from onnx_amc.run import cluster as module
from onnx_amc.run.cluster import joined, place_of
from onnx_amc.run.session import open_session
from onnx_amc.search.journal import Tried

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "onnx-amc[ray]"')
pytestmark = pytest.mark.filterwarnings(  # Ray's own
    r"ignore::DeprecationWarning:ray\.", r"ignore::ResourceWarning:ray\.", r"ignore::FutureWarning:ray\.",
    "ignore:subprocess [0-9]+ is still running:ResourceWarning", "ignore:unclosed file.*ray:ResourceWarning",
)  # fmt: skip

RESNET = Path(__file__).parents[1] / "models" / "digits_resnet.onnx"
EMPTY = onnx.ModelProto()
RUN: dict[str, Any] = {"flops": 0.5, "policy": "random", "episodes": 4, "recover": False}
OWN = "def score(outputs, labels, reference):\n    return (outputs[0].argmax(axis=1) == labels).mean()\n"
DEATH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 8}
"""That a node is dead is to be known in seconds."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster, and what adds a node to it."""
    from ray.cluster_utils import Cluster as Nodes

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    core = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    found = Nodes(initialize_head=True, head_node_args=core | {"_system_config": DEATH})
    found.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    """The run without a cluster, by a metric that only a file in the current directory has."""
    folder, before = tmp_path_factory.mktemp("own"), Path.cwd()
    (folder / "onnx_amc_own_metric.py").write_text(OWN)
    os.chdir(folder)
    try:
        yield onnx_amc.compress(RESNET, metric="onnx_amc_own_metric:score", workers=1, **RUN)
    finally:
        os.chdir(before)


def assert_same(one: Result, other: Result) -> None:
    assert [t.counts.tolist() for t in other.trials] == [t.counts.tolist() for t in one.trials]
    assert [(t.score, t.loss, t.parts) for t in other.trials] == [(t.score, t.loss, t.parts) for t in one.trials]
    assert other.model.SerializeToString(deterministic=True) == one.model.SerializeToString(deterministic=True)


# ---- what travels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BudgetError, ClusterError, DataError])
def test_an_error_says_the_same_in_another_process(kind: type[AmcError]) -> None:
    error = kind("what", where="where", fix="fix")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.where, again.fix) == (str(error), "where", "fix")


@pytest.mark.parametrize(
    "changes",
    [{}, {"granularity": "weight", "budget": Budget("params", 0.4)}, {"sequential": False}, {"refit": False}],
    ids=["channel", "weight", "one shot", "no refit"],
)
def test_what_has_travelled_builds_and_scores_the_same(changes: dict[str, Any]) -> None:
    from onnx_amc.run.parcel import packed, unpacked

    usual: dict[str, Any] = {"budget": Budget("flops", 0.5), "recover": False, "calibration": 200, "sequence": 100}
    settings = Settings(**usual | changes)
    model = RESNET if settings.granularity == "channel" else RESNET.with_name("digits_mlp.onnx")
    run = Compression(model, None, settings, Listener())
    assert run.trial is not None
    parcel = packed((run.builder.lean(), run.trial.lean()))
    builder, scorer = unpacked(parcel, {})
    counts = run.search.space.smallest
    kept = run.builder.kept(counts)
    ours, theirs = run.builder.drafted(kept), builder.drafted(kept)
    assert theirs.SerializeToString(deterministic=True) == ours.SerializeToString(deterministic=True)
    assert scorer.numbers(theirs) == run.trial.numbers(ours)
    if settings.refit:
        probe, there = run.builder.probe, unpacked(packed(run.builder.probe.lean()), {})
        assert there.loss(builder.build(kept, correct=False)) == probe.loss(run.builder.build(kept, correct=False))


def test_a_weight_travels_once_however_many_graphs_have_it() -> None:
    from onnx_amc.run.parcel import packed, unpacked

    weight = np.random.default_rng(0).standard_normal((100, 100), dtype=np.float32)
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [], [], [onnx.numpy_helper.from_array(weight, "w")])
    one, other = (onnx.helper.make_model(graph, producer_name=name) for name in ("one", "other"))
    pickled, beside = packed([one, other])
    assert len(pickled) < 10_000
    assert [len(a) for a in beside] == [weight.nbytes]
    assert unpacked((pickled, beside), {}) == [one, other]


def test_some_samples_keep_their_numbers() -> None:
    run = Compression(RESNET, None, Settings(Budget("flops", 0.5), refit=False, recover=False), Listener())
    assert run.data is not None
    few = run.data.only(np.array([90, 7, 30, 7]))
    assert len(few) == 3
    for name, found in few.batch(np.array([30, 7, 90])).items():
        np.testing.assert_array_equal(found, run.data.batch(np.array([30, 7, 90]))[name])


# ---- on the cluster -----------------------------------------------------------------------------------------------


def begun(address: str, *works: Callable[[onnx.ModelProto], Any], threads: int = 1) -> list[Any]:
    """What comes of these, begun at once."""
    with joined(address, threads, lambda _note: None) as team:
        assert team is not None
        waits = [team.begin(lambda: EMPTY, work) for work in works]
        return [wait() for wait in waits]


def test_both_nodes_work(nodes: Any) -> None:
    def where(_model: onnx.ModelProto) -> str:
        time.sleep(1.0)
        return str(ray.get_runtime_context().get_node_id())

    assert len(set(begun(nodes.address, *[where] * 4))) == 2


def test_a_session_there_has_the_threads_of_one_here(nodes: Any) -> None:
    """Last digits depend on it, and with them what is found."""

    def number(_model: onnx.ModelProto) -> int:
        return int(open_session(str(RESNET)).get_session_options().intra_op_num_threads)

    assert begun(nodes.address, number, threads=3) == [3]


def test_a_worker_that_dies_is_replaced(nodes: Any, tmp_path: Path) -> None:
    mark = tmp_path / "died"

    def once(_model: onnx.ModelProto) -> str:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    assert begun(nodes.address, once) == ["done"]
    assert mark.exists()


def test_what_kills_every_worker_is_given_up(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRIES", 0)
    with pytest.raises(ClusterError, match="an evaluation was lost for good") as caught:
        begun(nodes.address, lambda _model: os.kill(os.getpid(), signal.SIGKILL))
    assert "--resume" in caught.value.fix


def test_an_error_in_a_worker_is_the_same_error(nodes: Any) -> None:
    def fails(_model: onnx.ModelProto) -> None:
        raise DataError("it is bad", where="there", fix="mend it")

    with pytest.raises(DataError, match="there: it is bad\n  -> mend it"):
        begun(nodes.address, fails)


def test_a_node_with_other_software_is_refused(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "software", lambda: dict.fromkeys(module.SOFTWARE, "7"))
    with pytest.raises(ClusterError, match=r"it has onnx-amc 0\.1\.0, not 7, onnxruntime"):
        begun(nodes.address, lambda _model: None)


def test_a_node_with_other_instructions_is_told_of(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "processor_kind", lambda: "Z80")
    notes: list[str] = []
    with joined(nodes.address, 1, notes.append) as team:
        assert team is not None
        assert [team.begin(lambda: EMPTY, lambda _model: 1)() for _ in range(2)] == [1, 1]
    assert len(notes) == 1
    assert "Z80" in notes[0]


def test_the_same_plan_and_the_same_bytes(nodes: Any, alone: Result) -> None:
    assert_same(alone, onnx_amc.compress(RESNET, metric="onnx_amc_own_metric:score", ray=nodes.address, **RUN))


class Killer(Listener):
    """Kills a node when the first plan has been tried."""

    def __init__(self, nodes: Any) -> None:
        self.nodes, self.killed = nodes, False

    def tried(self, tried: Tried) -> None:
        if not self.killed:
            self.nodes.remove_node(self.nodes.worker_nodes.copy().pop(), allow_graceful=False)
            self.killed = True


def test_the_loss_of_a_node_changes_nothing(nodes: Any, alone: Result) -> None:
    killer = Killer(nodes)
    assert_same(
        alone,
        onnx_amc.compress(RESNET, metric="onnx_amc_own_metric:score", ray=nodes.address, listener=killer, **RUN),
    )
    assert killer.killed
    assert not nodes.worker_nodes


def test_when_the_cluster_is_lost_the_run_can_be_resumed(
    nodes: Any, alone: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last test with these nodes."""
    out, journal = tmp_path / "small.onnx", tmp_path / "small.run" / "evaluations.jsonl"
    command = ["compress", str(RESNET), "--flops", "0.5", "--policy", "random", "--episodes", "4", "--no-recover"]
    command += ["--metric", "onnx_amc_own_metric:score", "--quiet", "-o", str(out)]
    address = nodes.address  # forgotten when the nodes are gone
    with subprocess.Popen(
        [sys.executable, "-m", "onnx_amc", *command, "--ray", address],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        while run.poll() is None and not (journal.exists() and len(journal.read_text().splitlines()) > 4):
            time.sleep(0.1)
        nodes.shutdown()
        printed, said = run.communicate(timeout=120)
    assert (run.returncode, printed) == (2, ""), said
    assert said.startswith(f"onnx-amc: --ray {address}: ")
    assert len(said.splitlines()) == 2
    assert "--resume goes on" in said
    assert not out.exists()
    known = journal.read_text().splitlines()
    assert main([*command, "--resume"]) == 0
    assert journal.read_text().splitlines()[: len(known)] == known
    assert onnx.load(out) == alone.model


# ---- without a cluster --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "--ray 127.0.0.1:1: nothing answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:1", "nothing answers"),
        ("nowhere", "--ray: 'nowhere' is no address"),
        ("local", "'local' is no address"),
    ],
)
def test_no_cluster_at_the_address(address: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    assert main(["compress", str(RESNET), "--flops", "0.5", "--quiet", "--ray", address, "-o", str(out)]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "onnx_amc.run.parcel", raising=False)
    assert main(["compress", str(RESNET), "--flops", "0.5", "--quiet", "--ray", "auto"]) == 2
    assert 'pip install "onnx-amc[ray]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("auto", None),
        ("ray://there:10001", ("there", 10001)),
        ("[::1]:6379", ("::1", 6379)),
        ("there:", None),
        ("a:99999", None),
    ],
)
def test_host_and_port(address: str, place: tuple[str, int] | None) -> None:
    assert place_of(address) == place
