"""The user's data: every form it may come in, and every way in which it may be wrong."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnx_amc.errors import DataError
from onnx_amc.run.data import MIN_SAMPLES, Dataset, InputSpec, load, sidecar, synthesise

F32, F16, F64, I64, U8 = (np.dtype(t) for t in (np.float32, np.float16, np.float64, np.int64, np.uint8))
IMAGENETTE = Path(__file__).parents[1].parent / "shared" / "data" / "imagenette"
IMAGE = [InputSpec("input", F32, (None, 3, 6, 4))]
ROWS = [InputSpec("a", F32, (None, 5))]
TWO = [InputSpec("ids", I64, (None, None)), InputSpec("mask", F32, (None, 1, 2))]

Write = Callable[[str], str]


def photos(n: int = 10) -> dict[str, np.ndarray]:
    """Images of different height, width and channels, so that no wrong layout fits."""
    rng = np.random.default_rng(0)
    return {
        "x": rng.integers(0, 256, (n, 6, 4, 3), np.uint8),
        "y": np.arange(n) % 3,
        "mean": np.array([0.5, 0.4, 0.3]),
        "std": np.array([0.2, 0.3, 0.6]),
    }


def rows(n: int = 10) -> dict[str, np.ndarray]:
    return {"a": np.random.default_rng(0).standard_normal((n, 5)).astype(np.float32)}


def formula(z: Mapping[str, Any]) -> np.ndarray:
    """(x/255 - mean)/std as N,C,H,W, in float64 and the plainest way."""
    return np.moveaxis((z["x"].astype(np.float64) / 255 - z["mean"]) / z["std"], 3, 1)


def save(path: Path, arrays: Mapping[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def everything(data: Dataset) -> dict[str, np.ndarray]:
    return data.batch(np.arange(len(data)))


def refused(source: object, inputs: list[InputSpec], *words: str, classes: int | None = None) -> DataError:
    """Loading fails as the user's fault, and the text says `words`."""
    with pytest.raises(DataError) as caught:
        load(source, inputs, classes=classes)  # type: ignore[arg-type]
    error = caught.value
    assert error.exit_code == 2
    assert error.where
    assert error.fix
    for word in words:
        assert word in str(error), f"{word!r} is not in: {error}"
    return error


# ---------------------------------------------------------------------------------------------------- .npz and arrays


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
    refused(data, ROWS, "label 5 at index 5", classes=5)
    refused(data, [InputSpec("b", F32, (None, 5))], "no array for the model's input 'b'")
    refused(data, [InputSpec("a", F32, (None, 6))], "(1, 5)", "(N, 6)")
    refused(data, [InputSpec("a", F16, (None, 5))], "feeds float32", "takes float16")
    refused(synthesise(ROWS, 3, 0), ROWS, "only 3 samples")


# --------------------------------------------------------------------------------------------------- folders of images


