"""How images of bytes become what a network is fed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_amc.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

SCALE = 1 / 255


@dataclass(frozen=True, eq=False)
class Pixels:
    """How uint8 images become what the network is fed: (pixel * scale - mean) / std, in its layout and type.

    Args:
        scale: Factor of every pixel.
        mean: float64 (C,), after the scaling.
        std: float64 (C,), positive.
        first: Whether channels come before height and width.
        dtype: What the network takes; an integer type is fed the pixels themselves.

    """

    scale: float
    mean: np.ndarray
    std: np.ndarray
    first: bool
    dtype: np.dtype

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Feed uint8 (B,H,W,C): a new, contiguous (B,C,H,W), or (B,H,W,C) where `first` is false."""
        if self.first:
            x = x.transpose(0, 3, 1, 2)
        if self.dtype.kind != "f":
            return np.array(x, self.dtype, order="C")
        wide = np.float64 if self.dtype == np.float64 else np.float32
        out = np.multiply(x, wide(self.scale), dtype=wide, order="C")
        out -= self._per_channel(self.mean, out.dtype)
        out /= self._per_channel(self.std, out.dtype)
        fed: np.ndarray = out.astype(self.dtype, copy=False)
        return fed

    def fed(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what (N,H,W,C) becomes."""
        n, h, w, c = shape
        return (n, c, h, w) if self.first else shape

    def _per_channel(self, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
        value = value.astype(dtype)
        return value[:, None, None] if self.first else value


def pixels(
    given: Mapping[str, Any], channels: int, *, first: bool, dtype: np.dtype, where: str, scale: float = SCALE
) -> Pixels:
    """Make the normalisation from `mean` and `std`, one number or one per channel; 0 and 1 where not given.

    Raises:
        DataError: No finite numbers, of another count than there are channels, a std that is not positive, or any of
            them for a network that takes integers; an integer type that cannot hold 0 to 255.

    """
    if dtype.kind != "f":
        _check_raw(given, dtype, where)
    values = {}
    for name, default in (("mean", 0.0), ("std", 1.0)):
        raw = given.get(name, default)
        try:
            value = np.asarray(raw, np.float64).ravel()
        except (TypeError, ValueError):
            value = np.array([np.nan])
        if value.size not in {1, channels}:
            raise DataError(
                what=f"'{name}' has {value.size} values, the images have {channels} channels",
                where=where,
                fix=f"give {name} one value per channel (images are N,H,W,C: channels come last)",
            )
        if not np.isfinite(value).all() or (name == "std" and (value <= 0).any()):
            raise DataError(
                what=f"'{name}' is {raw}",
                where=where,
                fix=f"give {name} as {'positive' if name == 'std' else 'finite'} numbers, one per channel",
            )
        values[name] = np.broadcast_to(value, (channels,))
    return Pixels(scale, values["mean"], values["std"], first, dtype)


def _check_raw(given: Mapping[str, Any], dtype: np.dtype, where: str) -> None:
    """Refuse what a network of integer input cannot be fed."""
    if spare := sorted({"mean", "std", "scale"} & given.keys()):
        raise DataError(
            what=f"{', '.join(spare)} given, but the model takes {dtype} pixels as they are",
            where=where,
            fix=f"remove {', '.join(spare)}, or use a model of float input",
        )
    if dtype.kind not in "iu" or not np.can_cast(np.uint8, dtype):
        raise DataError(
            what=f"images are uint8, the model's input takes {dtype}",
            where=where,
            fix=f"give an .npz with {dtype} arrays named like the model's inputs",
        )


def channels_first(shape: tuple[int | None, ...], channels: Collection[int]) -> bool:
    """Tell the layout of a model's image input from its `shape`: N,C,H,W unless only the last axis can be channels."""
    return not (shape[3] in channels and shape[1] not in channels)
