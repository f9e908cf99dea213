"""Data in other people's formats: arrays of one input, tables, saved data sets, tokens; and presets for images."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feeds import Write
from PIL import Image

from onnx_amc.errors import DataError, OptionError
from onnx_amc.run.data import InputSpec, load

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
ROWS = [InputSpec("a", F32, (None, 3))]
COLUMNS = [InputSpec("age", F32, (None, 1)), InputSpec("city", I64, (None, 1))]
IMAGE = [InputSpec("input", F32, (None, 3, 8, 6))]
X = np.arange(30, dtype=np.float32).reshape(10, 3)
PHOTOS = np.random.default_rng(0).integers(0, 256, (10, 8, 6, 3), np.uint8)


def test_npy_feeds_the_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    data = load(tmp_path / "x.npy", ROWS)
    np.testing.assert_array_equal(data.batch(np.arange(10))["a"], X)
    with pytest.raises(DataError, match="holds one array"):
        load(tmp_path / "x.npy", COLUMNS)
    np.save(tmp_path / "o.npy", np.array([{}] * 10), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "o.npy", ROWS)


def test_tokens_of_an_npz(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 30_000, (12, 7))
    np.savez(tmp_path / "t.npz", ids=ids, mask=np.ones_like(ids), labels=np.arange(12) % 2)
    specs = [InputSpec("ids", I64, (None, None)), InputSpec("mask", I64, (None, None))]
    data = load(tmp_path / "t.npz", specs, classes=2)
    np.testing.assert_array_equal(data.batch(np.arange(12))["ids"], ids)
    assert data.batch(np.arange(2))["mask"].dtype == np.int64
    assert data.labels is not None


def table(path: Path, columns: Mapping[str, Any]) -> Path:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    made = pa.table({name: list(column) for name, column in columns.items()})
    if path.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(made, path)
    else:
        import pyarrow.csv

        pyarrow.csv.write_csv(made, path)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_columns_in_order_and_labels(tmp_path: Path, name: str) -> None:
    columns: dict[str, np.ndarray] = {
        "p": X[:, 0],
        "label": np.arange(10) % 3,
        "q": X[:, 1].astype(np.int64),
        "r": X[:, 2],
    }
    data = load(table(tmp_path / name, columns), ROWS, classes=3)
    np.testing.assert_array_equal(data.batch(np.arange(10))["a"], X)
    assert data.labels is not None
    np.testing.assert_array_equal(data.labels, np.arange(10) % 3)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_columns_named_like_the_inputs(tmp_path: Path, name: str) -> None:
    columns: dict[str, np.ndarray] = {"city": np.arange(10), "other": X[:, 1], "age": X[:, 0]}
    fed = load(table(tmp_path / name, columns), COLUMNS).batch(np.arange(10))
    np.testing.assert_array_equal(fed["age"], X[:, :1])
    np.testing.assert_array_equal(fed["city"], np.arange(10)[:, None])


def test_lists_in_parquet_and_a_csv_without_header(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", {"a": [row.tolist() for row in X]})
    np.testing.assert_array_equal(load(path, ROWS).batch(np.arange(10))["a"], X)
    np.savetxt(tmp_path / "bare.csv", X, delimiter=",")
    np.testing.assert_array_equal(load(tmp_path / "bare.csv", ROWS).batch(np.arange(10))["a"], X)


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 columns beside the labels.*takes 3 values"):
        load(table(tmp_path / "few.csv", {"p": X[:, 0], "q": X[:, 1]}), ROWS)
    (tmp_path / "gap.csv").write_text("p,q,r\n" + "1,,3\n" * 10)
    with pytest.raises(DataError, match="10 of 10 values are missing"):
        load(tmp_path / "gap.csv", ROWS)
    (tmp_path / "text.csv").write_text("p,q,r\n" + "1,red,3\n" * 10)
    with pytest.raises(DataError, match="text beside numbers"):
        load(tmp_path / "text.csv", ROWS)
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "bad.parquet", ROWS)


def test_a_table_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.csv").write_text("p,q,r\n" + "1,2,3\n" * 10)
    with pytest.raises(DataError, match=r"onnx-amc\[data\]"):
        load(tmp_path / "t.csv", ROWS)


# ------------------------------------------------------------------------------------------------ saved data sets


@pytest.mark.filterwarnings("ignore")
def test_a_saved_data_set_of_images(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [Image.fromarray(p) for p in PHOTOS], "label": [i % 2 for i in range(10)]}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(str(tmp_path / "set"))
    data = load(tmp_path / "set", IMAGE, classes=2, preset="tf")
    wanted = (PHOTOS.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(data.batch(np.arange(10))["input"], wanted, atol=1e-6)
    assert data.classes == {0: "cat", 1: "dog"}
    assert data.labels is not None
    datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(DataError, match=r"1 splits.*train"):
        load(tmp_path / "splits", IMAGE)
    assert len(load(tmp_path / "splits" / "train", IMAGE)) == 10


@pytest.mark.filterwarnings("ignore")
def test_a_saved_data_set_of_tokens(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    ids = np.arange(40).reshape(10, 4)
    datasets.Dataset.from_dict({"ids": ids.tolist(), "text": ["a"] * 10}).save_to_disk(str(tmp_path / "set"))
    data = load(tmp_path / "set", [InputSpec("ids", I64, (None, None))])
    np.testing.assert_array_equal(data.batch(np.arange(10))["ids"], ids)


def test_a_saved_data_set_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"onnx-amc\[data\]"):
        load(tmp_path, IMAGE)


# ------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("preset", "mean", "std"),
    [
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("torchvision", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("cifar10", [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]),
        ("tf", [0.5] * 3, [0.5] * 3),
        ("yolo", [0.0] * 3, [1.0] * 3),
    ],
)
def test_a_preset_normalises(preset: str, mean: list[float], std: list[float]) -> None:
    fed = load({"x": PHOTOS}, IMAGE, preset=preset).batch(np.arange(10))["input"]
    np.testing.assert_allclose(fed, np.moveaxis((PHOTOS / 255 - mean) / std, 3, 1), atol=1e-5)


def test_a_preset_crops_a_folder(tmp_path: Path) -> None:
    for i in range(8):
        Image.fromarray(np.full((64, 64, 3), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    data = load(tmp_path, [InputSpec("x", F32, (None, 3, 28, 28))], preset="imagenet")
    assert data.arrays["x"].shape == (8, 28, 28, 3)
    free = load(tmp_path, [InputSpec("x", F32, (None, 3, None, None))], preset="torchvision")
    assert free.arrays["x"].shape == (8, 224, 224, 3)
    grey = load(tmp_path, [InputSpec("x", F32, (None, 1, 28, 28))], preset="tf").batch(np.arange(1))["x"]
    np.testing.assert_allclose(grey, -1)


def test_a_preset_that_contradicts_or_serves_nothing(tmp_path: Path) -> None:
    for i in range(8):
        Image.fromarray(PHOTOS[i]).save(tmp_path / f"{i}.png")
    (tmp_path / "preprocess.json").write_text('{"mean": [0, 0, 0]}')
    with pytest.raises(DataError, match=r"'mean' is \[0, 0, 0\] here and .* in --preset"):
        load(tmp_path, IMAGE, preset="tf")
    (tmp_path / "preprocess.json").write_text('{"mean": [0.5, 0.5, 0.5]}')
    assert len(load(tmp_path, IMAGE, preset="tf")) == 8
    with pytest.raises(DataError, match="'std' is"):
        load({"x": PHOTOS, "mean": np.full(3, 0.5), "std": np.ones(3)}, IMAGE, preset="tf")
    with pytest.raises(DataError, match="no images for --preset"):
        load({"a": X}, ROWS, preset="tf")
    with pytest.raises(OptionError, match="unknown preset 'imagenot'"):
        load({"x": PHOTOS}, IMAGE, preset="imagenot")


def test_a_function_that_fills_one_buffer_again(write: Write) -> None:
    name = write(
        """
        def batches():
            buffer = np.empty((4, 3), np.float32)
            for i in range(5):
                buffer[:] = i
                yield {"x": buffer}, np.full(4, i)
        """
    )
    data = load(f"{name}:batches", [InputSpec("x", np.dtype(np.float32), (None, 3))])
    assert np.asarray(data.arrays["x"])[:, 0].tolist() == np.repeat(np.arange(5.0), 4).tolist()


def test_a_csv_that_starts_with_a_mark_or_an_empty_line(tmp_path: Path) -> None:
    rows = "\n".join(f"{i},0,1" for i in range(12))
    for start in ("\ufeff", "\n"):
        (tmp_path / "t.csv").write_text(start + rows, encoding="utf-8")
        data = load(tmp_path / "t.csv", [InputSpec("x", np.dtype(np.float32), (None, 3))])
        assert np.asarray(data.arrays["x"])[:, 0].tolist() == list(range(12))


@pytest.mark.parametrize(
    ("header", "samples"), [("0,1,2", 10), ('"0","1","2"', 10), ("0,1,3", 11), ("0.0,1.0,2.0", 11)]
)
def test_a_header_of_column_numbers_is_no_sample(header: str, samples: int, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\n".join([header, *["4,5,6"] * 10]))
    assert len(load(tmp_path / "t.csv", ROWS)) == samples


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_data_set_that_was_saved_with_a_format(kind: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(np.full((8, 8, 3), i, np.uint8)) for i in range(12)]
    found = datasets.Dataset.from_dict({"image": pictures, "label": [i % 2 for i in range(12)]}).cast_column(
        "image", datasets.Image()
    )
    found.with_format(kind, columns=["label"]).save_to_disk(tmp_path / "set")
    data = load(tmp_path / "set", [InputSpec("x", np.dtype(np.float32), (None, 3, 8, 8))])
    assert np.asarray(data.arrays["x"][np.arange(12)])[:, 0, 0, 0].tolist() == list(range(12))
    assert data.labels is not None
