"""Images made up so that they look natural to a network: things that hide one another, of all sizes, textured, muted in colour.

Photographs have few statistics that networks lean on in their first layers: amplitudes that fall with 1/f, edges at every scale
where one thing hides another ("dead leaves": Lee, Mumford and Huang, 2001), and colours that vary mostly together. Noise has none
of them.
"""

from __future__ import annotations

import numpy as np

COLOURS = np.array([[0.58, 0.58, 0.58], [0.16, 0.02, -0.20], [0.05, -0.09, 0.05]], np.float32)
"""Deviations of natural colours along light, yellow against blue, and red against green; in halves of the range."""

MUTED = np.array([1.0, 0.4, 0.4], np.float32)
"""Of textures: they differ in light more than in colour."""

SLOPES = (0.6, 1.0, 1.5)
"""How fast the amplitudes of textures fall with frequency: rough, natural, smooth."""

THINGS = (60, 900)
"""How many things hide one another in an image."""

CORNERS = (3, 4, 4, 5, 7, 24)
"""Of a thing's outline; with 24 it is an ellipse."""


def scenes(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """Make up `count` images, uint8 (N, H, W, 3); the first ones do not depend on how many there are."""
    out = np.empty((count, height, width, 3), np.uint8)
    for i in range(count):
        x = _scene(np.random.default_rng([seed, i]), height, width)
        out[i] = np.clip(np.rint((x + 1) * 127.5), 0, 255)
    return out


def _scene(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One image (H, W, 3) around 0, the range from -1 to 1."""
    things = int(np.exp(rng.uniform(*np.log(THINGS))))
    places = _leaves(rng, 2 * height, 2 * width, things)
    colour = rng.standard_normal((things + 1, 3)) * [1.0, 1.2, 1.2] * rng.uniform(0.5, 1.1)
    colour = ((colour + rng.standard_normal(3) * [0.35, 0.6, 0.6]) @ COLOURS).astype(np.float32)
    x: np.ndarray = colour[places].reshape(height, 2, width, 2, 3).mean((1, 3))  # edges are smooth
    places = places[::2, ::2]
    rough = rng.gamma(1.2, 0.19, things + 1).astype(np.float32)[places]
    kind = rng.integers(len(SLOPES), size=things + 1)[places]
    for k, slope in enumerate(SLOPES):
        texture = _texture(rng, height, width, slope, 3) * MUTED @ COLOURS
        x += np.where(kind == k, rough, 0)[..., None] * texture
    x += np.float32(rng.uniform(0, 0.35)) * _texture(rng, height, width, 2.0, 1)  # light and shade
    x += rng.uniform(0, 0.04) * rng.standard_normal(x.shape, np.float32)
    return x


def _leaves(rng: np.random.Generator, height: int, width: int, things: int) -> np.ndarray:
    """Which thing is seen where, int (H, W), 0 where there is none; sizes fall with their cube."""
    from PIL import Image, ImageDraw  # noqa: PLC0415 (only made-up images need it)

    image = Image.new("I", (width, height))
    draw = ImageDraw.Draw(image)
    small, large = rng.uniform(0.02, 0.08) * max(height, width), 0.6 * max(height, width)
    radii = (small**-2 + (large**-2 - small**-2) * rng.random(things)) ** -0.5
    if rng.random() < 0.6:  # small things before large ones, which would hide them
        radii = np.sort(radii)[::-1]
    for i, radius in enumerate(radii):
        corners = int(rng.choice(CORNERS))
        angles = np.sort(rng.random(corners)) if corners < max(CORNERS) else np.arange(corners) / corners
        outline = radius * np.exp(2j * np.pi * angles)
        outline = (outline.real + 1j * rng.uniform(0.25, 1) * outline.imag) * np.exp(1j * rng.uniform(0, np.pi))
        outline += rng.uniform(-0.1, 1.1) * width + 1j * rng.uniform(-0.1, 1.1) * height
        draw.polygon(list(zip(outline.real.tolist(), outline.imag.tolist(), strict=True)), fill=i + 1)
    return np.asarray(image)


def _texture(rng: np.random.Generator, height: int, width: int, slope: float, channels: int) -> np.ndarray:
    """Noise (H, W, channels) of deviation 1 whose amplitude falls with frequency to the power of `slope`."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf  # the mean stays 0
    parts = rng.standard_normal((2, channels, *frequency.shape)) * frequency**-slope
    x = np.fft.irfft2(parts[0] + 1j * parts[1], s=(height, width))
    x /= np.maximum(x.std(axis=(1, 2), keepdims=True), 1e-12)
    return x.transpose(1, 2, 0).astype(np.float32)
