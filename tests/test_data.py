"""The user's data as arrays: every form they may come in, and every way in which they may be wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feeds import (
    F16,
    F32,
    F64,
    I64,
    IMAGE,
    ROWS,
    TWO,
    U8,
    Write,
    everything,
    formula,
    paint,
    photos,
    refused,
    rows,
    save,
)

from onnx_amc.run.data import MIN_SAMPLES, InputSpec, load, sidecar, synthesise


def test_uint8_images_are_fed_by_the_formula(tmp_path: Path) -> None:
    z = photos()
    data = load(save(tmp_path / "d.npz", z), IMAGE, classes=3)
    assert len(data) == 10
    assert data.arrays["input"].dtype == np.uint8, "images are kept as they came"
    assert data.labels is not None
    assert data.labels.dtype == np.int64
    np.testing.assert_array_equal(data.labels, z["y"])
    assert data.source.endswith("d.npz")
    assert data.unused == ()
    assert not data.synthetic
    pick = np.array([7, 0, 3])
    fed = data.batch(pick)["input"]
    assert fed.dtype == np.float32
    assert fed.flags.c_contiguous
    np.testing.assert_allclose(fed, formula(z)[pick], rtol=0, atol=2e-6)
    assert not np.allclose(fed, formula({**z, "std": z["std"][::-1]})[pick], atol=1e-2), "the comparison can fail"


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-14), (F16, 5e-3)])
def test_images_come_in_the_type_of_the_input(dtype: np.dtype, tolerance: float) -> None:
    z = photos()
    fed = everything(load(z, [InputSpec("input", dtype, (None, 3, None, None))]))["input"]
    assert fed.dtype == dtype
    np.testing.assert_allclose(fed, formula(z), rtol=0, atol=tolerance)


def test_images_for_a_channels_last_model() -> None:
    z = photos()
    fed = everything(load(z, [InputSpec("input", F32, (1, 6, 4, 3))]))["input"]
    np.testing.assert_allclose(fed, np.moveaxis(formula(z), 1, 3), rtol=0, atol=2e-6)


def test_a_model_of_uint8_input_is_fed_the_pixels() -> None:
    z = photos()
    plain = {"x": z["x"], "y": z["y"]}
    for shape, fed in (((None, 3, 6, 4), z["x"].transpose(0, 3, 1, 2)), ((None, 6, 4, 3), z["x"])):
        got = everything(load(plain, [InputSpec("image", U8, shape)]))["image"]
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, fed)
    refused(z, [InputSpec("image", U8, (None, 3, 6, 4))], "mean, std given", "uint8 pixels as they are")
    refused(plain, [InputSpec("image", np.dtype(np.int8), (None, 3, 6, 4))], "images are uint8", "takes int8")


def test_float_x_is_taken_as_it_is() -> None:
    z = photos()
    x = formula(z).astype(np.float32)
    data = load({**z, "x": x}, IMAGE)
    np.testing.assert_array_equal(everything(data)["input"], x)
    assert data.unused == ("mean", "std")


def test_one_mean_for_all_channels() -> None:
    z = {**photos(), "mean": np.array(0.5), "std": np.array([0.25])}
    np.testing.assert_allclose(everything(load(z, IMAGE))["input"], formula(z), rtol=0, atol=2e-6)


def test_arrays_by_name_of_several_inputs(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "ids": np.arange(30, dtype=np.int32).reshape(10, 3),
        "mask": np.random.default_rng(0).random((10, 1, 2)),
        "labels": np.arange(10, dtype=np.uint8),
        "note": np.zeros(2),
    }
    data = load(str(save(tmp_path / "d.npz", arrays)), TWO)
    fed = data.batch(np.array([4, 1]))
    assert list(fed) == ["ids", "mask"]
    assert fed["ids"].dtype == np.int64
    assert fed["mask"].dtype == np.float32
    np.testing.assert_array_equal(fed["ids"], [[12, 13, 14], [3, 4, 5]])
    np.testing.assert_allclose(fed["mask"], arrays["mask"][[4, 1]], rtol=1e-6)
    np.testing.assert_array_equal(data.labels, np.arange(10))
    assert data.unused == ("note",)


def test_an_input_named_labels_is_no_label() -> None:
    data = load({"labels": np.zeros((8, 5), np.float32)}, [InputSpec("labels", F32, (None, 5))])
    assert data.labels is None
    assert everything(data)["labels"].shape == (8, 5)


def test_a_scalar_input_is_shared_by_all_samples() -> None:
    spec = [*ROWS, InputSpec("rate", I64, ())]
    data = load({**rows(), "rate": np.array(16000)}, spec)
    assert len(data) == 10
    assert data.batch(np.array([1, 2]))["rate"].shape == ()
    assert data.batch(np.array([1, 2]))["rate"] == 16000
    refused({**rows(), "rate": np.full(10, 16000)}, spec, "array 'rate'", "(10,)")


def test_text_inputs_pass() -> None:
    data = load({"t": np.array(["a", "bc"] * 5)}, [InputSpec("t", np.dtype(object), (None,))])
    assert data.batch(np.array([1]))["t"].tolist() == ["bc"]
    assert data.batch(np.array([1]))["t"].dtype == object


def test_a_batch_is_a_copy() -> None:
    given = rows()
    data = load(given, ROWS)
    everything(data)["a"][:] = 7
    assert not (given["a"] == 7).any()


def test_no_such_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("absent.npz", "absent/folder", "C:\\data\\absent.npz", "C:absent.npz", ""):
        refused(name, ROWS, "no such file or folder", name, str(tmp_path))


def test_a_path_with_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "win32":
        pytest.skip("no colons in file names")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data:v1"
    for i in range(8):
        paint(folder / f"{i}.png", i)
    assert len(load("data:v1", IMAGE)) == 8
    save(tmp_path / "a:b.npz", rows())
    assert len(load("a:b.npz", ROWS)) == 10


def test_unknown_extension(tmp_path: Path) -> None:
    (tmp_path / "d.dat").write_text("1,2")
    refused(tmp_path / "d.dat", ROWS, "'.dat'", "np.savez")


def test_no_npz(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_text("hello")
    refused(tmp_path / "d.npz", ROWS, "no .npz archive", "d.npz")


def test_truncated_npz(tmp_path: Path) -> None:
    whole = save(tmp_path / "d.npz", rows()).read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "d.npz", ROWS, "truncated", "write it again")


def test_damaged_npz(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", rows())
    whole = bytearray(path.read_bytes())
    whole[whole.index(rows()["a"].tobytes()) + 9] ^= 255
    path.write_bytes(bytes(whole))
    refused(path, ROWS, "array 'a'", "cannot be read", "CRC")


def test_pickled_npz_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", {**rows(), "evil": np.array([{}, None], dtype=object)})
    refused(path, ROWS, "array 'evil'", "pickled", "refused", "np.asarray")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "d.npz", rows())

    def deny(*_: object) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("onnx_amc.run.data._read_npz", deny)
    refused(path, ROWS, "Permission denied", "d.npz")


def test_missing_array() -> None:
    refused(
        {"b": np.zeros((9, 5), np.float32), "labels": np.arange(9)}, ROWS, "'a'", "'b', 'labels'", "rename 'b' to 'a'"
    )
    error = refused({"ids": np.zeros((9, 3), np.int64)}, TWO, "input 'mask'", "there are 'ids'", "(N, 1, 2)")
    assert "rename" not in error.fix
    refused({}, ROWS, "there are none")


def test_wrong_shape() -> None:
    refused({"a": np.zeros((9, 4), np.float32)}, ROWS, "array 'a'", "(9, 4)", "(N, 5)")
    refused({"a": np.zeros(5, np.float32)}, ROWS, "one sample without a sample axis")
    x = formula(photos()).astype(np.float32)
    moved = x.transpose(0, 2, 3, 1)
    refused(
        {"x": moved}, IMAGE, "array 'x'", "(10, 6, 4, 3)", "(N, 3, 6, 4)", "N,H,W,C and not", "transpose(0, 3, 1, 2)"
    )
    last = [InputSpec("input", F32, (None, 6, 4, 3))]
    refused({"x": x}, last, "N,C,H,W and not N,H,W,C", "transpose(0, 2, 3, 1)")
    np.testing.assert_array_equal(everything(load({"x": moved.transpose(0, 3, 1, 2)}, IMAGE))["input"], x)


def test_wrong_shape_of_uint8_images() -> None:
    z = photos()
    refused({**z, "x": z["x"][:, :5]}, IMAGE, "(10, 5, 4, 3), fed as (10, 3, 5, 4)", "(N, 3, 6, 4)")
    swapped = {"x": z["x"].transpose(0, 3, 1, 2), "mean": np.zeros(1), "std": np.ones(1)}
    refused(swapped, IMAGE, "as it is", "N,H,W,C", "x.transpose(0, 2, 3, 1)")


def test_uint8_images_without_mean_and_std() -> None:
    z = photos()
    refused({"x": z["x"]}, IMAGE, "no mean and no std", "(x/255 - mean)/std")
    refused({"x": z["x"], "mean": z["mean"]}, IMAGE, "but no std")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("mean", [0.5, 0.5], ("'mean' has 2 values", "3 channels")),
        ("mean", [0.5, np.nan, 0.5], ("'mean' is", "nan", "finite")),
        ("std", [0.5, 0.0, 0.5], ("'std' is", "positive")),
        ("std", ["a", "b", "c"], ("'std' is", "positive")),
    ],
)
def test_wrong_mean_and_std(name: str, value: list[object], words: tuple[str, ...]) -> None:
    refused({**photos(), name: np.array(value)}, IMAGE, *words)


def test_wrong_type() -> None:
    refused({"a": np.zeros((9, 5), np.int64)}, ROWS, "array 'a'", "int64", "takes float32")
    refused({"a": np.zeros((9, 5), np.complex64)}, ROWS, "complex64")
    ids = [InputSpec("ids", I64, (None, 3))]
    refused({"ids": np.zeros((9, 3))}, ids, "float64", "takes int64")
    refused({"ids": np.zeros((9, 3), bool)}, ids, "bool", "takes int64")
    small = [InputSpec("ids", np.dtype(np.int8), (None, 3))]
    refused({"ids": np.full((9, 3), 300)}, small, "from 300 to 300", "int8", "-128 to 127")
    assert everything(load({"ids": np.full((9, 3), 100)}, small))["ids"].dtype == np.int8


def test_what_is_no_array() -> None:
    refused({"a": [[1.0], [1.0, 2.0]]}, ROWS, "array 'a'", "no array")
    refused(np.zeros((9, 5)), ROWS, "data is a ndarray", "FILE.npz")


def test_different_lengths() -> None:
    arrays = {"ids": np.zeros((9, 3), np.int64), "mask": np.zeros((8, 1, 2), np.float32)}
    refused(arrays, TWO, "9 in array 'ids'", "8 in array 'mask'")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(9), ("(9,)", "10 samples")),
        (np.zeros((10, 1), np.int64), ("(10, 1)",)),
        (np.zeros(10), ("float64", "not integers")),
        (np.array([0, 1, -1, 0, 0, 0, 0, -2, 0, 0]), ("label -1 at index 2", "2 such")),
        (np.arange(10), ("label 4 at index 4", "6 such", "4 classes", "0 to 3")),
    ],
)
def test_wrong_labels(labels: np.ndarray, words: tuple[str, ...]) -> None:
    refused({**rows(), "labels": labels}, ROWS, "labels", *words, classes=4)


@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        (np.zeros((10, 6, 4), np.uint8), np.uint8),
        (np.full((10, 1, 6, 4), 255, np.int16), np.int16),
        (np.ones((10, 6, 4), bool), np.uint8),
        (np.zeros((10, 3, 6, 4), np.float32), np.float32),
        (np.linspace(-1, 1, 10), np.float64),
        (np.zeros((10, 7, 5), np.float16), np.float16),
    ],
    ids=str,
)
def test_maps_and_targets_are_labels_too(labels: np.ndarray, kept: type, tmp_path: Path, write: Write) -> None:
    """They come back as they are, sample by sample, out of a file and out of batches; the split does not look at them."""
    np.save(tmp_path / "labels.npy", labels)
    name = write("""
        y = np.load("labels.npy")
        def f():
            return [(np.ones((5, 5), np.float32), y[:5]), (np.ones((5, 5), np.float32), y[5:])]
    """)
    for data in (load(save(tmp_path / "d.npz", {**rows(), "labels": labels}), ROWS), load(f"{name}:f", ROWS)):
        assert data.labels is not None
        assert data.labels.dtype == kept
        np.testing.assert_array_equal(data.labels, labels)
        assert data.class_numbers is None
        parts = data.split(0, 4, 4)
        for part, same in zip(parts, load(rows(), ROWS).split(0, 4, 4), strict=True):
            np.testing.assert_array_equal(part, same)
        assert load(data, ROWS) is data


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((9, 6, 4), int), ("(9, 6, 4) for 10 samples", "(10, ...)")),
        (np.where(np.eye(10) > 0, np.nan, 0.0), ("10 values are NaN",)),
        (np.full((10, 2), "a"), ("<U1, not integers",)),
        (np.zeros((10, 2), complex), ("complex128",)),
        (np.array(3), ("shape () for 10 samples",)),
    ],
)
def test_wrong_maps_and_targets(labels: np.ndarray, words: tuple[str, ...]) -> None:
    refused({**rows(), "labels": labels}, ROWS, "labels", *words)


def test_labels_are_free_where_the_number_of_classes_is_unknown() -> None:
    assert load({**rows(), "labels": np.arange(10) * 1000}, ROWS).labels is not None
    refused({**rows(), "labels": np.full(10, -3)}, ROWS, "label -3 at index 0", "0 or more")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    a = np.zeros((200, 5), np.float32)
    a[130, 2] = a[199, 0] = value
    refused({"a": a}, ROWS, "array 'a'", "2 values", str(value), "index (130, 2)")


def test_values_beyond_the_input_type() -> None:
    half = [InputSpec("a", F16, (None, 5))]
    assert everything(load({"a": np.full((9, 5), 6e4)}, half))["a"].dtype == np.float16
    refused({"a": np.full((9, 5), 1e6)}, half, "45 values", "beyond float16", "1000000.0")


def test_too_few_samples() -> None:
    refused(rows(MIN_SAMPLES - 1), ROWS, "only 7 samples", "give 8 or more")
    refused(photos(0), IMAGE, "only 0 samples")
    assert len(load(rows(MIN_SAMPLES), ROWS)) == 8


def test_a_dataset_comes_back_as_it_is() -> None:
    data = load({**rows(), "labels": np.arange(10)}, ROWS)
    assert load(data, ROWS, classes=10) is data
    assert load(data, [InputSpec("a", F32, (1, None))]) is data
    labels = load(replace(data, labels=np.arange(10, dtype=np.int32)), ROWS, classes=10).labels
    assert labels is not None
    assert labels.dtype == np.int64, "but for class numbers, which torch wants so"
    refused(data, ROWS, "label 5 at index 5", classes=5)
    refused(data, [InputSpec("b", F32, (None, 5))], "no array for the model's input 'b'")
    refused(data, [InputSpec("a", F32, (None, 6))], "(1, 5)", "(N, 6)")
    refused(data, [InputSpec("a", F16, (None, 5))], "feeds float32", "takes float16")
    refused(synthesise(ROWS, 3, 0), ROWS, "only 3 samples")


def test_synthesise() -> None:
    specs = [
        InputSpec("image", F32, (None, 3, None, None)),
        InputSpec("last", F16, (None, None, None, 3)),
        InputSpec("fixed", F64, (1, 7, None)),
        InputSpec("ids", I64, (None, 4)),
        InputSpec("flag", np.dtype(bool), (None, 2)),
        InputSpec("text", np.dtype(object), (None, 2)),
        InputSpec("rate", I64, ()),
    ]
    data = synthesise(specs, 9, seed=1)
    assert data.synthetic
    assert data.labels is None
    assert len(data) == 9
    assert load(data, specs) is data
    fed = everything(data)
    shapes = [(9, 3, 224, 224), (9, 224, 224, 3), (9, 7, 1), (9, 4), (9, 2), (9, 2), ()]
    assert [a.shape for a in fed.values()] == shapes
    assert [a.dtype for a in fed.values()] == [s.dtype for s in specs]
    assert set(np.unique(fed["ids"])) == {0, 1}
    assert abs(float(fed["fixed"].mean())) < 0.3
    assert abs(float(fed["image"].mean())) < 1
    assert 0.5 < float(fed["image"].std()) < 2
    np.testing.assert_array_equal(everything(synthesise(specs, 9, seed=1))["image"], fed["image"])
    assert not np.array_equal(everything(synthesise(specs, 9, seed=2))["image"], fed["image"])


def test_sidecar(tmp_path: Path) -> None:
    assert sidecar(tmp_path / "net.v2.onnx") is None
    save(tmp_path / "net.v2.npz", rows())
    assert sidecar(str(tmp_path / "net.v2.onnx")) == tmp_path / "net.v2.npz"
    (tmp_path / "dir.npz").mkdir()
    assert sidecar(tmp_path / "dir.onnx") is None
