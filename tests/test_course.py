"""The course of a training: what it makes of images, its rate, when its hints fade, and the size that weights have in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnx_amc.recover.course import Course, augmented, one_cycle
from onnx_amc.recover.reading import TINY, scale_of


def test_hints_fade_only_where_labels_decide_in_the_end() -> None:
    assert [Course(hints=1.0, labels=1.0).hints_at(share) for share in (0.0, 0.5, 1.0)] == [1.0, 0.25, 0.0]
    assert [Course(hints=1.0).hints_at(share) for share in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_images_are_moved_and_mirrored_as_wholes(last: bool) -> None:
    rows, columns = np.meshgrid(np.arange(16.0), np.arange(24.0), indexing="ij")
    image = np.stack([rows, columns, rows + columns]).astype(np.float32)
    images = np.repeat(image[None], 40, axis=0)
    feed = np.moveaxis(images, 1, -1) if last else images
    found = augmented(feed, Course(shift=0.125, flip=False), np.random.default_rng(0))
    found = np.moveaxis(found, -1, 1) if last else found
    inner = found[:, :, 2:-2, 3:-3] - images[:, :, 2:-2, 3:-3]
    moves = inner[:, :2, 0, 0]
    assert (inner == np.append(moves, moves.sum(axis=1, keepdims=True), axis=1)[:, :, None, None]).all()
    assert np.abs(moves).max(axis=0).tolist() == [2, 3]
    mirrored = augmented(feed, Course(shift=0.0, flip=True), np.random.default_rng(0))
    mirrored = np.moveaxis(mirrored, -1, 1) if last else mirrored
    turned = (mirrored == images[..., ::-1]).all(axis=(1, 2, 3))
    assert 0 < turned.sum() < 40
    assert (mirrored[~turned] == images[0]).all()


def test_the_learning_rate_goes_up_once_and_down_to_nothing() -> None:
    rates = np.array([one_cycle(s) for s in np.linspace(0, 1, 200)])
    peak = int(rates.argmax())
    assert rates.max() == pytest.approx(1.0, abs=0.01)
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    assert rates[-1] == pytest.approx(0.0)


def test_a_weight_is_divided_by_the_size_of_each_channel_and_loses_no_bit() -> None:
    """But for channels that are next to nothing: theirs is a share of the whole's."""
    kernel = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 8, 1, 1)).astype(np.float32))
    for by in (1e-3, 1.0, 1e3):
        value = by * kernel * torch.tensor([1.0, 0.25, 1e-4])[:, None, None, None]
        scale = scale_of(value, by_channel=True, floor=1e-9)
        assert scale.shape == (3, 1, 1, 1)
        assert torch.equal(value / scale * scale, value)
        usual, small, nothing = (value / scale).square().mean(dim=(1, 2, 3)).sqrt().tolist()
        assert 0.7 < min(usual, small) <= max(usual, small) < 1.42
        assert 0 < nothing < 0.01
    assert scale_of(torch.zeros(5), by_channel=False).item() == pytest.approx(TINY, rel=0.5)
