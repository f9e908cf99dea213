"""Calibration and reward parts of the samples: disjoint, drawn by the seed, the classes in proportion."""

from __future__ import annotations

import numpy as np
import pytest
from feeds import ROWS, rows

from onnx_amc.run.data import load


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