def paint(path: Path, seed: int, size: tuple[int, int] = (6, 4), *, mode: str = "RGB") -> np.ndarray:
    """Write an image of (height, width), lossless, and return its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def album(root: Path, counts: Mapping[str, int], size: tuple[int, int] = (6, 4)) -> np.ndarray:
    """A folder with a sub-folder per class; the pixels in the order of the names."""
    names = [root / name / f"{i:02}.png" for name, n in counts.items() for i in range(n)]
    return np.stack([paint(path, seed, size) for seed, path in enumerate(names)])


def settings(folder: Path, **values: object) -> None:
    (folder / "preprocess.json").write_text(json.dumps(values))


def test_folder_with_a_sub_folder_per_class(tmp_path: Path) -> None:
    x = album(tmp_path, {"ant": 4, "bee": 5})
    (tmp_path / "bee" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    data = load(tmp_path, IMAGE, classes=2)
    np.testing.assert_array_equal(data.labels, [0] * 4 + [1] * 5)
    assert data.arrays["input"].dtype == np.uint8
    np.testing.assert_allclose(everything(data)["input"], np.moveaxis(x / 255, 3, 1), rtol=0, atol=1e-6)


def test_folder_labels_by_classes_json_and_settings_from_above(tmp_path: Path) -> None:
    x = album(tmp_path / "search", {"ant": 4, "bee": 5})
    (tmp_path / "classes.json").write_text(json.dumps({"bee": {"index": 7, "name": "a bee"}, "ant": 9, "cat": 1}))
    settings(tmp_path, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], layout="NCHW", color="RGB", size=[6, 4], crop=None)
    data = load(str(tmp_path / "search"), IMAGE, classes=10)
    np.testing.assert_array_equal(data.labels, [9] * 4 + [7] * 5)
    z = {"x": x, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    np.testing.assert_allclose(everything(data)["input"], formula(z), rtol=0, atol=2e-6)
    settings(tmp_path / "search", scale=1, mean=100, std=None)
    near = everything(load(tmp_path / "search", IMAGE))["input"]
    np.testing.assert_array_equal(near, np.moveaxis(x.astype(np.float32) - 100, 3, 1))
    refused(tmp_path / "search", IMAGE, "label 9 at index 0", "classes.json", classes=9)


def test_images_without_sub_folders_have_no_labels(tmp_path: Path) -> None:
    for i in range(9):
        paint(tmp_path / f"{i}.png", i)
    data = load(tmp_path, IMAGE)
    assert data.labels is None
    assert len(data) == 9


def test_colours_and_layout(tmp_path: Path) -> None:
    x = album(tmp_path, {"a": 8})
    settings(tmp_path, color="BGR", layout="NHWC", scale=1)
    last = [InputSpec("i", F32, (None, 6, 4, 3))]
    np.testing.assert_array_equal(everything(load(tmp_path, last))["i"], x[..., ::-1])
    settings(tmp_path, scale=1)
    np.testing.assert_array_equal(everything(load(tmp_path, last))["i"], x)  # the layout is the model's
    grey = np.stack([np.asarray(Image.fromarray(p).convert("L")) for p in x])
    for given in ({"color": "L"}, {}):
        settings(tmp_path, scale=1, **given)
        fed = everything(load(tmp_path, [InputSpec("i", F32, (None, 1, 6, 4))]))["i"]
        np.testing.assert_array_equal(fed[:, 0], grey)


def test_grey_images_for_a_model_of_three_channels(tmp_path: Path) -> None:
    grey = np.stack([paint(tmp_path / f"{i}.png", i, mode="L") for i in range(8)])
    fed = everything(load(tmp_path, IMAGE))["input"]
    np.testing.assert_allclose(fed, np.repeat(grey[:, None] / 255, 3, axis=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "resized"),
    [
        ({"size": 8, "crop": 6}, (8, 16)),
        ({"size": [7, 9], "crop": [6, 6]}, (7, 9)),
        ({"size": 6}, (6, 12)),
        ({"size": [6, 6]}, (6, 6)),
        ({"crop": 6}, (20, 40)),
        ({}, (6, 12)),
    ],
)
def test_resize_then_crop(tmp_path: Path, given: dict[str, object], resized: tuple[int, int]) -> None:
    """A square cut out of 20 x 40 images, across and upright, held against PIL by hand."""
    for i in range(8):
        paint(tmp_path / "a" / f"{i}.png", i, (20, 40) if i < 4 else (40, 20))
    settings(tmp_path, scale=1, **given)
    fed = everything(load(tmp_path, [InputSpec("i", F32, (None, 3, 6, 6))]))["i"].transpose(0, 2, 3, 1)
    for i, got in enumerate(fed):
        with Image.open(tmp_path / "a" / f"{i}.png") as image:
            h, w = resized if i < 4 or isinstance(given.get("size"), list) else resized[::-1]
            small = np.asarray(image.resize((w, h), Image.Resampling.BILINEAR))
        top, left = round((h - 6) / 2), round((w - 6) / 2)
        np.testing.assert_array_equal(got, small[top : top + 6, left : left + 6])


def test_images_of_the_right_size_are_left_alone(tmp_path: Path) -> None:
    x = album(tmp_path, {"a": 8}, (6, 6))
    settings(tmp_path, size=8, crop=6, scale=1)
    fed = everything(load(tmp_path, [InputSpec("i", F32, (None, 3, 6, 6))]))["i"]
    np.testing.assert_array_equal(fed, x.transpose(0, 3, 1, 2))


def test_images_of_different_sizes_for_a_model_of_any_size(tmp_path: Path) -> None:
    free = [InputSpec("i", F32, (None, 3, None, None))]
    album(tmp_path, {"a": 8})
    assert everything(load(tmp_path, free))["i"].shape == (8, 3, 6, 4)
    paint(tmp_path / "a" / "99.png", 0, (5, 4))
    refused(tmp_path, free, "99.png", "(5, 4, 3)", "(6, 4, 3)", '"size"')


def test_settings_that_do_not_fit_the_model(tmp_path: Path) -> None:
    album(tmp_path, {"a": 8})
    settings(tmp_path, size=[4, 4])
    refused(tmp_path, IMAGE, "the images", "(8, 3, 4, 4)", "(N, 3, 6, 4)", "preprocess.json")
    settings(tmp_path, size=[4, 4], crop=[6, 5])
    refused(tmp_path, IMAGE, "00.png", "4 x 4", "crop of 6 x 5")
    settings(tmp_path, size=[6, 4], crop=[6, 5])
    refused(tmp_path, IMAGE, "00.png", "6 x 4", "crop of 6 x 5")
    refused(tmp_path, ROWS, "one input of four axes", "'a' (N, 5)")
    refused(tmp_path, [*IMAGE, *ROWS], "'input' (N, 3, 6, 4), 'a' (N, 5)")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sice": 3}, ("unknown setting 'sice'", "color, crop, layout")),
        ({"size": "big"}, ("'size' is 'big'",)),
        ({"size": [1, 2, 3]}, ("'size' is [1, 2, 3]", "[HEIGHT, WIDTH]")),
        ({"crop": 0}, ("'crop' is 0",)),
        ({"crop": True}, ("'crop' is True",)),
        ({"color": "CMYK"}, ("'color' is 'CMYK'", "RGB, BGR, L")),
        ({"layout": "CHW"}, ("'layout' is 'CHW'", "NCHW, NHWC")),
        ({"scale": 0}, ("'scale' is 0",)),
        ({"scale": "1/255"}, ("'scale' is '1/255'", "0.0039")),
        ({"mean": [1, 2]}, ("'mean' has 2 values", "3 channels")),
        ({"std": [1, 1, -1]}, ("'std' is [1, 1, -1]", "positive")),
        ({"mean": {}}, ("'mean' is {}",)),
    ],
)
def test_wrong_settings(tmp_path: Path, given: dict[str, object], words: tuple[str, ...]) -> None:
    album(tmp_path, {"a": 8})
    assert len(load(tmp_path, IMAGE)) == 8
    settings(tmp_path, **given)
    refused(tmp_path, IMAGE, "preprocess.json", *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ("no JSON",)),
        ("[1]", ("holds a list",)),
        ("{}", ("'a' is not in it", '"a": {"index": LABEL')),
        ('{"a": {"name": "x"}}', ("no index", "'a'")),
        ('{"a": {"index": "1"}}', ("no index", "'a'")),
    ],
)
def test_wrong_classes_json(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    album(tmp_path, {"a": 8})
    (tmp_path / "classes.json").write_text(text)
    refused(tmp_path, IMAGE, "classes.json", *words)


@pytest.mark.parametrize("damage", [b"no image at all", None])
def test_broken_image(tmp_path: Path, damage: bytes | None) -> None:
    album(tmp_path, {"a": 8}, (64, 64))
    path = tmp_path / "a" / "03.png"
    path.write_bytes(damage or path.read_bytes()[:4000])
    refused(tmp_path, [InputSpec("i", F32, (None, 3, 64, 64))], "03.png", "cannot be decoded", "remove")


def test_no_images(tmp_path: Path) -> None:
    refused(tmp_path, IMAGE, "holds no images", str(tmp_path))
    album(tmp_path / "top", {"a": 8})
    (tmp_path / "top" / "b").mkdir()
    refused(tmp_path / "top", IMAGE, "class folder 'b' holds no images", "remove the empty folder")
    refused(tmp_path, IMAGE, "'top' holds no images, only folders", f"give {tmp_path / 'top'} itself")
    (tmp_path / "classes.json").write_text("{}")
    refused(tmp_path, IMAGE, "'top' holds no images, only folders")
    (tmp_path / "classes.json").unlink()
    (tmp_path / "top" / "b").rmdir()
    assert len(load(tmp_path / "top", IMAGE)) == 8
    paint(tmp_path / "top" / "stray.png", 0)
    refused(tmp_path / "top", IMAGE, "1 images, such as stray.png", "beside the 1 class folders")


def test_images_for_a_model_of_uint8_input(tmp_path: Path) -> None:
    x = album(tmp_path, {"a": 8})
    spec = [InputSpec("i", U8, (None, 6, 4, 3))]
    np.testing.assert_array_equal(everything(load(tmp_path, spec))["i"], x)
    settings(tmp_path, scale=1)
    refused(tmp_path, spec, "scale given", "uint8 pixels as they are")
    refused(tmp_path, [InputSpec("i", np.dtype(bool), (None, 6, 4, 3))], "takes bool")


def test_imagenette(tmp_path: Path) -> None:
    if not IMAGENETTE.is_dir():
        pytest.skip(f"no {IMAGENETTE} here")
    for name in ("classes.json", "preprocess.json"):
        shutil.copyfile(IMAGENETTE / name, tmp_path / name)
    for folder in sorted((IMAGENETTE / "search").iterdir())[:3]:
        (tmp_path / "search" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:4]:
            shutil.copyfile(file, tmp_path / "search" / folder.name / file.name)
    data = load(tmp_path / "search", [InputSpec("input", F32, (None, 3, 224, 224))], classes=1000)
    np.testing.assert_array_equal(data.labels, [0] * 4 + [217] * 4 + [482] * 4)
    fed = everything(data)["input"]
    assert fed.shape == (12, 3, 224, 224)
    np.testing.assert_allclose(
        fed, np.moveaxis(data.arrays["input"][np.arange(len(data))] / 127.5 - 1, 3, 1), rtol=0, atol=2e-6
    )


# ----------------------------------------------------------------------------------------------------- module:function


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module of a name of its own into the current directory and return the name."""
    monkeypatch.chdir(tmp_path)
    made: list[str] = []

    def module(body: str) -> str:
        made.append(f"amc_{tmp_path.name}_{len(made)}")
        Path(f"{made[-1]}.py").write_text("import numpy as np\n" + textwrap.dedent(body))
        return made[-1]

    yield module
    assert str(tmp_path) not in sys.path, "the current directory is on the path only while the data is read"
    for name in made:
        sys.modules.pop(name, None)


