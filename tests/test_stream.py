"""Data larger than memory: folders decoded as they are asked for, batches of a function kept on disk; the same samples as ever."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnx_amc.errors import DataError
from onnx_amc.run import samples, shelf
from onnx_amc.run.data import InputSpec, load
from onnx_amc.run.shelf import Pictures, Shelf

F32 = np.dtype(np.float32)
IMAGE = [InputSpec("input", F32, (None, 3, 6, 4))]


@pytest.fixture
def painted(tmp_path: Path) -> Path:
    """A folder of two classes of five noisy images each."""
    rng = np.random.default_rng(0)
    for i in range(10):
        file = tmp_path / "data" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 4, 3), np.uint8)).save(file)
    return tmp_path / "data"


def test_a_large_folder_gives_the_same_samples_as_a_small_one(painted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = load(painted, IMAGE)
    monkeypatch.setattr(shelf, "MEMORY", 100)
    streamed = load(painted, IMAGE)
    assert isinstance(held.arrays["input"], np.ndarray)
    assert isinstance(streamed.arrays["input"], Pictures)
    for index in (np.arange(10), np.array([7, 0, 7]), np.array([3])):
        assert np.array_equal(held.batch(index)["input"], streamed.batch(index)["input"])
    assert held.labels is not None
    assert streamed.labels is not None
    assert held.labels.tolist() == streamed.labels.tolist()


def test_any_image_of_a_large_folder_that_changes_is_noticed(painted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "MEMORY", 100)
    monkeypatch.setattr(samples, "STREAMED", 2)
    first = load(painted, IMAGE).digest()
    moved = painted.rename(painted.with_name("elsewhere"))
    assert load(moved, IMAGE).digest() == first
    Image.fromarray(np.zeros((6, 4, 3), np.uint8)).save(moved / "a" / "4.png")
    second = load(moved, IMAGE).digest()
    (moved / "a" / "4.png").rename(moved / "a" / "3.png")
    assert len({first, second, load(moved, IMAGE).digest()}) == 3


def test_a_broken_image_of_a_large_folder_is_named_when_it_comes_up(
    painted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (painted / "b" / "9.png").write_bytes(b"no image")
    monkeypatch.setattr(shelf, "MEMORY", 100)
    data = load(painted, IMAGE)
    data.batch(np.arange(9))
    with pytest.raises(DataError, match="cannot be decoded") as caught:
        data.batch(np.arange(10))
    assert "9.png" in str(caught.value)


@pytest.mark.parametrize("limit", [0, 100, 10**9])
def test_a_shelf_gives_back_what_was_put_on_it(limit: int) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((n, 3, 2)).astype(np.float32) for n in (4, 1, 7, 2)]
    mine = Shelf(limit)
    for part in parts:
        mine.add(part)
    found = mine.array()
    assert isinstance(found, np.memmap) == (limit < 10**9)
    assert np.array_equal(found, np.concatenate(parts))


def test_batches_of_a_function_go_to_disk_and_not_to_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = 50_000

    class Source:
        @staticmethod
        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for i in range(40):
                yield np.full((10, wide), i, np.float32), np.full(10, i)

    monkeypatch.setitem(sys.modules, "large_source", Source)
    monkeypatch.setattr(shelf, "MEMORY", 10_000_000)
    tracemalloc.start()
    data = load("large_source:batches", [InputSpec("x", F32, (None, wide))])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * 40 * 10 * wide * 4
    assert len(data) == 400
    assert data.labels is not None
    assert data.labels.tolist() == [i // 10 for i in range(400)]
    found = data.batch(np.array([0, 15, 399]))["x"]
    assert found.min(axis=1).tolist() == found.max(axis=1).tolist() == [0.0, 1.0, 39.0]
