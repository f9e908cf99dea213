"""Mean average precision of a detector, as a metric: whether the boxes of the cut network are those of the original.

From the root of the project:

    onnx-amc compress ultraface.onnx --data PHOTOS --flops 0.75 --metric examples.detection:mean_average_precision
    onnx-amc evaluate small.onnx --against ultraface.onnx --data PHOTOS --metric examples.detection:mean_average_precision

PHOTOS is a folder of photographs with a `preprocess.json` in it, for UltraFace RFB-320

    {"size": 320, "crop": [240, 320], "color": "RGB", "scale": 0.0078125, "mean": 0.9921875}

which is (pixel - 127) / 128, and for FastestDet

    {"size": [352, 352], "color": "BGR"}

The truth is what the original finds with a confidence of `CONFIDENT` or more, so no boxes need to be drawn; where there are labels
(N, K, 5), these are it. Outputs of another layout need another `decoded`, the rest stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONFIDENT = 0.5
"""Confidence from which on a box of the original counts as truth."""

LOWEST = 0.2
"""Confidence up to which a box is not looked at; UltraFace gives about 0.06 to what is no face."""

MOST = 200
"""Boxes of an image and class that are looked at, at most."""

OVERLAP = 0.5
"""Intersection over union from which on a box has found another."""

SUPPRESSED = 0.45
"""Intersection over union from which on the less confident one of two boxes of a class is dropped."""

Outputs = list[np.ndarray]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of several images.

    Args:
        image: int (boxes,), the sample that each lies in.
        kind: int (boxes,), its class.
        score: float (boxes,), the confidence in it.
        corners: float (boxes, 4), left, top, right, bottom; 0 to 1 across the image.

    """

    image: np.ndarray
    kind: np.ndarray
    score: np.ndarray
    corners: np.ndarray

    def __len__(self) -> int:
        """Count them."""
        return len(self.image)

    def at(self, index: np.ndarray) -> Boxes:
        """Some of them, by number or mask."""
        return Boxes(self.image[index], self.kind[index], self.score[index], self.corners[index])


def mean_average_precision(outputs: Outputs, labels: np.ndarray | None, reference: Outputs) -> float:
    """Mean over classes of the average precision at an intersection over union of 0.5.

    Args:
        outputs: Of the network that is judged, as `decoded` takes them.
        labels: float (N, K, 5), for each image class, left, top, right and bottom of up to K boxes, 0 to 1 across the image;
            rows of a class below 0 are none. Labels of another shape are not looked at.
        reference: Outputs of the original.

    Returns:
        0 to 1; NaN where there is nothing to be found.

    """
    boxes = labels is not None and labels.ndim == 3
    truth = drawn(labels) if labels is not None and boxes else detected(reference)
    if not boxes:
        truth = truth.at(truth.score >= CONFIDENT)
    found = detected(outputs)
    kinds = np.unique(truth.kind)
    if not len(kinds):
        return float("nan")
    return float(np.mean([average_precision(found.at(found.kind == k), truth.at(truth.kind == k)) for k in kinds]))


def average_precision(found: Boxes, truth: Boxes) -> float:
    """Area under precision over recall, precision made to fall (as in PASCAL VOC from 2010 on).

    Boxes are taken by falling confidence. Each is held against the true box of its image that it overlaps most; it has found it if
    they overlap by `OVERLAP` and no box before it has.

    Args:
        found: Of one class.
        truth: Of the same class, one at least.

    """
    free = np.ones(len(truth), bool)
    places = {image: np.flatnonzero(truth.image == image) for image in np.unique(truth.image).tolist()}
    right = np.zeros(len(found), bool)
    order = np.argsort(-found.score, kind="stable")
    for rank, box in enumerate(order):
        near = places.get(int(found.image[box]))
        if near is None:
            continue
        overlaps = overlap(found.corners[box], truth.corners[near])
        best = near[overlaps.argmax()]
        right[rank] = overlaps.max() >= OVERLAP and free[best]
        free[best] &= not right[rank]
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(found) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float(falling[right].sum() / len(truth))


