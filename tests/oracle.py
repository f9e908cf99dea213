"""The one oracle: a network with channels masked, by the plan's JSON alone, equals the network with them cut."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.load import true_inputs
from onnx_amc.prune.plan import Plan
from onnx_amc.prune.surgery import cut, finish


def masked(original: onnx.ModelProto, document: Mapping[str, Any]) -> onnx.ModelProto:
    """Set each slice marked `mask` to zero, for the one user that it names where only some of a tensor's users are cut."""
    result = onnx.ModelProto()
    result.CopyFrom(original)
    holders = {t.name: t for t in result.graph.initializer}
    holders |= {n.output[0]: n.attribute[0].t for n in result.graph.node if n.op_type == "Constant"}
    for entry in (s for group in document["groups"] for s in group["slices"] if s["mask"]):
        users = [n for n in result.graph.node if entry["tensor"] in n.input]
        holder = holders[entry["tensor"]]
        if "node" in entry and len(users) > 1:
            user = next(n for n in users if n.output[0] == entry["node"])
            holder = result.graph.initializer.add()
            holder.CopyFrom(holders[entry["tensor"]])
            holder.name = f"{entry['tensor']} of {entry['node']}"
            user.input[list(user.input).index(entry["tensor"])] = holder.name
        array = numpy_helper.to_array(holder).copy()
        array[(slice(None),) * entry["axis"] + (entry["removed"],)] = 0
        holder.CopyFrom(numpy_helper.from_array(array, holder.name))
    return result


def run(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs, in plain onnxruntime without optimisations of its own."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


def feeds(model: onnx.ModelProto, seed: int) -> list[dict[str, np.ndarray]]:
    """Noise for batches of 1 and 3, where the model takes any."""
    found = []
    for batch in (1, 3):
        rng, feed = np.random.default_rng(seed), {}
        for info in true_inputs(model):
            kind = info.type.tensor_type
            shape = [d.dim_value or batch for d in kind.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            drawn = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 8, shape)
            feed[info.name] = drawn.astype(dtype)
        found.append(feed)
    return found


def difference(analysis: Analysis, kept: Mapping[str, Sequence[int]], seed: int = 0) -> float:
    """Largest relative difference of the masked and the cut network."""
    original = analysis.model.original
    plan = Plan({name: tuple(sorted(channels)) for name, channels in kept.items()})
    document = json.loads(json.dumps(plan.to_json(analysis)))
    return gap(masked(original, document), delivered(analysis, plan.kept), seed)


def delivered(analysis: Analysis, kept: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """The cut model, checked for all that must not change."""
    original, result = analysis.model.original, finish(analysis, cut(analysis, kept))
    onnx.checker.check_model(result, full_check=True)
    assert true_inputs(result) == true_inputs(original)
    assert list(result.graph.output) == list(original.graph.output)
    assert result.opset_import == original.opset_import
    assert (result.doc_string, result.ir_version) == (original.doc_string, original.ir_version)
    assert list(result.metadata_props) == list(original.metadata_props)
    return result


def gap(a: onnx.ModelProto, b: onnx.ModelProto, seed: int = 0) -> float:
    """Largest |x - y| over all outputs and batches, relative to the largest |x|."""
    worst = 0.0
    for feed in feeds(a, seed):
        for x, y in zip(run(a, feed), run(b, feed), strict=True):
            assert x.shape == y.shape
            assert np.array_equal(np.isnan(x), np.isnan(y))
            left, right = (np.nan_to_num(v.astype(np.float64)) for v in (x, y))
            worst = max(worst, float(np.abs(left - right).max() / max(np.abs(left).max(), 1e-12)))
    return worst
