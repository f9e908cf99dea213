"""Recovery: the cut network learns what the original answers, from the same samples, and only its weights change."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from onnx_amc.builder import Builder
from onnx_amc.config import Budget, Settings
from onnx_amc.delivery import input_specs
from onnx_amc.graph.groups import analyse
from onnx_amc.graph.load import load
from onnx_amc.prune.sparse import elements
from onnx_amc.prune.surgery import finish
from onnx_amc.recover import distil
from onnx_amc.recover.course import Course, Progress, Standing, Task
from onnx_amc.recover.distil import BELOW, HIGHEST, LOWEST, Distiller
from onnx_amc.recover.hints import hints_of
from onnx_amc.recover.recovery import recovered, repeated, with_values
from onnx_amc.run import data as sources
from onnx_amc.run.crew import usable_cores
from onnx_amc.run.metrics import fidelity
from onnx_amc.run.score import Scorer

MODELS = Path(__file__).parents[1] / "models"
Halved = tuple[Task, Scorer]
SHORT = Course(epochs=4, batch=25, rate=1e-2, hints=1.0)


def contents(model: onnx.ModelProto) -> list[bytes]:
    return [onnx.numpy_helper.to_array(t).tobytes() for t in model.graph.initializer]


def values_of(model: onnx.ModelProto, feed: Mapping[str, np.ndarray], names: list[str]) -> dict[str, torch.Tensor]:
    """Tensors inside a network."""
    open_model = onnx.ModelProto.FromString(model.SerializeToString())
    open_model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(open_model.SerializeToString(), providers=["CPUExecutionProvider"])
    return {n: torch.from_numpy(v) for n, v in zip(names, session.run(names, dict(feed)), strict=True)}


def judged(scorer: Scorer) -> Callable[[onnx.ModelProto], tuple[float, float]]:
    """Score and worth by the outputs' likeness."""
    return lambda model: (scorer(model).value,) * 2


