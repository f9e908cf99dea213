"""Linear algebra against the slow and obvious: loops, onnxruntime, explicit rows, numpy's lstsq, greedy by brute force."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import TYPE_CHECKING, Any, get_type_hints
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError, install_import_hook
from scipy.linalg import LinAlgError

import onnx_amc.fit

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_amc.fit import moments, patches, solve
else:  # fresh copies, which check at each call the shapes that their annotations name
    with (
        patch.dict(sys.modules),
        patch.object(onnx_amc, "fit"),
        install_import_hook("onnx_amc.fit", "beartype.beartype"),
    ):
        for name in [n for n in sys.modules if n.startswith("onnx_amc.fit")]:
            del sys.modules[name]
        moments, patches, solve = (
            importlib.import_module(f"onnx_amc.fit.{n}") for n in ("moments", "patches", "solve")
        )

EYE, ONES, ALL = np.eye(3), np.ones((2, 3)), np.ones(3, dtype=bool)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: moments.Moments(1, 3).add(np.ones(3)), id="add: one axis"),
        pytest.param(lambda: moments.Moments(1, 3).mean("0"), id="mean: text"),  # type: ignore[arg-type]
        pytest.param(
            lambda: patches.patches(np.ones((1, 1)), patches.Window(), np.zeros((1, 0))), id="patches: floats"
        ),
        pytest.param(lambda: patches.choose((3,), 1.5, np.random.default_rng(0)), id="choose: half a position"),  # type: ignore[arg-type]
        pytest.param(lambda: solve.ridge_of(ONES, 1e-4), id="ridge_of: not square"),
        pytest.param(lambda: solve.refit(EYE, ONES, np.ones(4, bool), 1e-4), id="refit: too long"),
        pytest.param(lambda: solve.error(EYE, ONES, np.ones((2, 4))), id="error: other width"),
        pytest.param(lambda: solve.Part(EYE, ONES, np.ones((3, 1))), id="Part: columns are floats"),
        pytest.param(lambda: solve.eliminate((), 3), id="eliminate: no list"),  # type: ignore[arg-type]
    ],
)
def test_the_annotated_shapes_are_checked(call: Callable[[], object]) -> None:
    with pytest.raises(TypeCheckError):
        call()


def test_every_annotated_shape_has_a_meaning() -> None:
    functions = [f for m in (moments, patches, solve) for f in vars(m).values() if inspect.isfunction(f)]
    functions += [f for f in vars(moments.Moments).values() if inspect.isfunction(f)]
    assert {solve.refit, patches.patches, moments.Moments.add} <= set(functions)
    for function in functions:
        get_type_hints(inspect.unwrap(function))


# ---- patches ------------------------------------------------------------------------------------------------------


def looped(x: np.ndarray, window: patches.Window, positions: np.ndarray) -> np.ndarray:
    """What each tap sees at each position, one element at a time; zero around and between the inputs."""
    n, c, *space = x.shape
    out = np.zeros((c, window.taps, n, len(positions)))
    for p, position in enumerate(positions):
        for t, tap in enumerate(np.ndindex(*window.kernel)):
            axes = zip(
                position, window.strides, tap, window.dilations, window.pads, window.upsample, space, strict=False
            )
            found = [((o * s + k * d - pad) / u, size) for o, s, k, d, pad, u, size in axes]
            if all(at.is_integer() and 0 <= at < size for at, size in found):
                index: Any = (slice(None), slice(None), *(int(at) for at, _ in found))
                out[:, t, :, p] = x[index].T
    return out.reshape(c * window.taps, -1)


Geometry = dict[str, tuple[int, ...]]


@st.composite
def geometries(draw: st.DrawFn, least_pad: int = 0, most_apart: int = 1) -> tuple[tuple[int, ...], Geometry]:
    """An input size over 1 to 3 axes, and a window that is no larger."""
    d = draw(st.integers(1, 3))

    def axes(low: int, high: int, count: int = d) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

    space = axes(5 - 2 * least_pad, 6 - 2 * least_pad)  # the farthest reach is 5
    return space, {
        "kernel": axes(1, 3),
        "strides": axes(1, 2),
        "dilations": axes(1, 2),
        "pads": axes(least_pad, 2, 2 * d),
        "upsample": axes(1, most_apart),
    }


@settings(deadline=None, max_examples=60)
@given(geometries(least_pad=-1, most_apart=3), st.integers(0, 2**32 - 1))
def test_patches_are_what_a_loop_finds(geometry: tuple[tuple[int, ...], Geometry], seed: int) -> None:
    space, window = geometry[0], patches.Window(**geometry[1])
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 3, *space))
    positions = patches.choose(window.outputs(space), 9, rng)
    np.testing.assert_array_equal(patches.patches(x, window, positions), looped(x, window, positions))


def run(op: str, x: np.ndarray, w: np.ndarray, **attributes: Any) -> np.ndarray:
    """One node in onnxruntime."""
    info = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "xwy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node(op, ["x", "w"], ["y"], **attributes)], op, info[:2], info[2:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x, "w": w})[0])


def product(x: np.ndarray, w: np.ndarray, window: patches.Window) -> np.ndarray:
    """W (o, c, *kernel) times the patches of every position, in the order of a convolution's output."""
    space = window.outputs(x.shape[2:])
    y = w.reshape(len(w), -1) @ patches.patches(x, window, patches.choose(space, 10**6, np.random.default_rng(0)))
    return np.moveaxis(y.reshape(len(w), len(x), *space), 0, 1)


