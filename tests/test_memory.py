"""What a run may ask of the memory: too much is refused before it is made, what does not fit goes to disk or is taken in parts."""

from __future__ import annotations

import gc
import pickle
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_hostile import toy
from test_refit import SAMPLES, net, noise

import onnx_amc
from onnx_amc.cli import main
from onnx_amc.compression import Compression
from onnx_amc.config import Budget, Settings
from onnx_amc.errors import DataError, ModelError, OptionError
from onnx_amc.fit.moments import Moments
from onnx_amc.graph import limits
from onnx_amc.graph.groups import analyse
from onnx_amc.graph.load import load
from onnx_amc.intake import SYNTHETIC_SAMPLES, find_data
from onnx_amc.listener import Listener
from onnx_amc.pipeline import compress
from onnx_amc.prune.layers import find_layers
from onnx_amc.run import capture, shelf
from onnx_amc.run.capture import gather_moments
from onnx_amc.run.samples import MIN_SAMPLES
from onnx_amc.run.session import open_session, run_session

MODELS = Path(__file__).parents[1] / "models"


def sized(name: str) -> onnx.ModelProto:
    """A small file that asks for much."""
    model = toy()
    graph = model.graph
    match name:
        case "input":
            for dim in graph.input[0].type.tensor_type.shape.dim:
                dim.dim_value = 2**16
        case "batch":
            graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**21
        case "sparse":
            values = numpy_helper.from_array(np.ones(1, np.float32), "s")
            index = numpy_helper.from_array(np.array([3]), "")
            graph.sparse_initializer.append(helper.make_sparse_tensor(values, index, [2**20, 2**20]))
        case "filled":
            graph.initializer.append(numpy_helper.from_array(np.array([2**20, 2**20]), "shape"))
            graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["much"]))
            graph.node.insert(1, helper.make_node("ReduceMax", ["much"], ["most"], keepdims=0))
            graph.output.append(helper.make_tensor_value_info("most", TensorProto.FLOAT, []))
    return model


@pytest.mark.parametrize("name", ["input", "batch", "sparse", "filled"])
def test_sizes_beyond_the_memory_are_refused_before_they_are_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory", lambda: 2**31)
    with pytest.raises(ModelError, match=r"for one sample|one sample takes"):
        load(sized(name))


def test_what_would_fit_once_but_is_held_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory", lambda: 6 * 2**30)
    model = toy()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**20
    with pytest.raises(ModelError, match=r"one sample takes 2\.2 GB of the 6\.0 GB"):
        load(model)


def test_want_of_memory_is_not_blamed_on_the_shapes() -> None:
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [1])
    much = helper.make_tensor_value_info("much", TensorProto.FLOAT, [None])
    graph = helper.make_graph([helper.make_node("ConstantOfShape", ["shape"], ["much"])], "g", [shape], [much])
    session = open_session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    with pytest.raises(DataError) as caught:
        run_session(session, None, {"shape": np.array([2**44])}, where="m")
    assert caught.value.fix == "run it where there is more memory, or on smaller samples"


def test_a_part_of_the_work_takes_a_quarter_of_the_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory", lambda: 1000)
    assert [limits.room(200), limits.room(300)] == [200, 250]


def test_what_fits_is_not_refused() -> None:
    analysis = analyse(load(toy()))
    assert limits.at_a_time(analysis.model.proto, analysis.model.shapes) == 2 * 8 * 36
    assert limits.memory() > 2**28
    assert not limits.is_huge((None, 64, 512, 512))
    assert all(map(limits.is_huge, [(2**31 - 1, 0), (2**20, 2**20)]))