def test_batches_of_a_function(write: Write) -> None:
    name = write("""
        def batches():
            for k in range(3):
                yield {"a": np.full((4, 5), k, np.float32)}, np.full(4, k)
        def bare():
            return [np.full((4, 5), k, np.float32) for k in range(3)]
        def unlabelled():
            return [(np.full((4, 5), k, np.float32), None) for k in range(3)]
        class Tools:
            one = staticmethod(bare)
    """)
    data = load(f"{name}:batches", ROWS, classes=3)
    np.testing.assert_array_equal(data.labels, np.repeat(np.arange(3), 4))
    np.testing.assert_array_equal(everything(data)["a"], np.repeat(np.arange(3), 20).reshape(12, 5))
    assert data.source == f"{name}:batches"
    for function in ("bare", "unlabelled", "Tools.one"):
        other = load(f"{name}:{function}", ROWS)
        assert other.labels is None
        np.testing.assert_array_equal(everything(other)["a"], everything(data)["a"])
    refused(f"{name}:batches", ROWS, "label 2 at index 8", classes=2)


def test_single_samples_with_labels_and_a_scalar_input(write: Write) -> None:
    name = write("""
        def f():
            return [({"a": np.ones((1, 5), np.float32), "rate": np.array(3)}, k) for k in range(9)]
    """)
    data = load(f"{name}:f", [*ROWS, InputSpec("rate", I64, ())])
    np.testing.assert_array_equal(data.labels, np.arange(9))
    assert data.batch(np.arange(2))["rate"] == 3


