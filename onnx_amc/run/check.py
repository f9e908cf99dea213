"""The self-check: the cut network must compute what the masked original computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnx_amc.errors import SelfCheckError
from onnx_amc.graph import light
from onnx_amc.graph.groups import Analysis
from onnx_amc.prune.plan import slices_json
from onnx_amc.prune.surgery import cut, finish, masked
from onnx_amc.run.session import open_session

TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest output in magnitude: float32 summed in another order."""

Feed = Mapping[str, np.ndarray]


def difference(a: onnx.ModelProto, b: onnx.ModelProto, feed: Feed) -> float:
    """Return the largest |a - b| over all outputs, relative to the largest |a| of each; infinity where shapes or NaN differ."""
    names = [o.name for o in a.graph.output]
    left = open_session(a, where="masked original", once=True).run(names, dict(feed))
    right = open_session(b, where="cut model", once=True).run(names, dict(feed))
    worst = 0.0
    for x, y in zip(left, right, strict=True):
        if not isinstance(x, np.ndarray) or x.size == 0:
            continue
        if x.shape != y.shape or not np.array_equal(np.isfinite(x), np.isfinite(y)):
            return float("inf")
        finite = np.isfinite(x)
        scale = max(float(np.abs(x[finite].astype(np.float64)).max(initial=0.0)), 1e-12)
        gap = np.abs(x[finite].astype(np.float64) - y[finite].astype(np.float64)).max(initial=0.0)
        worst = max(worst, float(gap) / scale)
    return worst


def self_check(analysis: Analysis, kept: Mapping[str, Sequence[int]], feed: Feed) -> float:
    """Cut without refit, hold it against the masked original, and return the relative difference.

    Raises:
        SelfCheckError: They differ by more than `TOLERANCE`; the message names the first group that does so alone.

    """
    found = gap(analysis, kept, feed) if kept else 0.0
    if found <= TOLERANCE:
        return found
    guilty = next((n for n, c in kept.items() if gap(analysis, {n: c}, feed) > TOLERANCE), "a combination of groups")
    raise SelfCheckError(
        f"the cut model differs from the masked original by {found:.2g} (relative); group '{guilty}' is to blame",
        where=analysis.model.source,
        fix=f"nothing was written. Protect it with --keep '{guilty}' and please report the model's graph as a bug",
    )


def same(dense: onnx.ModelProto, stored: onnx.ModelProto, feed: Feed, where: str) -> float:
    """Hold a model against itself in another form, and return the relative difference.

    Raises:
        SelfCheckError: They differ by more than `TOLERANCE`.

    """
    light.check(stored)
    found = difference(dense, stored, feed)
    if found > TOLERANCE:
        raise SelfCheckError(
            f"the model with sparse weights differs from the same one with dense weights by {found:.2g} (relative)",
            where=where,
            fix="nothing was written; please report the model's graph as a bug",
        )
    return found


def gap(analysis: Analysis, kept: Mapping[str, Sequence[int]], feed: Feed) -> float:
    """Relative difference of the masked original and the cut model; see `difference`."""
    slices = [s for g in analysis.groups if g.name in kept for s in slices_json(analysis, g, tuple(kept[g.name]))]
    result = finish(analysis, cut(analysis, kept))
    light.check(result)
    return difference(unrounded(masked(analysis.model.original, slices)), unrounded(result), feed)


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without quantisation of activations, in place: a last bit of difference would flip whole steps of it."""
    outputs = {o.name for o in model.graph.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for node in model.graph.node:
        readers = users.get(node.output[0], []) if node.op_type == "QuantizeLinear" else []
        if not readers or node.output[0] in outputs or any(r.op_type != "DequantizeLinear" for r in readers):
            continue
        for reader in readers:
            reader.op_type = "Identity"
            del reader.input[1:]
            del reader.attribute[:]
            reader.input[0] = node.input[0]
    return model