def test_made_up_samples_are_fewer_where_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs count, and the outputs of two networks."""
    loaded = load(toy())
    for room, samples in ((2**30, SYNTHETIC_SAMPLES), (20 * 4 * (3 + 2 * 4) * 6 * 6, 20), (1, MIN_SAMPLES)):
        monkeypatch.setattr(shelf, "MEMORY", room)
        made = find_data(loaded, toy(), None, 0, Listener())
        assert made is not None
        assert len(made) == samples


def test_no_more_memory_is_said_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def starved(*_args: object, **_more: object) -> None:
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(onnx_amc, "inspect", starved)
    assert main(["inspect", str(MODELS / "digits_mlp.onnx")]) == 2
    heard = capsys.readouterr().err
    assert "the memory does not suffice: Unable to allocate 9 GiB\n  ->" in heard
    assert "Traceback" not in heard


DEEP = """(float[N,3,6,6] x) => (float[N,6,6,6] y) <float[8,3,3,3] w, float[8] b, float[6,4,1,1] v, float[6,6,1,1] u> {
    h = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu (h) k = Conv <group = 2> (r, v) s = Relu (k) y = Conv (s, u) }"""


def test_moments_beyond_the_memory_are_the_same_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    analysis = net(DEEP)
    layers, _ = find_layers(analysis)
    told: list[tuple[int, int]] = []
    held, shelved = (
        gather_moments(
            analysis.model, layers, noise(analysis), np.arange(SAMPLES), rows=900, seed=0, memory=memory,
            progress=lambda done, total: told.append((done, total)),
        )
        for memory in (None, 1e-9)
    )  # fmt: skip
    assert list(held) == list(shelved) == ["h", "k", "y"]
    for node, one in held.items():
        sent = pickle.loads(pickle.dumps(shelved[node]))
        for other in (shelved[node], sent):
            assert other.rows == one.rows
            for g in range(one.groups):
                assert np.array_equal(other.covariance(g), one.covariance(g))
                assert np.array_equal(other.mean(g), one.mean(g))
        assert shelved[node]._gram.size == 0 < sent._gram.size
    assert told[-1] == (3 * SAMPLES, 3 * SAMPLES)
    assert not list(tmp_path.iterdir()), "the files have no names that could outlive the process"


@pytest.mark.parametrize("gone", [True, False])
def test_a_disk_that_does_not_suffice_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool) -> None:
    resource = pytest.importorskip("resource")
    place = tmp_path / "none" if gone else tmp_path
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    for keep in (Moments(1, 100).shelve, lambda: shelf.Shelf(10).add(np.zeros((1000, 10)))):
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual[1] if gone else 5000, usual[1]))
        try:
            with pytest.raises(OptionError, match=rf"{place}: temporary files cannot be written.*\n.*TMPDIR"):
                keep()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_a_run_on_little_memory_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = MODELS / "digits_resnet.onnx", MODELS / "digits_resnet.npz"
    settings = Settings(Budget("flops", 0.5), policy="knapsack", recover=False)
    found = [compress(model, data, settings).model]
    shelved: list[Moments] = []

    def shelve(self: Moments, inner: Callable[[Moments], None] = Moments.shelve) -> None:
        inner(self)
        shelved.append(self)

    monkeypatch.setattr(capture, "MOMENTS", 1)
    monkeypatch.setattr(Moments, "shelve", shelve)
    found.append(compress(model, data, settings).model)
    assert shelved
    assert found[0].SerializeToString() == found[1].SerializeToString()


@pytest.mark.parametrize("reward", ["error", "flops", "held:score"])
def test_what_a_run_held_is_gone_before_the_next_one_begins(
    reward: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "held.py").write_text("def score(score, loss, costs):\n    return score\n")
    settings = Settings(Budget("flops", 0.5), policy="uniform", reward=reward, recover=False)
    run = Compression(MODELS / "digits_mlp.onnx", None, settings, Listener())
    result, held = run.deliver(run.choose()), weakref.ref(run.builder)
    assert np.isfinite(result.trials[0].reward)
    del run
    gc.disable()
    try:
        Compression(MODELS / "digits_mlp.onnx", None, settings, Listener())
    finally:
        gc.enable()
    assert held() is None, "neither a ring nor the result, which the caller keeps, holds it"