def test_calibration_data_reader(write: Write) -> None:
    name = write("""
        from onnxruntime.quantization.calibrate import CalibrationDataReader
        class Reader(CalibrationDataReader):
            def __init__(self):
                self.k = 0
            def get_next(self):
                self.k += 1
                return {"a": np.full((1, 5), self.k, np.float32)} if self.k <= 9 else None
    """)
    data = load(f"{name}:Reader", ROWS)
    assert data.labels is None
    np.testing.assert_array_equal(everything(data)["a"][:, 0], np.arange(1, 10))


def test_a_function_may_return_arrays_or_a_dataset(write: Write) -> None:
    name = write("""
        from onnx_amc.run.data import InputSpec, synthesise
        def arrays():
            return {"a": np.zeros((9, 5), np.float32), "labels": np.arange(9)}
        def dataset():
            return synthesise([InputSpec("a", np.dtype(np.float32), (None, 5))], 11, 0)
    """)
    assert load(f"{name}:arrays", ROWS).labels is not None
    data = load(f"{name}:dataset", ROWS)
    assert len(data) == 11
    assert data.synthetic


def test_no_such_module_or_function(write: Write) -> None:
    refused("amc_no_such_module:f", ROWS, "no module 'amc_no_such_module'", str(Path.cwd()), "amc_no_such_module:f")
    name = write("def here(): pass\nvalue = 3")
    refused(f"{name}:there", ROWS, f"{name}:there", "no 'there'", "it has here")
    refused(f"{name}:value", ROWS, "'value' is a int")
    refused(f"{name}:here", ROWS, "returned a NoneType", "CalibrationDataReader")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import amc_absent\ndef f(): pass", ("importing it raised ModuleNotFoundError", "amc_absent")),
        ("def f(:", ("importing it raised SyntaxError",)),
        ("raise SystemExit(3)", ("importing it raised SystemExit: 3",)),
        ("def f(): return {}['k']", ("calling it without arguments raised KeyError: 'k'",)),
        ("def f(x): return x", ("calling it without arguments raised TypeError", "'x'")),
        ("def f():\n    yield np.ones((4, 5))\n    1 / 0", ("reading its batches raised ZeroDivisionError",)),
        ("def f(): return []", ("no batches",)),
        ("def f(): return [(1, 2, 3)]", ("batch 0 has a tuple",)),
        (
            "def f(): return [({'a': np.ones((4, 5))}, None), ({'b': np.ones((4, 5))}, None)]",
            ("batch 1 has 'b'", "'a'"),
        ),
        ("def f(): return [(np.ones((4, 5)), np.ones(4, int)), (np.ones((4, 5)), None)]", ("1 of 2 batches",)),
        ("def f(): return [np.ones((4, 5)), np.ones((4, 6))]", ("batch 1 has shape (4, 6), batch 0 (4, 5)", "'a'")),
        ("def f(): return [([[1], [1, 2]], None)]", ("batch 0 has a list",)),
        ("def f(): return [({'a': [[1], [1, 2]]}, None)]", ("batch 0, 'a'", "no array")),
        ("def f(): return [({'b': np.ones((9, 5))}, None)]", ("no array for the model's input 'a'", "rename 'b'")),
        ("def f(): return [({'a': np.full((9, 5), np.nan)}, None)]", ("45 values", "nan")),
        ("def f(): return [(np.ones((9, 5)), np.ones((8, 2), int))]", ("labels of shape (8, 2)", "9 samples")),
    ],
)
def test_wrong_functions(write: Write, body: str, words: tuple[str, ...]) -> None:
    name = write(body)
    refused(f"{name}:f", ROWS, f"{name}:f", *words)


