"""The self-check: the cut network must compute what the masked original computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_amc.errors import ModelError, SelfCheckError
from onnx_amc.graph import light
from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.load import FLOATS
from onnx_amc.graph.proto import answers, names_read
from onnx_amc.prune.plan import slices_json
from onnx_amc.prune.surgery import cut, finish, masked
from onnx_amc.run.session import open_session, run_session

TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest output in magnitude: float32 summed in another order."""

CHOICES = frozenset({"TopK", "ArgMax", "ArgMin", "NonMaxSuppression"})
"""Operators of which a last bit decides, where two candidates are about as good, what they give."""

Feed = Mapping[str, np.ndarray]


def difference(a: onnx.ModelProto, b: onnx.ModelProto, feed: Feed) -> float:
    """Return the largest |a - b| over all outputs, relative to the largest |a| of each; infinity where shapes or NaN differ."""
    pairs = _both(a, b, answers(a), feed).values()
    return max((apart(x, y) for x, y in pairs if isinstance(x, np.ndarray) and x.size), default=0.0)


def _both(a: onnx.ModelProto, b: onnx.ModelProto, names: Sequence[str], feed: Feed) -> dict[str, tuple[Any, Any]]:
    """The values of tensors in both models."""
    left, right = (
        run_session(open_session(model, where=called, once=True, extra=names), names, feed, where=called)
        for model, called in ((a, "masked original"), (b, "cut model"))
    )
    return dict(zip(names, zip(left, right, strict=True), strict=True))


def before_choices(a: onnx.ModelProto, b: onnx.ModelProto, feed: Feed) -> float:
    """As `difference`, of what the nodes that choose, and all behind them, read, and of the outputs that are not behind them.

    Infinity where they choose alike: then no near tie is to blame.
    """
    ahead, behind, chosen = set[str](), set[str](), set[str]()
    for node in b.graph.node:
        read = names_read(node)
        if node.op_type in CHOICES:
            chosen.add(node.output[-1])
        if node.op_type in CHOICES or read & behind:
            ahead |= read - behind
            behind.update(node.output)
    told = {*answers(b)}
    made = {o for n in a.graph.node for o in n.output} & {o for n in b.graph.node for o in n.output} - {""}
    pairs = _both(a, b, sorted(made & (ahead | chosen) | told - behind), feed)
    if all(np.array_equal(*pairs[n]) for n in chosen & made):
        return float("inf")
    arrays = {n: pair for n, pair in pairs.items() if isinstance(pair[0], np.ndarray)}
    gaps = [apart(x, y) for n, (x, y) in arrays.items() if n in told - behind or (n in ahead and x.shape == y.shape)]
    return max(gaps, default=0.0)


def apart(x: np.ndarray, y: np.ndarray) -> float:
    """Return the largest |x - y|, relative to the largest |x|; infinity where shapes, NaN or texts differ."""
    if x.dtype.hasobject:  # text
        return 0.0 if np.array_equal(x, y) else float("inf")
    finite = np.isfinite(x)
    if x.shape != y.shape or not np.array_equal(finite, np.isfinite(y)):
        return float("inf")
    scale = max(float(np.abs(x[finite].astype(np.float64)).max(initial=0.0)), 1e-12)
    return float(np.abs(x[finite].astype(np.float64) - y[finite].astype(np.float64)).max(initial=0.0)) / scale


def tolerance_of(model: onnx.ModelProto) -> float:
    """Largest accepted difference: `TOLERANCE`, or ten steps of the coarsest type in which the network computes."""
    halves = {onnx.TensorProto.FLOAT16: 2.0**-10, onnx.TensorProto.BFLOAT16: 2.0**-7}
    types = {t.data_type for t in model.graph.initializer} | {o.type.tensor_type.elem_type for o in model.graph.output}
    return max([TOLERANCE, *(10 * halves[kind] for kind in types & halves.keys())])


def self_check(analysis: Analysis, kept: Mapping[str, Sequence[int]], feed: Feed) -> float:
    """Cut without refit, hold it against the masked original, and return the relative difference.

    Raises:
        SelfCheckError: They differ by more than `TOLERANCE`; the message names the first group that does so alone.
        ModelError: They do because there is NaN or infinity in the original.

    """
    allowed = tolerance_of(analysis.model.original)
    found = gap(analysis, kept, feed, allowed) if kept else 0.0
    if found <= allowed:
        return found
    _examine(analysis, feed)
    guilty = next(
        (n for n, c in kept.items() if gap(analysis, {n: c}, feed, allowed) > allowed), "a combination of groups"
    )
    raise SelfCheckError(
        f"the cut model differs from the masked original by {found:.2g} (relative); group '{guilty}' is to blame",
        where=analysis.model.source,
        fix=f"nothing was written. Protect it with --keep '{guilty}' and please report the model's graph as a bug",
    )


def _examine(analysis: Analysis, feed: Feed) -> None:
    """Refuse an original that makes what is no number: infinity times the zero of a masked channel is not nothing."""
    odd = [
        n
        for n, t in analysis.model.weights.items()
        if t.data_type in FLOATS and not np.isfinite(analysis.model.value(n)).all()
    ]
    where, names = analysis.model.source, [o.name for o in analysis.model.original.graph.output]
    made = run_session(open_session(analysis.model.original, where=where), names, feed, where=where)
    bad = [
        n
        for n, v in zip(names, made, strict=True)
        if getattr(v, "dtype", np.dtype("O")).kind == "f" and not np.isfinite(v).all()
    ]
    if odd or bad:
        what = f"weight '{odd[0]}' holds" if odd else f"output '{bad[0]}' of the original, on the check's input, holds"
        raise ModelError(
            f"{what} NaN or infinity, so that masked and cut network cannot be compared",
            where=where,
            fix="mend the weights, or train the network again",
        )


def same(dense: onnx.ModelProto, stored: onnx.ModelProto, feed: Feed, where: str) -> float:
    """Hold a model against itself in another form, and return the relative difference.

    Raises:
        SelfCheckError: They differ by more than `TOLERANCE`.

    """
    light.check(stored)
    found = difference(dense, stored, feed)
    if found > tolerance_of(dense):
        raise SelfCheckError(
            f"the model with sparse weights differs from the same one with dense weights by {found:.2g} (relative)",
            where=where,
            fix="nothing was written; please report the model's graph as a bug",
        )
    return found


def gap(analysis: Analysis, kept: Mapping[str, Sequence[int]], feed: Feed, allowed: float = np.inf) -> float:
    """Relative difference of the masked original and the cut model; where it is above `allowed`, see `before_choices`."""
    slices = [s for g in analysis.groups if g.name in kept for s in slices_json(analysis, g, tuple(kept[g.name]))]
    result = finish(analysis, cut(analysis, kept))
    light.check(result)
    pair = unrounded(masked(analysis.model.original, slices)), unrounded(result)
    found = difference(*pair, feed)
    return found if found <= allowed else min(found, before_choices(*pair, feed))


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
