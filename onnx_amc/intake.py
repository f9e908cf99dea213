"""What a run takes: a model from wherever it is, and data for it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import onnx

from onnx_amc.delivery import class_count, input_specs, one_feed
from onnx_amc.errors import DataError, ModelError
from onnx_amc.graph.limits import WIDTH
from onnx_amc.graph.load import Model, Source, read, sized
from onnx_amc.listener import Listener
from onnx_amc.run import data as sources
from onnx_amc.run import feed, presets, shelf
from onnx_amc.run.madeup import USUAL

DataSource = sources.Source
ModelSource = Source

SYNTHETIC_SAMPLES = 256
"""Samples that are made up where there is no data."""

RAW = "raw"
"""Pixels from 0 to 255, for networks that normalise them themselves."""


def load_both(
    model: ModelSource, data: DataSource | None, preset: str | None, *, needed: bool = True,
    least: int = sources.MIN_SAMPLES,
) -> tuple[Model, sources.Dataset | None]:  # fmt: skip
    """Read a model and, where its inputs leave lengths open, the data first: they are as long as the first sample.

    Where none is `needed`, what lies beside the model may be unlike its inputs; `least` is how many samples it takes.
    """
    bare = read(model)
    specs, source = input_specs(bare.proto), data if data is not None else sidecar(model)
    if source is None or not any(None in spec.shape[1:] for spec in specs):
        return sized(bare, {}), None
    try:
        found = sources.load(source, specs, preset=preset, least=least)
    except DataError:
        if needed or data is not None:
            raise
        return sized(bare, {}), None
    return sized(bare, {name: array.shape for name, array in one_feed(bare, found).items()}), found


def sidecar(model: ModelSource) -> Path | None:
    """The data that lies beside a model's file."""
    return None if isinstance(model, onnx.ModelProto) else sources.sidecar(model)


def find_data(
    loaded: Model, model: ModelSource, data: DataSource | None, seed: int, listener: Listener, preset: str | None = None,
    known: sources.Dataset | None = None, *, needed: bool = True,
) -> sources.Dataset | None:  # fmt: skip
    """Return the user's data, the sidecar, or what is made up, with a remark of what that is worth; `known` if it is read.

    None where none is needed, and what lies beside the model does not suit it: it may be there for something else.
    """
    specs = input_specs(loaded.proto)
    if known is not None:
        return sources.load(known, specs, classes=class_count(loaded))
    source = data if data is not None else sidecar(model)
    if source is not None:
        try:
            return sources.load(source, specs, classes=class_count(loaded), preset=preset)
        except DataError as error:
            if needed or data is not None:
                raise
            listener.note(f"{source} is not made use of: {error.what}")
            return None
    made = sources.synthesise(specs, _affordable(loaded), seed, loaded.shapes, preset)
    if made.pixels is None:
        listener.note(
            "no data: calibration inputs are synthetic noise and the score is fidelity to the original. Expect a worse result "
            "than with a few hundred real inputs (--data)"
        )
        return made
    return _pictured(loaded, made, seed, listener, preset)


def _affordable(loaded: Model) -> int:
    """How many made-up samples there are: fewer where that many, with the outputs of two networks, would not fit."""
    names = [s.name for s in input_specs(loaded.proto) if s.shape] + 2 * [o.name for o in loaded.proto.graph.output]
    each = WIDTH * sum(math.prod(loaded.shapes.get(name, ())[1:]) for name in names)
    return max(sources.MIN_SAMPLES, min(SYNTHETIC_SAMPLES, shelf.MEMORY // max(each, 1)))


def _pictured(
    loaded: Model, made: sources.Dataset, seed: int, listener: Listener, preset: str | None
) -> sources.Dataset:
    """Made-up images as the network is best fed with them; a classifier sees its classes in them."""
    classes, pixels, kind, named = class_count(loaded), made.pixels, "made up", preset or USUAL[0]
    if pixels is not None and pixels.dtype.kind == "f" and classes is not None:
        if preset is None:
            channels, first, dtype = len(pixels.mean), pixels.first, pixels.dtype
            ways = {name: presets.normalise(name, channels, first=first, dtype=dtype) for name in USUAL}
            ways[RAW] = presets.raw(channels, first=first, dtype=dtype)
            named = feed.best_feed(loaded.original, made, ways, loaded.source)
            made = replace(made, pixels=ways[named])
        made, kind = _dreamt(loaded, made, classes, seed, listener)
    how = "pixels from 0 to 255" if named == RAW else f"normalised as --preset {named}"
    other = "" if preset else "; --preset names another way"
    listener.note(
        f"no data: {len(made)} calibration images are {kind} ({how}{other}), and the score is fidelity to the original on them. "
        "It says little of photographs: expect a clearly worse result than with a few hundred real inputs (--data), and check "
        "what is delivered before it is used"
    )
    return made


def _dreamt(
    loaded: Model, made: sources.Dataset, classes: int, seed: int, listener: Listener
) -> tuple[sources.Dataset, str]:
    """Images in which the network sees its classes, where torch can read it; and what they are called."""
    from onnx_amc.recover.dream import dreamt  # noqa: PLC0415  torch takes seconds to import

    listener.stage("make up images", len(made))
    try:
        return dreamt(loaded.proto, made, classes, seed, lambda done, _: listener.advance(done)), (
            "made up and drawn towards the network's classes"
        )
    except ModelError:
        return made, "made up"