def test_bare_arrays_do_not_feed_two_inputs(write: Write) -> None:
    name = write("def f(): return [np.ones((9, 5))]")
    refused(f"{name}:f", TWO, "batch 0 has a ndarray", "by input name")


# ------------------------------------------------------------------------------------- split, made-up inputs, side-car


@pytest.mark.parametrize("labelled", [True, False])
def test_split_is_disjoint_sorted_and_seeded(labelled: bool) -> None:
    arrays = rows(100)
    data = load({**arrays, "labels": np.arange(100) % 7} if labelled else arrays, ROWS)
    calibration, reward = data.split(3, 30, 50)
    assert (len(calibration), len(reward)) == (30, 50)
    for part in (calibration, reward):
        assert (np.diff(part) > 0).all(), "sorted, each once"
        assert part.min() >= 0
        assert part.max() < 100
    assert not set(calibration) & set(reward)
    for again, first in zip(data.split(3, 30, 50), (calibration, reward), strict=True):
        np.testing.assert_array_equal(again, first)
    assert not np.array_equal(data.split(4, 30, 50)[1], reward)


@pytest.mark.parametrize(
    ("samples", "wished", "got"),
    [
        (100, (60, 40), (60, 40)),
        (100, (1000, 1000), (50, 50)),
        (101, (1000, 1000), (51, 50)),
        (100, (1000, 20), (80, 20)),
        (100, (10, 1000), (10, 50)),
        (8, (512, 2000), (4, 4)),
        (50, (20, 0), (20, 0)),
    ],
)
def test_split_shares_what_there_is(samples: int, wished: tuple[int, int], got: tuple[int, int]) -> None:
    calibration, reward = load(rows(samples), ROWS).split(0, *wished)
    assert (len(calibration), len(reward)) == got
    assert len(set(calibration) | set(reward)) == sum(got)


def test_split_keeps_the_classes_in_proportion() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    data = load({**rows(1000), "labels": labels}, ROWS)
    for part, size in zip(data.split(0, 100, 200), (100, 200), strict=True):
        counts = np.bincount(labels[part], minlength=3)
        np.testing.assert_allclose(counts, size * np.array([0.6, 0.3, 0.1]), rtol=0, atol=2)


def test_split_of_a_negative_number() -> None:
    with pytest.raises(ValueError, match="negative"):
        load(rows(), ROWS).split(0, -1, 2)


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
