"""The example of a metric: detectors, whose boxes are compared with the original's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_nets import SHARED, needs_shared

import onnx_amc
from onnx_amc.errors import OptionError
from onnx_amc.run.metrics import (
    Metric,
    Outputs,
    find_metric,
)
from onnx_amc.run.samples import Dataset, InputSpec

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # examples are no part of the package
from examples import detection as det  # noqa: E402

MLP = ROOT / "models" / "digits_mlp.onnx"
SIDECAR = MLP.with_suffix(".npz")
F32 = np.dtype(np.float32)

FACES = np.array([[0.1, 0.1, 0.3, 0.4], [0.5, 0.5, 0.9, 0.9], [0.2, 0.6, 0.4, 0.8]])
SCORES = np.array([0.9, 0.8, 0.7])


def faces(corners: np.ndarray, scores: np.ndarray, images: int = 2) -> Outputs:
    """UltraFace's outputs with the same boxes in every image, and one that is none."""
    shares = np.append(scores, 0.06)[None, :, None].repeat(images, axis=0)
    boxes = np.vstack([corners, [0, 0, 1, 1]])[None].repeat(images, axis=0)
    return [np.concatenate([1 - shares, shares], axis=2).astype(F32), boxes.astype(F32)]


def scored(corners: np.ndarray, scores: np.ndarray = SCORES) -> float:
    return det.mean_average_precision(faces(corners, scores), None, faces(FACES, SCORES))


def test_the_originals_own_boxes_are_perfect() -> None:
    assert scored(FACES) == 1.0
    assert scored(FACES, SCORES[::-1]) == 1.0, "no box is wrong, so their order does not matter"
    assert scored(FACES + 0.01) == 1.0
    doubtful = np.append(SCORES, 0.4)
    doubted = faces(np.vstack([FACES, [0.7, 0.1, 0.8, 0.2]]), doubtful)
    assert det.mean_average_precision(doubted, None, doubted) == 1.0


def test_boxes_that_overlap_by_less_than_half_find_nothing() -> None:
    wide = FACES[:, 2] - FACES[:, 0]
    shift = np.zeros((3, 4))
    for share, overlap, found in ((0.30, 0.7 / 1.3, 1.0), (0.36, 0.64 / 1.36, 0.0)):
        shift[:, 0] = shift[:, 2] = share * wide
        assert det.overlap(FACES[0] + shift[0], FACES)[0] == pytest.approx(overlap)
        assert scored(FACES + shift) == found


def test_average_precision_by_hand() -> None:
    """Per image 0.9 right, 0.8 wrong, 0.7 right, one missing: recall 1/3 at precision 1, 2/3 at 2/3, ties taken image by image."""
    away = FACES.copy()
    away[1] = [0.0, 0.9, 0.1, 1.0]
    assert scored(away) == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    assert scored(FACES[:2], SCORES[:2]) == pytest.approx(2 / 3)


def test_a_second_box_on_a_face_is_wrong() -> None:
    """The one that was there is found first, or last; suppression is not in the way, for the two overlap by 0.4."""
    boxes = det.Boxes(np.zeros(3, int), np.zeros(3, int), np.array([0.9, 0.8, 0.7]), FACES[[0, 0, 1]])
    truth = det.Boxes(np.zeros(2, int), np.zeros(2, int), np.ones(2), FACES[:2])
    assert det.average_precision(boxes, truth) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    last = det.Boxes(boxes.image, boxes.kind, np.array([0.9, 0.6, 0.7]), boxes.corners)
    assert det.average_precision(last, truth) == 1.0
    elsewhere = det.Boxes(boxes.image + 1, boxes.kind, boxes.score, boxes.corners)
    assert det.average_precision(elsewhere, truth) == 0.0, "another image's boxes find nothing"


def test_suppression_keeps_the_most_confident_of_a_class_and_image() -> None:
    near = FACES[0] + [0.01, 0.0, 0.01, 0.0]
    found = det.detected(faces(np.vstack([FACES, near]), np.append(SCORES, 0.95)))
    assert found.image.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(found.score[:3], [0.95, 0.8, 0.7], rtol=1e-6)
    np.testing.assert_allclose(found.corners[0], near, rtol=1e-6)


def test_drawn_boxes_are_the_truth_where_there_are_any() -> None:
    labels = np.full((2, 4, 5), -1.0)
    labels[:, :3, 0], labels[:, :3, 1:] = 0, FACES
    nothing = faces(FACES[:0], SCORES[:0])
    assert det.mean_average_precision(faces(FACES, SCORES), labels, nothing) == 1.0
    assert det.mean_average_precision(nothing, labels, nothing) == 0.0
    assert np.isnan(det.mean_average_precision(faces(FACES, SCORES), np.array([1, 2]), nothing)), (
        "class numbers are none"
    )


def test_fastestdet_is_decoded_by_its_formulas() -> None:
    z = np.zeros((1, 8, 4, 5), F32)
    z[0, :, 2, 3] = [0.8, 0.5, -0.25, 0.0, -1.0, 0.1, 0.2, 0.6]
    found = det.decoded([z])
    assert (len(found), found.kind[0], found.image[0]) == (1, 2, 0)
    assert found.score[0] == pytest.approx(0.8**0.6 * 0.6**0.4)
    x, y, w, h = (3 + np.tanh(0.5)) / 5, (2 + np.tanh(-0.25)) / 4, 0.5, 1 / (1 + np.e)
    np.testing.assert_allclose(found.corners[0], [x - w / 2, y - h / 2, x + w / 2, y + h / 2], rtol=1e-6)
    other = z.copy()
    other[0, 5:, 2, 3] = [0.6, 0.2, 0.1]
    both = [np.concatenate([z, z])], [np.concatenate([z, other])]
    assert det.mean_average_precision(both[0], None, both[0]) == 1.0
    assert det.mean_average_precision(both[0], None, both[1]) == pytest.approx((0.0 + 1.0) / 2), (
        "the mean of two classes"
    )


def test_other_outputs_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    images = Dataset((InputSpec("x", F32, (None, 3, 6, 6)),), {"x": np.zeros((24, 3, 6, 6), F32)}, None, "test")
    _, metric = find_metric("examples.detection:mean_average_precision", images, None)
    with pytest.raises(OptionError, match="neither UltraFace's") as caught:
        metric([np.ones((2, 10))], None, [np.ones((2, 10))])
    assert "examples.detection:mean_average_precision" in caught.value.where


@needs_shared
def test_a_cut_ultraface_finds_fewer_of_the_originals_faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = {"size": 320, "crop": [240, 320], "color": "RGB", "scale": 0.0078125, "mean": 0.9921875}
    (tmp_path / "preprocess.json").write_text(json.dumps(settings))
    for photo in sorted((SHARED / "data" / "imagenette" / "search" / "n03394916").iterdir())[:32]:
        (tmp_path / photo.name).symlink_to(photo)
    network = SHARED / "models" / "ultraface_rfb_320.onnx"
    metric: Metric | str = "examples.detection:mean_average_precision"
    how: dict[str, Any] = {"policy": "uniform", "metric": metric, "recover": False}
    found = onnx_amc.compress(network, tmp_path, flops=0.9, refit=False, **how).record
    assert found["original"]["score"] == 1.0
    assert 0.0 <= found["compressed"]["score"] < 0.9
