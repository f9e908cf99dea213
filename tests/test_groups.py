"""Groups on networks whose structure is known, and on real ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import Row, flat, image
from oracle import counts_of, delivered, difference, gap, mispriced
from shared_nets import hydrated, needs_shared

import onnx_amc
from onnx_amc.graph import cost
from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import load
from onnx_amc.search.space import levels_of


def half(analysis: Analysis) -> dict[str, tuple[int, ...]]:
    return {g.name: tuple(range(0, g.channels, 2)) for g in analysis.groups}


@needs_shared
@pytest.mark.parametrize(
    ("name", "groups", "channels"),
    [
        ("resnet20_cifar10", 12, [16] * 4 + [32] * 2 + [16] + [32] + [64] * 2 + [32] + [64]),
        ("resnet56_cifar10", 30, None),
    ],
)
def test_residual_streams_through_option_a_shortcuts(name: str, groups: int, channels: list[int] | None) -> None:
    analysis = analyse(load(hydrated(name)))
    assert len(analysis.groups) == groups
    assert not any(g.lanes.together for g in analysis.groups), "a pool over everything is no reason to round to eights"
    if channels:
        assert sorted(g.channels for g in analysis.groups) == sorted(channels)
    assert difference(analysis, half(analysis)) < 1e-5


@needs_shared
@pytest.mark.parametrize("name", ["mobilenet_v1_0.75_imagenet", "fastestdet", "ultraface_rfb_320", "mnist_cntk"])
def test_real_networks_are_cut_exactly(name: str) -> None:
    original = hydrated(name)
    analysis = analyse(load(original))
    kept = half(analysis)
    assert difference(analysis, kept) < 1e-5
    full = np.array([g.channels for g in analysis.groups])
    price = cost.macs(analysis)
    assert price(counts_of(analysis, kept)) < 0.4 * price(full)


ARCHITECTURES = {
    "dyn_mobilenet_v2": 0.32,
    "timm_coat_lite_tiny": 0.6,
    "timm_edgenext_xx_small": 0.6,
    "timm_eva02_tiny_patch14_224": 0.6,
    "timm_levit_128s": 0.32,
    "timm_vit_tiny_patch16_224": 0.6,
    "tv_regnet_y_400mf": 0.32,
    "tv_shufflenet_v2_x0_5": 0.33,
    "tv_squeezenet1_1": 0.33,
}
"""Graphs of the zoo, and the share of the MACs that may be left at half of the channels; benchmarks/zoo.py tries them all."""


@needs_shared
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_are_cut_far_and_exactly(name: str) -> None:
    analysis = analyse(load(hydrated(name)))
    kept = {}
    for group in analysis.groups:
        levels = levels_of(group.channels, None, 0.2, group.lanes)
        kept[group.name] = tuple(range(int(levels[np.argmin(np.abs(levels - group.channels / 2))])))
    assert difference(analysis, kept) < 1e-4
    price, full = cost.macs(analysis), np.array([g.channels for g in analysis.groups])
    assert price(counts_of(analysis, kept)) <= ARCHITECTURES[name] * price(full)


@needs_shared
@pytest.mark.parametrize(("name", "reason"), [("dtln_1", "first state"), ("silero_vad", "control-flow")])
def test_what_cannot_be_cut_says_why(name: str, reason: str) -> None:
    analysis = analyse(load(hydrated(name)))
    told = [str(g.reason) for g in analysis.fixed]
    assert not analysis.groups
    assert any(reason in t for t in told)


@pytest.mark.parametrize(
    ("opset", "batch", "op"), [(11, "1", "MatMul"), (17, "1", "MatMul"), (17, "N", "MatMul"), (17, "N", "Gemm")]
)
def test_a_squeeze_that_names_no_axes_never_finds_a_single_channel(opset: int, batch: str, op: str) -> None:
    text = f"""(float[{batch},3,6,6] x) => (float[{"4" if batch == "1" else "N,4"}] y) <float[8,3,3,3] w, float[8] b, float[8,4] v>
        {{ h = Conv (x, w, b) p = GlobalAveragePool (h) s = Squeeze (p) y = {op} (s, v) }}"""
    analysis = analyse(load(Row("squeezed", text, 8, opset=opset).model()))
    (group,) = analysis.groups
    few = int(levels_of(group.channels, 1, 0.01, group.lanes)[0])
    assert few == 2
    kept = {group.name: tuple(range(few))}
    assert difference(analysis, kept) < 1e-5
    assert mispriced(analysis, kept, delivered(analysis, kept)) == []


def test_each_group_alone_is_exact_and_needed() -> None:
    """Brute force: cutting a group equals masking it, and masking anything less does not."""
    row = image("x", "k = Conv (h, u, o) p = Relu (k) l = Conv (p, m, n) q = Add (h, l) r = Relu (q)", 0,
                "float[9,8,1,1] u, float[9] o, float[8,9,1,1] m, float[8] n")  # fmt: skip
    analysis = analyse(load(row.model()))
    assert [g.channels for g in analysis.groups] == [8, 9]
    for group in analysis.groups:
        kept = {group.name: tuple(range(1, group.channels))}
        assert difference(analysis, kept) < 1e-5
        readers = [s for s in group.slices if s.role == "reads"]
        for missing in readers:
            model = row.model()
            for piece in readers:
                tensor = next(t for t in model.graph.initializer if t.name == piece.owner.tensor)
                array = onnx.numpy_helper.to_array(tensor).copy()
                if piece is not missing:
                    array[(slice(None),) * piece.owner.axis + (0,)] = 0
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
            assert gap(model, delivered(analysis, kept)) > 1e-4


def test_a_price_is_exact_for_every_count() -> None:
    row = image("x", "k = Conv (h, u, o) r = Concat <axis = 1> (h, k)", 0, "float[5,8,1,1] u, float[5] o", 13)
    analysis = analyse(load(row.model()))
    price = cost.macs(analysis)
    eight, five = (next(i for i, g in enumerate(analysis.groups) if g.channels == n) for n in (8, 5))
    for a in range(1, 9):
        for b in range(1, 6):
            counts = np.zeros(2, dtype=np.int64)
            counts[eight], counts[five] = a, b
            stem, body = 36 * 27 * a, price.terms(counts)[1]
            assert price.terms(counts)[0] == stem
            assert body == 36 * a * b
            assert price.terms(counts)[2] == 36 * 4 * (a + b)


def test_what_is_left_at_full_counts_is_the_file_and_each_channel_takes_its_bytes() -> None:
    row = image("x", "k = Conv (h, u, o) r = Relu (k)", 16, "float[8,8,1,1] u, float[8] o")
    analysis = analyse(load(row.model()))
    price, full = cost.size(analysis), np.array([g.channels for g in analysis.groups])
    assert price(full) == len(row.model().SerializeToString())
    first = np.array([g.slices[0].owner.tensor in {"w", "b"} for g in analysis.groups])
    assert price(full) - price(full - first) == 4 * (3 * 9 + 1 + 8)


def test_a_chain_of_branches_is_traced_once() -> None:
    """Every way through it would be 2 to the 40."""
    chain = " ".join(f"r{i} = Relu (q{i}) q{i + 1} = Add (q{i}, r{i})" for i in range(40))
    row = flat(
        "branches", f"q0 = Relu (h) {chain} t = Transpose <perm = [0,2,1]> (q40) m = MatMul (q40, t) r = MatMul (m, h)"
    )
    assert sum(g.channels for g in analyse(load(row.model())).groups) == 8


def test_a_network_in_half_precision_is_held_to_what_that_can_show() -> None:
    row = Row("h", """(float16[N,3,32,32] x) => (float16[N,4,32,32] y) <float16[64,3,3,3] w, float16[64] b, float16[64,64,3,3] k,
        float16[4,64,1,1] v> { h = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu (h) g = Conv <pads = [1,1,1,1]> (r, k) s = Relu (g)
        y = Conv (s, v) }""", 128)  # fmt: skip
    result = onnx_amc.compress(row.model(), channels=0.5, policy="uniform", refit=False)
    assert 1e-5 < result.record["checks"]["masked_equals_cut"] < 1e-2
