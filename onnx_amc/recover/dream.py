"""Made-up images changed until the network takes them for its classes: what late layers answer to is in no texture and no edge."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import torch
from torch import Tensor

from onnx_amc.recover.layout import float32_by_default, one_thread
from onnx_amc.recover.reading import Reading
from onnx_amc.run.capture import fixed_batch
from onnx_amc.run.crew import usable_cores
from onnx_amc.run.pixels import Pixels
from onnx_amc.run.samples import Dataset

BATCH = 16
STEPS = 6
STRIDE = 8.0
"""Deviation of the first step, in units of a pixel from 0 to 255; the last one is a third of it."""

SHIFT = 0.05
"""Share of an image's side by which it is moved at each step, at most: what holds at one place only is no feature."""

SURE = 0.95
"""Probability of its class from which an image is left alone."""


@float32_by_default()
def dreamt(
    model: onnx.ModelProto, data: Dataset, classes: int, seed: int, progress: Callable[[int, int], None]
) -> Dataset:
    """Change images so that the network sees a class in each, all classes in turn; same seed, same images, on any number of cores.

    Args:
        model: A classifier of one image input.
        data: Images as `pixels` feeds them.
        classes: How many it tells apart.
        seed: Of what is seen where.
        progress: Told the images done and their number.

    Raises:
        ModelError: torch has no reading of the graph.

    """
    name, feed = data.inputs[0].name, data.pixels
    if feed is None:
        raise ValueError("only images can be dreamt of")
    reading = Reading(model).requires_grad_(requires_grad=False)
    count, size = len(data), fixed_batch(model) or BATCH
    goals = np.resize(np.random.default_rng(seed).permutation(classes), count)
    out = np.array(data.arrays[name][np.arange(count)])

    def one(start: int) -> int:
        part = np.arange(start, min(start + size, count))
        out[part] = _dream(
            reading, name, feed, data.arrays[name][part], goals[part], np.random.default_rng([seed, start])
        )
        return int(part[-1]) + 1

    with one_thread(), ThreadPoolExecutor(usable_cores(), "onnx-amc-dream") as pool:
        for done in pool.map(one, range(0, count - count % size if fixed_batch(model) else count, size)):
            progress(done, count)
    return replace(data, arrays={name: out})


def _dream(
    reading: Reading, name: str, feed: Pixels, x: np.ndarray, goals: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Some images (B,H,W,C) of 0 to 255 on their way to their classes; each step is the gradient with natural amplitudes."""
    z = torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    goal = torch.from_numpy(goals)[:, None]
    reach = [int(SHIFT * side) for side in z.shape[2:]]
    for step in range(STEPS):
        by = tuple(int(rng.integers(-r, r + 1)) for r in reach)
        seen = z.clone().requires_grad_()
        told = reading({name: _fed(torch.roll(seen, by, (2, 3)), feed)})[reading.outputs[0]].flatten(1)
        score = log_shares(told).gather(1, goal).clamp_max(float(np.log(SURE)))
        (gradient,) = torch.autograd.grad(score.sum(), seen)
        z = (z + STRIDE * (1 - step / STEPS * 0.8) * _natural(gradient)).clamp(0, 255)
    found: np.ndarray = z.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return found


def _fed(z: Tensor, feed: Pixels) -> Tensor:
    """What the network takes of pixels (B,C,H,W)."""
    mean, std = (torch.from_numpy(np.float32(v))[:, None, None] for v in (feed.mean, feed.std))
    x = (z * feed.scale - mean) / std
    return x if feed.first else x.permute(0, 2, 3, 1)


def log_shares(told: Tensor) -> Tensor:
    """Logarithms of the probabilities of classes, (B, classes), whether the network gives these or what a softmax makes them of."""
    told = (told[:, -1] if told.ndim == 3 and told.shape[2] > 1 else told.flatten(1)).float()
    if bool((told >= 0).all()) and bool((told.sum(1) - 1).abs().max() < 1e-3):
        return told.clamp_min(1e-30).log()
    return torch.log_softmax(told, 1)


def _natural(gradient: Tensor) -> Tensor:
    """A direction of deviation 1 whose amplitudes fall with 1/f as those of images do; 0 where the gradient is."""
    height, width = gradient.shape[2:]
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    parts = torch.fft.rfft2(gradient) / frequency.clamp_min(1 / max(height, width))
    smooth = torch.fft.irfft2(parts, s=(height, width))
    found: Tensor = smooth / smooth.flatten(1).std(1).clamp_min(1e-20)[:, None, None, None]
    return found