@settings(deadline=None, max_examples=40)
@given(geometries(), st.integers(0, 2**32 - 1))
def test_weights_times_patches_are_a_convolution(geometry: tuple[tuple[int, ...], Geometry], seed: int) -> None:
    space, window = geometry[0], patches.Window(**geometry[1])
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 3, *space)).astype(np.float32)
    w = rng.normal(size=(4, 3, *window.kernel)).astype(np.float32)
    y = run("Conv", x, w, strides=window.strides, dilations=window.dilations, pads=window.pads)
    np.testing.assert_allclose(product(x, w, window), y, atol=1e-4)


@pytest.mark.parametrize(
    ("space", "kernel", "stride", "dilation", "pads", "extra"),
    [
        ((5,), (4,), (3,), (1,), (1, 2), (2,)),
        ((4, 5), (3, 2), (2, 1), (1, 2), (0, 1, 2, 1), (1, 0)),
        ((3, 2, 3), (2, 2, 1), (2, 2, 2), (1, 1, 1), (0, 0, 0, 1, 0, 0), (0, 1, 0)),
    ],
)
def test_a_transposed_convolution_is_a_convolution_of_inputs_spread_apart(
    space: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    pads: tuple[int, ...],
    extra: tuple[int, ...],
) -> None:
    d, rng = len(space), np.random.default_rng(0)
    x, w = (rng.normal(size=(3, 4, *shape)).astype(np.float32) for shape in (space, kernel))
    w = np.concatenate([w, w[:1] ** 2])  # (inputs 4, outputs 4, *kernel), from here on
    y = run("ConvTranspose", x, w, strides=stride, dilations=dilation, pads=pads, output_padding=extra)
    reach = [(k - 1) * e for k, e in zip(kernel, dilation, strict=True)]
    before = tuple(r - p for r, p in zip(reach, pads[:d], strict=True))
    after = tuple(r - p + e for r, p, e in zip(reach, pads[d:], extra, strict=True))
    flipped = np.flip(w, axis=tuple(range(2, 2 + d))).swapaxes(0, 1)
    window = patches.Window(kernel, (1,) * d, dilation, before + after, stride)
    np.testing.assert_allclose(product(x, flipped, window), y, atol=1e-4)


def test_positions_are_distinct_and_all_of_them_where_there_are_no_more() -> None:
    rng = np.random.default_rng(0)
    few = patches.choose((4, 6), 10, rng)
    assert len(np.unique(few, axis=0)) == 10
    assert (few < (4, 6)).all()
    np.testing.assert_array_equal(patches.choose((4, 6), 24, rng), list(np.ndindex(4, 6)))
    assert patches.choose((), 5, rng).shape == (1, 0)