def overlap(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) with others (boxes, 4)."""
    low, high = np.maximum(one[:2], others[:, :2]), np.minimum(one[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    either = np.prod(one[2:] - one[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - shared
    return np.asarray(shared / np.maximum(either, 1e-12))


def detected(outputs: Outputs) -> Boxes:
    """Boxes after non-maximum suppression, greedy and for each image and class by itself, the most confident first."""
    boxes = decoded(outputs)
    order = np.lexsort((-boxes.score, boxes.kind, boxes.image))
    boxes = boxes.at(order)
    fresh = np.diff(boxes.image, prepend=-1).astype(bool) | np.diff(boxes.kind, prepend=-1).astype(bool)
    groups = np.split(np.arange(len(boxes)), np.flatnonzero(fresh)[1:])
    kept = [group[:MOST][_survivors(boxes.corners[group[:MOST]])] for group in groups]
    return boxes.at(np.concatenate(kept))


def _survivors(corners: np.ndarray) -> np.ndarray:
    """Which boxes (boxes, 4), the most confident first, overlap with none that survives before them."""
    left = np.arange(len(corners))
    kept: list[int] = []
    while len(left):
        kept.append(int(left[0]))
        left = left[1:][overlap(corners[left[0]], corners[left[1:]]) < SUPPRESSED]
    return np.array(kept, np.int64)


def decoded(outputs: Outputs) -> Boxes:
    """Boxes of a confidence above `LOWEST`.

    Args:
        outputs: UltraFace's scores (N, A, 2) and boxes (N, A, 4), or FastestDet's one output (N, 5 + classes, H, W).

    Raises:
        ValueError: Anything else.

    """
    shapes = [z.shape[1:] for z in outputs]
    if len(shapes) == 2 and len(shapes[0]) == len(shapes[1]) == 2 and (shapes[0][-1], shapes[1][-1]) == (2, 4):
        return ultraface(*outputs)
    if len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][0] > 5:
        return fastestdet(outputs[0])
    raise ValueError("outputs are neither UltraFace's (N, A, 2) and (N, A, 4) nor FastestDet's (N, 5 + classes, H, W)")


def ultraface(scores: np.ndarray, corners: np.ndarray) -> Boxes:
    """Faces: `scores` (N, A, 2) are the shares of background and face, `corners` (N, A, 4) are boxes already."""
    image, anchor = np.nonzero(scores[:, :, 1] > LOWEST)
    return Boxes(image, np.zeros_like(image), scores[image, anchor, 1], corners[image, anchor])


def fastestdet(z: np.ndarray) -> Boxes:
    """Objects: `z` (N, 5 + classes, H, W) has for each cell whether there is one, its place and size, and the share of each class.

    Confidence is objectness^0.6 * class^0.4; the centre lies tanh of a cell beside the cell's corner, the sides are sigmoids across
    the image. Source: the post-processing of dog-qiuqiu/FastestDet.
    """
    kind = z[:, 5:].argmax(axis=1)
    score = np.clip(z[:, 0], 0, None) ** 0.6 * z[:, 5:].max(axis=1) ** 0.4
    image, row, column = np.nonzero(score > LOWEST)
    dx, dy, w, h = z[image, 1:5, row, column].T.astype(np.float64)
    centre = np.stack([(column + np.tanh(dx)) / z.shape[3], (row + np.tanh(dy)) / z.shape[2]], axis=1)
    half = 0.5 / (1 + np.exp(-np.stack([w, h], axis=1)))
    return Boxes(image, kind[image, row, column], score[image, row, column], np.hstack([centre - half, centre + half]))


def drawn(labels: np.ndarray) -> Boxes:
    """Boxes of labels (N, K, 5), those of a class below 0 left out."""
    image, place = np.nonzero(labels[:, :, 0] >= 0)
    rows = labels[image, place]
    return Boxes(image, rows[:, 0].astype(np.int64), np.ones(len(rows)), rows[:, 1:])
