"""Latency learnt from a few plans: the law against invented machines, the measuring against onnxruntime and real commands."""

from __future__ import annotations

import itertools
import json
import math
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from timed import QUICK, built, levels, network, up, whole

from onnx_amc.delivery import one_feed
from onnx_amc.errors import OptionError
from onnx_amc.graph import cost
from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.load import load
from onnx_amc.run import clock
from onnx_amc.run.clock import Effort, measure_table, probe_plans
from onnx_amc.run.kernels import Kernel, in_turn
from onnx_amc.run.learn import Anchors, Probe, common_anchors, learn
from onnx_amc.run.table import LatencyTable, assembled
from onnx_amc.search.space import Space

# ---- the law, on machines that are known exactly ------------------------------------------------------------------


def machine(analysis: Analysis, block: int) -> Callable[[np.ndarray], tuple[float, tuple[Kernel, ...]]]:
    """A machine that takes 3 us per kernel, 1 ns per MAC and 2 ns per element written, all in whole blocks.

    Each convolution is a kernel, named as onnxruntime names them, and each is followed by a reordering that has no name of its own.
    """
    price = cost.macs(analysis)
    made = cost.elements(analysis, price.names)
    _, (kernels,) = in_turn([analysis.model.original], one_feed(analysis.model))
    anchors = common_anchors(analysis, [Probe((), 1, 1, 1, kernels)])
    last = {n.output[0]: a for a in anchors for n in analysis.model.proto.graph.node if a in n.output}

    def run(counts: np.ndarray) -> tuple[float, tuple[Kernel, ...]]:
        kernels: list[Kernel] = []
        for i, name in enumerate(price.names):
            macs, elements = (
                float(
                    p.constant[i]
                    * np.prod(np.where(p.share[i].any(1), up(p.base[i] + p.share[i] @ counts, block), p.base[i]))
                )
                for p in (price, made)
            )
            kernels.append(Kernel(f"{last.get(name, name)}_nchwc", "Conv", 3 + 1e-3 * macs))
            kernels.append(Kernel(f"ReorderOutput_token_{i}", "ReorderOutput", 2e-3 * elements))
        return sum(k.microseconds for k in kernels) / 1e3, tuple(kernels)

    return run


def probed(analysis: Analysis, block: int, *, kernels: bool, count: int = 24, noise: float = 0.0) -> list[Probe]:
    """What such a machine shows; a slow hour changes all times alike."""
    run, rng = machine(analysis, block), np.random.default_rng(0)
    original, reference = run(whole(analysis))
    probes = []
    for counts in probe_plans(levels(analysis), count, 0):
        found, seen = run(counts)
        slow = rng.uniform(1, 1.5)
        ratio = found / original * float(np.exp(noise * rng.normal()))
        seen = tuple(k._replace(microseconds=k.microseconds * slow) for k in seen)
        total = slow * sum(k.microseconds for k in reference)
        probes.append(Probe(tuple(counts.tolist()), ratio, original, *((total, seen) if kernels else ())))
    return probes


def wrong(analysis: Analysis, table: LatencyTable, block: int) -> float:
    """Largest relative error on fresh plans."""
    run, plans = machine(analysis, block), probe_plans(levels(analysis), 20, 5)[6:]
    truth = np.array([run(p)[0] for p in plans])
    return float(np.abs(table.many(plans) / truth - 1).max())


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mobilenet"])
@pytest.mark.parametrize("block", [1, 8, 16])
def test_kernels_show_a_law_exactly(name: str, block: int) -> None:
    analysis = network(name)
    table = learn(analysis, probed(analysis, block, kernels=True, noise=0.02))
    assert table.basis == "kernels"
    assert wrong(analysis, table, block) < 0.03


@pytest.mark.parametrize("block", [1, 8])
def test_whole_networks_show_it_nearly(block: int) -> None:
    analysis = network()
    table = learn(analysis, probed(analysis, block, kernels=False))
    assert table.basis == "networks"
    assert wrong(analysis, table, block) < 0.05
    assert table.error < 0.03


def test_a_table_that_learnt_nonsense_says_so() -> None:
    analysis = network()
    probes = probed(analysis, 8, kernels=True)
    ratios = np.random.default_rng(1).permutation([p.ratio for p in probes])
    table = learn(analysis, [p._replace(ratio=float(r)) for p, r in zip(probes, ratios, strict=True)])
    assert table.error > 0.1
    assert wrong(analysis, table, 8) > 0.1