@pytest.fixture(scope="module")
def halved() -> Halved:
    """A shipped network, half of each group's channels gone and only cut; samples to train on, and a score on the others."""
    analysis = analyse(load(MODELS / "digits_resnet.onnx"))
    data = sources.load(MODELS / "digits_resnet.npz", input_specs(analysis.model.proto), classes=10)
    train, held = data.split(0, 300, 200)
    builder = Builder(analysis, Settings(Budget("channels", 0.5), refit=False), None, train)
    kept = builder.kept(np.array([g.channels // 2 for g in analysis.groups]))
    scorer = Scorer(analysis.model.original, data, held, fidelity, "fidelity")
    return Task(analysis, kept, builder.build(kept), data, train, SHORT, seed=0), scorer


@pytest.fixture(scope="module")
def few(halved: Halved) -> Halved:
    """The same with a third of the samples, where it is no matter how much is learnt."""
    task, scorer = halved
    return replace(task, index=task.index[:100]), scorer


def test_training_brings_the_outputs_nearer_and_changes_only_weights(halved: Halved) -> None:
    task, scorer = halved
    found, _ = recovered(task, judged(scorer))
    assert scorer.loss(found) < 0.6 * scorer.loss(task.cut)
    assert list(found.graph.node) == list(task.cut.graph.node)
    assert [(t.name, t.dims, t.data_type) for t in found.graph.initializer] == [
        (t.name, t.dims, t.data_type) for t in task.cut.graph.initializer
    ]


def test_the_same_seed_gives_the_same_bytes_whatever_the_labels(few: Halved) -> None:
    task, scorer = few
    tasks = (task, replace(task, data=replace(task.data, labels=None)), replace(task, seed=1))
    one, same, other = (recovered(t, judged(scorer))[0].SerializeToString() for t in tasks)
    assert one == same != other


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or usable_cores() < 2, reason="needs two cores to compare with one"
)
def test_one_core_finds_the_same_as_several(few: Halved) -> None:
    task, scorer = few
    several, cores = recovered(task, judged(scorer))[0], os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        one = recovered(task, judged(scorer))[0]
    finally:
        os.sched_setaffinity(0, cores)
    assert one.SerializeToString() == several.SerializeToString()


def distiller_of(task: Task) -> Distiller:
    proto = onnx.ModelProto.FromString(task.analysis.model.proto.SerializeToString())
    return Distiller(task.cut, proto, task.data, task.index, task.course)


def test_a_step_in_parts_has_the_gradient_of_the_whole(halved: Halved, monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = halved
    gradients = []
    monkeypatch.setattr(distil, "coarse_products", lambda: False)
    for parts in (1, 3):
        distiller = distiller_of(task)
        monkeypatch.setattr(distiller, "_shards", lambda samples, _f, n=parts: np.array_split(np.arange(samples), n))
        distiller._gradients(task.index[:25], np.random.default_rng(0), 1.0)
        gradients.append(torch.cat([w.grad.flatten() for w in distiller.reading.parameters() if w.grad is not None]))
    whole, summed = gradients
    assert float((summed - whole).norm() / whole.norm()) < 1e-5


def test_coarse_products_lead_where_exact_ones_do(halved: Halved, monkeypatch: pytest.MonkeyPatch) -> None:
    task, scorer = halved
    found, gradients = [], []
    for coarse in (False, True):
        monkeypatch.setattr(distil, "coarse_products", lambda known=coarse: known)
        distiller = distiller_of(task)
        assert distiller.coarse is coarse
        distiller._gradients(task.index[:25], np.random.default_rng(0), 1.0)
        gradients.append(torch.cat([w.grad.flatten() for w in distiller.reading.parameters() if w.grad is not None]))
        found.append(scorer.loss(recovered(task, judged(scorer))[0]))
    exact, rounded = gradients
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.05
    assert found[1] == pytest.approx(found[0], rel=0.1)


def test_a_network_that_does_not_bear_rounding_is_computed_exactly(
    halved: Halved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last layer's input is moved far away, and its output back again."""
    task, _ = halved
    cut = onnx.ModelProto.FromString(task.cut.SerializeToString())
    last = cut.graph.node.pop()
    weight = next(onnx.numpy_helper.to_array(t) for t in cut.graph.initializer if t.name == last.input[1])
    far = {"far": np.array(3e3, np.float32), "moved": (3e3 * weight.sum(axis=1)).astype(np.float32)}
    cut.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in far.items())
    cut.graph.node.append(onnx.helper.make_node("Add", [last.input[0], "far"], ["away"]))
    last.input[0], last.output[0] = "away", "above"
    cut.graph.node.append(last)
    cut.graph.node.append(onnx.helper.make_node("Sub", ["above", "moved"], ["logits"]))
    monkeypatch.setattr(distil, "coarse_products", lambda: True)
    assert not distiller_of(replace(task, cut=cut)).coarse
    assert distiller_of(task).coarse


def test_what_is_not_better_is_not_kept(few: Halved) -> None:
    task, _ = few
    asked: list[onnx.ModelProto] = []

    def worse(model: onnx.ModelProto) -> tuple[float, float]:
        asked.append(model)
        return 0.5, -float(len(asked))

    found, standing = recovered(task, worse)
    assert len(asked) == 1 + SHORT.epochs == 1 + len(standing.shares)
    assert contents(found) == contents(task.cut) != contents(asked[1])
    assert (standing.best_epoch, standing.best) == (0, (0.5, -1.0))


def test_a_better_worth_does_not_excuse_a_lower_score(few: Halved) -> None:
    task, _ = few
    answers = iter([(0.5, 0.0), (0.4, 9.0), (0.6, 1.0), (0.5, 2.0), (0.6, 0.5)])
    _, standing = recovered(task, lambda _m: next(answers))
    assert (standing.best_epoch, standing.best) == (3, (0.5, 2.0))


def test_training_ends_in_time(halved: Halved) -> None:
    task, _ = halved
    told: list[tuple[int, int]] = []
    began = time.monotonic()
    hurried = replace(task, course=replace(SHORT, epochs=1000, minutes=0.02))
    _, standing = recovered(hurried, lambda _m: (0.0, 0.0), lambda n, total, _t: told.append((n, total)))
    assert time.monotonic() - began < 60
    assert 1 <= len(told) < 1000
    assert told[-1][0] == told[-1][1] == len(told)
    assert standing.shares[-1] == pytest.approx(1.0)


def test_the_epochs_left_are_what_time_allows_of_whatever_went_before_the_first(halved: Halved) -> None:
    task, _ = halved
    distiller = distiller_of(replace(task, course=replace(SHORT, epochs=1000, minutes=10.0)))
    standing = Standing(12, 1e-2, (0.0, 0.0), (0.0, 0.0), shares=[0.01, 0.02], prelude=100.0, seconds=20.0)
    assert distiller._left(standing) == (600 - 120) // 10
    assert distiller._left(replace(standing, seconds=900.0)) == 1
    assert distiller._left(replace(standing, shares=[0.5, 1.0])) == 0
    assert distiller._left(replace(standing, diverged=True)) == 0


def test_an_interrupted_training_goes_on_and_finds_the_same(few: Halved, tmp_path: Path) -> None:
    task, scorer = few
    place = tmp_path / "state.npz"

    def until(epoch: int) -> Progress:
        def heard(done: int, _total: int, _note: str) -> None:
            if done == epoch:
                raise KeyboardInterrupt

        return heard

    whole, standing = recovered(task, judged(scorer))
    for epoch in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            recovered(task, judged(scorer), until(epoch), place)
    heard: list[int] = []
    found, again = recovered(task, judged(scorer), lambda done, _total, _note: heard.append(done), place)
    assert heard == [4]
    assert found.SerializeToString() == whole.SerializeToString()
    assert (again.shares, again.best, again.best_epoch) == (standing.shares, standing.best, standing.best_epoch)


def test_a_state_of_another_training_or_a_torn_one_is_not_gone_on_with(few: Halved, tmp_path: Path) -> None:
    task, scorer = few
    place, heard = tmp_path / "state.npz", list[int]()

    def train_again(course: Course) -> None:
        heard.clear()
        recovered(replace(task, course=course), judged(scorer), lambda done, _total, _note: heard.append(done), place)

    train_again(SHORT)
    train_again(SHORT)
    assert heard == []
    train_again(replace(SHORT, rate=5e-3))
    assert heard == [1, 2, 3, 4]
    place.write_bytes(place.read_bytes()[:1000])
    train_again(replace(SHORT, rate=5e-3))
    assert heard == [1, 2, 3, 4]


def test_a_training_is_repeated_from_what_is_known_of_it(few: Halved) -> None:
    task, _ = few
    told = iter([(0.5, 0.0), (0.5, 1.0), (0.5, 3.0), (0.5, 2.0), (0.5, 2.0)])
    found, standing = recovered(task, lambda _m: next(told))
    assert len(standing.replay.shares) == 2
    assert repeated(task, standing.replay).SerializeToString() == found.SerializeToString()


def test_hints_are_the_blocks_ends_and_name_the_channels_that_are_left(halved: Halved) -> None:
    task, _ = halved
    makers = {o: n.op_type for n in task.analysis.model.proto.graph.node for o in n.output}
    hints = hints_of(task.analysis, task.kept)
    assert [makers[h.name] for h in hints] == ["Conv"] + ["Add"] * 5
    feed = task.data.batch(np.arange(4))
    whole, less = (values_of(model, feed, [h.name for h in hints]) for model in (task.analysis.model.proto, task.cut))
    for hint in hints:
        assert hint.of(whole[hint.name]).shape == less[hint.name].shape != whole[hint.name].shape
    first = hints[0]
    assert torch.allclose(first.of(whole[first.name]), less[first.name], atol=1e-5)


def test_hints_make_the_inside_more_alike(halved: Halved) -> None:
    task, _ = halved
    hints = hints_of(task.analysis, task.kept)
    feed, names = task.data.batch(np.arange(200)), [h.name for h in hints]
    goal = values_of(task.analysis.model.proto, feed, names)
    gaps = []
    for weight in (0.0, 1.0):
        steady = iter(range(100))
        model, _ = recovered(replace(task, course=replace(SHORT, hints=weight)), lambda _m, s=steady: (0.0, next(s)))  # type: ignore[misc]
        found = values_of(model, feed, names)
        gaps.append([float((h.of(goal[h.name]) - found[h.name]).square().mean()) for h in hints])
    assert sum(gaps[1]) < 0.8 * sum(gaps[0])


def test_the_original_in_torch_answers_as_in_onnxruntime(halved: Halved) -> None:
    task, _ = halved
    proto = task.analysis.model.proto
    distiller = distiller_of(task)
    feed = task.data.batch(np.arange(8))
    one, other = (way(proto, "model")(feed) for way in (distiller._in_onnxruntime, distiller._in_torch))
    assert one.keys() == other.keys() == {"logits"}
    assert torch.allclose(one["logits"], other["logits"], atol=1e-4)


def test_values_go_where_they_belong(halved: Halved) -> None:
    cut = halved[0].cut
    name = cut.graph.initializer[0].name
    array = onnx.numpy_helper.to_array(cut.graph.initializer[0])
    changed = with_values(cut, {name: array + 1})
    assert np.array_equal(onnx.numpy_helper.to_array(changed.graph.initializer[0]), array + 1)
    assert changed.graph.initializer[1:] == cut.graph.initializer[1:]
    assert np.array_equal(onnx.numpy_helper.to_array(cut.graph.initializer[0]), array)


def test_new_values_take_as_many_bytes_as_the_old_ones(halved: Halved) -> None:
    """A budget of bytes is held by the untrained model."""
    cut = halved[0].cut
    values = {t.name: onnx.numpy_helper.to_array(t) for t in cut.graph.initializer}
    assert with_values(cut, values).ByteSize() == cut.ByteSize()


def normed(mean: str) -> tuple[Task, onnx.ModelProto]:
    """A network whose three norms share their vectors, half of each group gone, and what is delivered of it untrained."""
    layers = "  ".join(
        f"h{i} = Gemm(b{i}, w{i}, c{i})  r{i} = Relu(h{i})  b{i + 1} = BatchNormalization(r{i}, g, z, {mean}, v)"
        for i in range(3)
    )
    text = f"net (float[N,12] x) => (float[N,8] y) {{ b0 = Identity(x)  {layers}  y = Gemm(b3, u) }}"
    model, rng = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'), np.random.default_rng(0)
    vectors = {"g": np.ones(16), "z": np.zeros(16), "m": np.full(16, 0.5), "v": np.full(16, 2.0)}
    weights = {f"w{i}": rng.normal(size=(16 if i else 12, 16)) / 4 for i in range(3)} | {
        "u": rng.normal(size=(16, 8)) / 4
    }
    for name, value in (vectors | weights | {f"c{i}": rng.normal(size=16) for i in range(3)}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    analysis = analyse(load(model))
    (spec,) = input_specs(analysis.model.proto)
    data = sources.Dataset((spec,), {"x": rng.normal(size=(200, 12)).astype(np.float32)}, None, "noise")
    builder = Builder(analysis, Settings(Budget("channels", 0.5), refit=False), None, np.arange(100))
    kept = builder.kept(np.array([g.channels // 2 for g in analysis.groups]))
    task = Task(analysis, kept, builder.build(kept), data, np.arange(100), SHORT, seed=0)
    return task, builder.deliverable(kept, builder.build(kept))


def test_what_the_file_stores_once_is_trained_as_one() -> None:
    task, before = normed("m")
    better = iter(range(100))
    found, standing = recovered(task, lambda _m: (0.0, next(better)))
    trained = {t.name: onnx.numpy_helper.to_array(t) for t in found.graph.initializer}
    gains = [trained[node.input[1]] for node in found.graph.node if node.op_type == "BatchNormalization"]
    assert np.array_equal(gains[0], gains[1])
    assert np.array_equal(gains[0], gains[2])
    assert np.abs(gains[0] - 1).min() > 0
    assert repeated(task, standing.replay) == found
    after = finish(task.analysis, found)
    assert elements(after) == elements(before)
    assert after.ByteSize() == before.ByteSize()


def test_a_shift_that_is_stored_as_a_mean_too_stays_as_it_is() -> None:
    """Means are not trained: moved alone, the shift would be stored beside them."""
    task, before = normed("z")
    better = iter(range(100))
    after = finish(task.analysis, recovered(task, lambda _m: (0.0, next(better)))[0])
    assert elements(after) == elements(before)
    changed = {t.name for t, old in zip(after.graph.initializer, before.graph.initializer, strict=True) if t != old}
    assert "g" in changed
    assert "z" not in changed


def test_the_rate_suits_the_network_and_finding_it_leaves_the_weights_alone(few: Halved) -> None:
    task, scorer = few
    free = replace(task, course=replace(SHORT, rate=None))
    _, standing = recovered(free, judged(scorer))
    assert LOWEST / BELOW < standing.rate <= HIGHEST / BELOW
    distiller = distiller_of(task)
    start = {name: value.copy() for name, value in distiller.reading.trained().items()}
    assert distiller._suited_rate() == distiller._suited_rate()
    assert all(np.array_equal(value, start[name]) for name, value in distiller.reading.trained().items())


@pytest.mark.parametrize("exponent", [-40, -20, 20])
def test_the_units_of_the_outputs_change_nothing(few: Halved, exponent: int) -> None:
    """The last layer, its bias of zero included, and what is to be learnt scaled by a power of two."""
    task, _ = few
    (last,) = (n for n in task.cut.graph.node if n.op_type == "Gemm")

    def scaled(proto: onnx.ModelProto, by: float) -> onnx.ModelProto:
        given = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
        return with_values(
            proto, {last.input[1]: given[last.input[1]] * np.float32(by), last.input[2]: 0 * given[last.input[2]]}
        )

    def trained(by: float) -> tuple[np.ndarray, np.ndarray]:
        distiller = Distiller(scaled(task.cut, by), scaled(task.analysis.model.proto, by), task.data, task.index, SHORT)
        better = iter(range(100))
        values, _ = distiller.train(lambda _values: (0.0, next(better)))
        return values[last.input[1]] / by, values[last.input[2]] / by

    (weight, bias), (wanted, usual) = trained(2.0**exponent), trained(1.0)
    np.testing.assert_allclose(weight, wanted, atol=0.02 * np.abs(wanted).max())
    assert 0.01 * np.abs(usual).mean() < np.abs(bias).mean() < 100 * np.abs(usual).mean()
