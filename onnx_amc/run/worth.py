"""What a layer's error is worth at the network's output, measured by a little noise in its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from onnx_amc.fit.solve import error
from onnx_amc.graph.groups import Analysis
from onnx_amc.prune.layers import Layer
from onnx_amc.prune.refit import Refitter, Values, move, write
from onnx_amc.prune.surgery import cut

NOISE = 0.05
"""Deviation of the noise, relative to the weights': large against rounding, small against the signal."""

LEAST = 1e-3
"""No reader counts for less than this share of the mean one: noise finds no error behind a layer that hardly matters."""


def sharing(analysis: Analysis, layers: Sequence[Layer]) -> list[Layer]:
    """The layers that read a group which another layer reads too; the others' errors need no weight."""
    readers: dict[int, list[Layer]] = {}
    for layer in layers:
        for group in analysis.groups_at(layer.inputs):
            readers.setdefault(group, []).append(layer)
    named = {layer.node for found in readers.values() if len(found) > 1 for layer in found}
    return [layer for layer in layers if layer.node in named]


def worths(
    analysis: Analysis, fitter: Refitter, loss: Callable[[onnx.ModelProto], float], seed: int
) -> dict[str, float]:
    """Return the loss at the output per unit of relative squared error of a layer, by node, for layers that share a group.

    Args:
        analysis: Of the original model.
        fitter: Knows weights and moments.
        loss: Of a network with other weights, relative to the original.
        seed: Of the noise.

    """
    layers = [layer for layer in sharing(analysis, fitter.layers) if layer.node in fitter.moments]
    found: dict[str, float] = {}
    rng = np.random.default_rng(seed)
    for layer in layers:
        old, moments = fitter.weights[layer.node], fitter.moments[layer.node]
        new = old + NOISE * old.std() * rng.standard_normal(old.shape)
        values: Values = {}
        biases: Values = {}
        write(analysis, values, layer.weight, new)
        flat = (old.shape[1], -1)
        pairs = [(old[g].reshape(flat), new[g].reshape(flat)) for g in range(len(old))]
        if layer.affine:  # the bias takes the noise's mean, as it does in every refit
            shift = np.concatenate([(w - v) @ moments.mean(g) for g, (w, v) in enumerate(pairs)])
            if layer.bias is not None:
                move(analysis, values, layer, shift)
            else:
                biases[layer.node] = shift
        gaps = [error(fitter.matrix(layer, g), w, v) for g, (w, v) in enumerate(pairs)]
        found[layer.node] = loss(cut(analysis, {}, values, biases)) / max(float(np.mean(gaps)), 1e-300)
    floor = LEAST * float(np.mean(list(found.values()))) if found else 0.0
    return {node: max(value, floor) for node, value in found.items()}