def test_the_whole_network_is_predicted_to_take_what_it_took() -> None:
    analysis = network()
    probes = [p._replace(milliseconds=7.0) for p in probed(analysis, 8, kernels=True, noise=0.05)]
    assert learn(analysis, probes).many(whole(analysis)[None])[0] == pytest.approx(7.0, rel=0.02)


def test_where_nothing_can_be_cut_it_is_what_was_measured() -> None:
    analysis = network()
    table = learn(analysis, [Probe(tuple(whole(analysis).tolist()), 1.0, ms) for ms in (3.0, 5.0, 4.0)])
    assert table.many(np.array([whole(analysis), whole(analysis) - 1])).tolist() == pytest.approx([4.0, 4.0], rel=1e-3)
    assert math.isnan(table.error)


@pytest.mark.parametrize("kernels", [True, False])
def test_who_keeps_less_never_takes_longer(*, kernels: bool) -> None:
    analysis = network("digits_mobilenet")
    table = learn(analysis, probed(analysis, 8, kernels=kernels, noise=0.2))
    rng = np.random.default_rng(0)
    plans = rng.integers(1, whole(analysis) + 1, (500, len(analysis.groups)))
    less = np.maximum(plans - rng.integers(0, 9, plans.shape), 1)
    before, after = table.many(plans), table.many(less)
    assert (after <= before * (1 + 1e-12)).all()
    assert (after < before).any()
    assert (table.many(np.zeros_like(plans)) >= 0).all()