# ---- moments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "mean", "near"),
    [
        ("float32", 1, 1e-5),
        ("float64", 1, 1e-9),
        ("float64", 100, 1e-9),
        pytest.param("float32", 100, 1e-5),
        pytest.param("float16", 1, 1e-2),
    ],
)
def test_moments_are_those_of_the_rows(dtype: str, mean: float, near: float) -> None:
    """Near enough for a ridge of 1e-4 to tell a channel that hardly moves from one that does."""
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(20_000, 6)) @ rng.normal(size=(6, 6)) + mean).astype(dtype)
    found = moments.Moments(groups=2, width=3)
    for part in np.split(rows, [7, 100]):
        found.add(part.T)
    assert found.rows == len(rows)
    for g in range(2):
        mine: np.ndarray = rows[:, 3 * g : 3 * g + 3].astype(np.float64)
        wanted = np.cov(mine.T, bias=True)
        np.testing.assert_allclose(found.mean(g), mine.mean(axis=0), atol=near * mean)
        np.testing.assert_allclose(found.second(g), mine.T @ mine / len(rows), rtol=near)
        np.testing.assert_allclose(found.covariance(g), wanted, atol=near * wanted.max())


# ---- refit --------------------------------------------------------------------------------------------------------


def rows_and_weights(seed: int, inputs: int = 9, outputs: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Correlated rows with a mean, and the weights that read them."""
    rng = np.random.default_rng(seed)
    mix = np.eye(inputs) + 0.5 * rng.normal(size=(inputs, inputs))
    return rng.normal(size=(400, inputs)) @ mix + rng.normal(size=inputs), rng.normal(size=(outputs, inputs))


def some(inputs: int, *gone: int) -> np.ndarray:
    return ~np.isin(np.arange(inputs), gone)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bias", [False, True])
def test_refit_is_least_squares_on_the_rows(seed: int, bias: bool) -> None:
    x, w = rows_and_weights(seed)
    kept = some(9, 1, 4, 5)
    found = moments.Moments(1, 9)
    found.add(x.T)
    columns = np.column_stack([x[:, kept], *([np.ones(len(x))] if bias else [])])
    wanted = np.linalg.lstsq(columns, x @ w.T, rcond=None)[0].T
    v = np.zeros_like(w)
    v[:, kept] = solve.refit(found.covariance() if bias else found.second(), w, kept, ridge=1e-12)
    np.testing.assert_allclose(v[:, kept], wanted[:, :6], rtol=1e-6)
    if bias:
        np.testing.assert_allclose((w - v) @ found.mean(), wanted[:, 6], rtol=1e-6)


@pytest.mark.parametrize("ridge", [1e-4, 1e-1, 10.0])
def test_the_ridge_pulls_to_the_weights_that_were_there(ridge: float) -> None:
    x, w = rows_and_weights(0)
    kept = some(9, 0, 8)
    h = x.T @ x / len(x)
    pull = np.sqrt(len(x) * ridge * np.diag(h).mean())
    rows = np.concatenate([x[:, kept], pull * np.eye(7)])
    wanted = np.linalg.lstsq(rows, np.concatenate([x @ w.T, pull * w[:, kept].T]), rcond=None)[0].T
    np.testing.assert_allclose(solve.refit(h, w, kept, ridge), wanted, rtol=1e-6)
    np.testing.assert_allclose(solve.refit(h, w, kept, 1e9), w[:, kept], rtol=1e-6)


def test_the_ridge_is_relative_to_the_columns_that_live() -> None:
    assert solve.ridge_of(np.diag([1.0, 3.0, 0.0]), 0.1) == pytest.approx(0.2)
    assert solve.ridge_of(np.zeros((3, 3)), 0.1) == pytest.approx(0.1)


def test_dead_columns_keep_their_weights() -> None:
    x, w = rows_and_weights(0)
    x[:, [2, 6]] = 0
    kept = some(9, 0, 6)
    v = solve.refit(np.cov(x.T, bias=True), w, kept, 1e-4)
    np.testing.assert_allclose(v[:, 1], w[:, 2])
    np.testing.assert_allclose(solve.refit(np.zeros((9, 9)), w, kept, 1e-4), w[:, kept])


def test_rounding_below_zero_is_mended_and_worse_is_refused() -> None:
    x, w = rows_and_weights(0)
    x[:, 3] = x[:, 4]
    h = np.cov(x.T, bias=True)
    v = np.zeros_like(w)
    v[:, some(9, 0)] = solve.refit(h - 1e-5 * np.eye(9), w, some(9, 0), 1e-8)
    assert solve.error(h, w, v) < solve.error(h, w, w * some(9, 0))
    with pytest.raises(LinAlgError):
        solve.refit(-1e6 * np.eye(9), w, some(9, 0), 1e-8)


def test_the_error_is_that_of_the_rows() -> None:
    x, w = rows_and_weights(0)
    v = w * some(9, 2, 3)
    wanted = np.sum((x @ w.T - x @ v.T) ** 2) / np.sum((x @ w.T) ** 2)
    assert solve.error(x.T @ x / len(x), w, v) == pytest.approx(wanted)


# ---- eliminate ----------------------------------------------------------------------------------------------------


class Readers:
    """Two readers of the same channels, the first with two taps each and twice the say, with their rows at hand."""

    def __init__(self, seed: int, channels: int) -> None:
        self.channels = channels
        pairs = [rows_and_weights(seed, taps * channels) for taps in (2, 1)]
        order = np.random.default_rng(seed).permutation(2 * channels).reshape(channels, 2)
        self.rows = [x for x, _ in pairs]
        self.parts = [
            solve.Part(x.T @ x / len(x), w, columns, weight)
            for (x, w), columns, weight in zip(pairs, [order, np.arange(channels)[:, None]], [2.0, 1.0], strict=True)
        ]

    def error(self, alive: list[int]) -> float:
        """Error of both readers, each refitted by lstsq on the rows of the channels alive."""
        total = 0.0
        for x, part in zip(self.rows, self.parts, strict=True):
            y, seen = x @ part.w.T, x[:, part.columns[alive].ravel()]
            gap = y - seen @ np.linalg.lstsq(seen, y, rcond=None)[0]
            total += part.weight * float(np.sum(gap**2) / np.sum(y**2))
        return total

    def greedy(self) -> list[int]:
        """The channel that is missed least goes, and again."""
        alive, order = list(range(self.channels)), []
        while len(alive) > 1:
            order.append(min(alive, key=lambda c: self.error([a for a in alive if a != c])))
            alive.remove(order[-1])
        return order + alive


@pytest.mark.parametrize("seed", range(4))
def test_elimination_is_greedy_by_brute_force(seed: int) -> None:
    readers = Readers(seed, channels=6)
    order, errors = solve.eliminate(readers.parts, 6, ridge=1e-12)
    assert order.tolist() == readers.greedy()
    wanted = [readers.error(order[t + 1 :].tolist()) for t in range(5)]
    np.testing.assert_allclose(errors, [*wanted, np.inf], rtol=1e-6)


def test_above_the_steps_several_go_at_a_time_and_the_errors_stay_exact() -> None:
    readers = Readers(0, channels=11)
    order, errors = solve.eliminate(readers.parts, 11, ridge=1e-12, steps=3)
    assert sorted(order.tolist()) == list(range(11))
    wanted = [readers.error(order[t + 1 :].tolist()) for t in range(10)]
    np.testing.assert_allclose(errors[:-1], wanted, rtol=1e-6)
    assert order.tolist() != solve.eliminate(readers.parts, 11, ridge=1e-12)[0].tolist()


def test_one_of_two_equal_channels_goes_free_and_the_other_does_not() -> None:
    x, w = rows_and_weights(0)
    x[:, 7] = x[:, 2]
    part = solve.Part(np.cov(x.T, bias=True), w, np.arange(9)[:, None])
    order, errors = solve.eliminate([part], 9, ridge=1e-10)
    assert order[0] in {2, 7}
    assert errors[0] < 1e-8
    assert errors[1] > 1e-4


@pytest.mark.parametrize("how", ["never moves", "is never read"])
def test_a_dead_channel_goes_first_and_free(how: str) -> None:
    x, w = rows_and_weights(0)
    (x if how == "never moves" else w)[:, 5] = 0
    part = solve.Part(np.cov(x.T, bias=True), w, np.arange(9)[:, None])
    order, errors = solve.eliminate([part], 9, ridge=1e-10)
    assert order[0] == 5
    assert errors[0] < 1e-8
    assert errors[1] > 1e-4


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 2), st.data())
def test_errors_never_fall_however_many_are_dead(seed: int, channels: int, taps: int, data: st.DataObject) -> None:
    x, w = rows_and_weights(seed, inputs=channels * taps)
    x[:, data.draw(st.lists(st.integers(0, channels * taps - 1)))] = 0
    part = solve.Part(
        np.cov(x.T, bias=True).reshape(len(x.T), -1), w, np.arange(channels * taps).reshape(channels, taps)
    )
    order, errors = solve.eliminate([part], channels)
    assert sorted(order.tolist()) == list(range(channels))
    assert np.isfinite(errors[:-1]).all()
    assert (np.diff(errors[:-1]) >= 0).all()
    assert errors[-1] == np.inf