def test_the_search_takes_it_as_a_price() -> None:
    analysis = network()
    table = learn(analysis, probed(analysis, 8, kernels=True))
    full = int(table.nanoseconds(whole(analysis)[None])[0])
    names = tuple(g.name for g in analysis.groups)
    space = Space(names, tuple(levels(analysis)), table.nanoseconds, full * 6 // 10, "ns")
    plan = space.largest(lambda r: np.full(len(space), r))
    assert 0.4 < space.price(plan) / full <= 0.6


def test_the_sum_of_terms_is_the_formula() -> None:
    analysis, rng = network(), np.random.default_rng(3)
    price = cost.macs(analysis)
    weights = {block: rng.random(len(price.names)) * (rng.random(len(price.names)) < 0.7) for block in (1, 8)}
    table = assembled([(price, block, w) for block, w in weights.items()], 0.25)
    for counts in probe_plans(levels(analysis), 5, 1):
        wanted = 0.25
        for block, w in weights.items():
            for i in range(len(price.names)):
                lengths = price.base[i] + price.share[i] @ counts
                rounded = [
                    up(n, block) if s.any() else n for n, s in zip(lengths.tolist(), price.share[i], strict=True)
                ]
                wanted += w[i] * price.constant[i] * math.prod(rounded)
        assert table.many(counts[None])[0] == pytest.approx(wanted)


def test_elements_are_those_of_the_cut_model() -> None:
    analysis = network()
    for counts in probe_plans(levels(analysis), 3, 2):
        model = load(built(analysis, counts))
        names = [o for n in analysis.model.proto.graph.node for o in n.output]
        found = cost.elements(analysis, names).terms(counts).tolist()
        assert found == [math.prod(model.shapes[n]) for n in names]
    assert cost.elements(analysis, ["no such tensor"])(counts) == 0


# ---- probes -------------------------------------------------------------------------------------------------------


def test_probes_show_every_group_at_all_its_levels() -> None:
    steps = [np.array([2, 4, 8]), np.arange(1, 13), np.array([5])]
    plans = probe_plans(steps, 24, 0)
    assert plans[0].tolist() == [8, 12, 5]
    assert plans[1].tolist() == [2, 1, 5]
    assert len({tuple(p) for p in plans.tolist()}) == len(plans)
    for mine, column in zip(steps, plans.T, strict=True):
        assert set(column.tolist()) == set(mine.tolist())
    assert np.array_equal(plans, probe_plans(steps, 24, 0))
    assert not np.array_equal(plans, probe_plans(steps, 24, 1))


@pytest.mark.parametrize(
    ("kernel", "tensor"),
    [("/1/Relu_output_0_nchwc", "/1/Relu_output_0"), ("fused /1/Conv", None), ("/7/7.2/Gemm", "logits"),
     ("/7/7.2/Gemm/MatMulAddFusion", "logits"), ("ReorderOutput_token_3", None), ("/7/7.2/Gemmer", None)],
)  # fmt: skip
def test_a_kernel_is_known_by_the_name_it_got(kernel: str, tensor: str | None) -> None:
    analysis = network()
    outputs = {"logits": analysis.model.proto.graph.output[0].name}
    found = Anchors(analysis).find(kernel)
    assert found == (outputs.get(tensor, tensor) if tensor else None)


def test_kernels_without_a_name_go_with_their_neighbours() -> None:
    anchors = Anchors(network())
    first, second = "/1/Relu_output_0", "/2/body/body.1/Relu_output_0"
    ran = [("ReorderInput", "ReorderInput"), (first, "Conv"), ("ReorderOutput_7", "ReorderOutput"), ("new", "Cast"),
           (second, "Conv"), ("end", "Cast")]  # fmt: skip
    kernels = [Kernel(name, op, 1.0) for name, op in ran]
    found = {a: [k.name for k in ks] for a, ks in anchors.grouped(kernels).items()}
    assert found == {first: ["ReorderInput", first, "ReorderOutput_7"], second: ["new", second, "end"]}
    assert list(anchors.grouped(kernels, frozenset({second}))) == [second]
    assert len(anchors.grouped(kernels, frozenset({second}))[second]) == len(kernels)


# ---- measuring and remembering ---------------------------------------------------------------------------------------


def measured(
    folder: Path | None, *, threads: int = 1, seed: int = 0, effort: Effort = QUICK, name: str = "digits_resnet"
) -> tuple[LatencyTable, int]:
    """A table of a network, and how many models were built for it."""
    analysis, calls = network(name), itertools.count()

    def build(counts: np.ndarray) -> onnx.ModelProto:
        next(calls)
        return built(analysis, counts)

    table = measure_table(
        analysis, build, levels(analysis), one_feed(analysis.model), threads=threads, seed=seed, probes=effort,
        cache=folder,
    )  # fmt: skip
    return table, next(calls)


def test_a_real_network_is_measured_once(tmp_path: Path) -> None:
    name = "plain20_cifar10"  # the other one takes 0.05 ms, of which calls are a part that no cut makes smaller
    analysis = network(name)
    table, calls = measured(tmp_path, name=name)
    assert calls == len(probe_plans(levels(analysis), QUICK.random, 0))
    full, least = table.many(np.array([whole(analysis), [lv[0] for lv in levels(analysis)]]))
    assert 0.1 < full < 100
    assert least < 0.7 * full
    again, calls = measured(tmp_path, name=name)
    assert calls == 0
    assert (again.constant, again.weight.tolist()) == (table.constant, table.weight.tolist())
    assert [p.suffix for p in tmp_path.iterdir()] == [".json"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is run, all take a second."""

    def timed(models: list[object], *_: object, **__: object) -> tuple[list[np.ndarray], list[tuple[Kernel, ...]]]:
        return [np.ones((5, 2)) for _ in models], [() for _ in models]

    monkeypatch.setattr(clock, "in_turn", timed)


@pytest.mark.usefixtures("quick")
def test_what_was_measured_otherwise_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(tmp_path)[1] > 0
    assert measured(tmp_path, threads=2)[1] > 0
    assert measured(tmp_path, seed=1)[1] > 0
    assert measured(tmp_path, effort=replace(QUICK, runs=5))[1] > 0
    monkeypatch.setattr(platform, "node", lambda: "another host")
    assert measured(tmp_path)[1] > 0
    assert measured(None)[1] > 0
    assert measured(tmp_path)[1] == 0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: json.dumps({"key": json.loads(text)["key"], "probes": []}),
        lambda text: json.dumps(json.loads(text) | {"key": "another"}),
        lambda text: json.dumps(json.loads(text) | {"probes": [[*p[:1], -1.0, *p[2:]] for p in json.loads(text)["probes"]]}),
        lambda text: json.dumps(json.loads(text) | {"probes": [p[:4] for p in json.loads(text)["probes"]]}),
    ],
    ids=["cut off", "a list", "no probes", "other key", "negative", "short"],
)  # fmt: skip
def test_a_damaged_cache_is_measured_again(tmp_path: Path, spoil: Callable[[str], str]) -> None:
    assert measured(tmp_path)[1] > 0
    (file,) = tmp_path.iterdir()
    kept = file.read_text(encoding="utf-8")
    assert measured(tmp_path)[1] == 0
    file.write_text(spoil(kept), encoding="utf-8")
    assert measured(tmp_path)[1] > 0
    assert file.read_text(encoding="utf-8") == kept


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("not a folder", encoding="utf-8")
    with pytest.raises(OptionError, match="measurements cannot be kept") as caught:
        clock._write(place / "latency.json", "key", [])
    assert str(place) in str(caught.value)
