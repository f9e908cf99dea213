"""The one oracle: a network with channels masked, by the plan's JSON alone, equals the network with them cut.

Written from the documented plan format with onnx, numpy and onnxruntime alone; of the program it takes only what it judges: a
plan's JSON and a cut model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from onnx_amc.graph import cost
from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import load
from onnx_amc.prune.plan import Plan
from onnx_amc.prune.surgery import cut, finish

Feed = Mapping[str, np.ndarray]
Kept = Mapping[str, Sequence[int]]
LENGTH = 6
"""What a dimension of any length is, the batch apart."""


# ---- what must hold -----------------------------------------------------------------------------------------------


def difference(analysis: Analysis, kept: Kept, seed: int = 0) -> float:
    """Largest relative difference of the masked and the cut network; all else that a cut must keep is asserted."""
    original = analysis.model.original
    document, result = document_of(analysis, kept), delivered(analysis, kept)
    assert misread(original, document, result) == []
    return gap(masked(original, document), result, seed)


def document_of(analysis: Analysis, kept: Kept) -> dict[str, Any]:
    """The plan's JSON, written and read."""
    plan = Plan({name: tuple(sorted(channels)) for name, channels in kept.items()})
    document: dict[str, Any] = json.loads(json.dumps(plan.to_json(analysis)))
    return document


def delivered(analysis: Analysis, kept: Kept) -> onnx.ModelProto:
    """The cut model, checked for all that must not change."""
    original, result = analysis.model.original, finish(analysis, cut(analysis, kept))
    onnx.checker.check_model(result, full_check=True)
    assert changed(original, result) == []
    return result


def changed(original: onnx.ModelProto, result: onnx.ModelProto) -> list[str]:
    """What a cut must keep as it was, and did not."""
    fields = ("opset_import", "ir_version", "doc_string", "producer_name", "metadata_props")
    found = [f for f in fields if getattr(original, f) != getattr(result, f)]
    if given(original) != given(result):
        found.append("inputs")
    if list(original.graph.output) != list(result.graph.output):
        found.append("outputs")
    return found


def misread(original: onnx.ModelProto, document: Mapping[str, Any], result: onnx.ModelProto) -> list[str]:
    """Weights of an unfitted cut that are not the original's with exactly the indices removed that the plan's slices list."""
    entries = [s for group in document["groups"] for s in group["slices"]]
    listed = {s["tensor"] for s in entries}
    before, after = constants(original), constants(result)
    nodes = {(name, n.op_type): n for n in result.graph.node for name in n.output if name}
    found = [name for name in sorted(listed) if name not in before]
    for user, kind, slot, name in uses(original):
        node = nodes.get((user, kind))
        if name not in before or node is None or (before[name].dtype.kind != "f" and name not in listed):
            continue
        mine = [s for s in entries if s["tensor"] == name and s.get("node", user) == user]
        expected = without(before[name], mine)
        if not np.array_equal(expected, after.get(node.input[slot], np.zeros(0)), equal_nan=True):
            found.append(f"{name} of {user}")
    return found


def counts_of(analysis: Analysis, kept: Kept) -> np.ndarray:
    """Int (groups,): how many channels each group keeps."""
    return np.array([len(kept[g.name]) if g.name in kept else g.channels for g in analysis.groups], dtype=np.int64)


def mispriced(analysis: Analysis, kept: Kept, result: onnx.ModelProto) -> list[str]:
    """What of the plan's price on the original is not the cut model's price, or not what a count on its real shapes says."""
    counts = counts_of(analysis, kept)
    again = analyse(load(result))
    full = np.array([g.channels for g in again.groups], dtype=np.int64)
    macs = [cost.macs(analysis)(counts), cost.macs(again)(full), recounted(result, analysis.model.shapes)]
    params = [cost.params(analysis)(counts), parameters(result)]
    found = [f"macs {macs}"] if len(set(macs)) > 1 else []
    shared = bool(analysis.model.origin)
    return found + ([f"params {params}"] if params[0] < params[1] or (params[0] > params[1] and not shared) else [])


# ---- masking, from the plan's JSON alone --------------------------------------------------------------------------


def masked(original: onnx.ModelProto, document: Mapping[str, Any]) -> onnx.ModelProto:
    """Set each slice marked `mask` to zero, for the one user that it names where it names one."""
    result = onnx.ModelProto()
    result.CopyFrom(original)
    values = constants(original)
    copies: dict[tuple[str, str], np.ndarray] = {}
    for entry in (s for group in document["groups"] for s in group["slices"] if s["mask"]):
        key = (entry["tensor"], entry.get("node", ""))
        array = copies.setdefault(key, values[key[0]].copy())
        array[(slice(None),) * entry["axis"] + (entry["removed"],)] = 0
    for (name, user), array in copies.items():
        new = numpy_helper.from_array(array, f"{name}, masked for {user or 'all'}")
        result.graph.initializer.append(new)
        readers = [n for n in result.graph.node if name in n.input and (not user or user in n.output)]
        assert readers, f"{name} has no user {user}"
        for node in readers:
            node.input[:] = [new.name if i == name else i for i in node.input]
    return result


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Every initializer and every Constant node's value."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Constant" and node.attribute[0].name in {"value_float", "value_floats"}:
            found[node.output[0]] = np.array(onnx.helper.get_attribute_value(node.attribute[0]), np.float32)
    for sparse in model.graph.sparse_initializer:
        dense = np.zeros(list(sparse.dims), np.float32)
        dense.reshape(-1)[numpy_helper.to_array(sparse.indices)] = numpy_helper.to_array(sparse.values)
        found[sparse.values.name] = dense
    return found


def parameters(model: onnx.ModelProto) -> int:
    """Elements of the float initializers."""
    return sum(a.size for a in (numpy_helper.to_array(t) for t in model.graph.initializer) if a.dtype.kind == "f")


def uses(model: onnx.ModelProto) -> list[tuple[str, str, int, str]]:
    """Each input of each node: the node's first output, its operator, the slot, the tensor."""
    named = [(next(o for o in n.output if o), n) for n in model.graph.node]
    return [(user, n.op_type, i, name) for user, n in named for i, name in enumerate(n.input) if name]


def without(array: np.ndarray, slices: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The array with the removed indices of each slice gone."""
    gone: dict[int, set[int]] = {}
    for entry in slices:
        gone.setdefault(entry["axis"], set()).update(entry["removed"])
    for axis, indices in gone.items():
        array = np.delete(array, sorted(indices), axis)
    return array


# ---- running ------------------------------------------------------------------------------------------------------


def gap(a: onnx.ModelProto, b: onnx.ModelProto, seed: int = 0) -> float:
    """Largest |x - y| over all outputs and batches, relative to the largest |x| of each; infinity where only one is a number."""
    worst = 0.0
    many = [feed(a, batch, seed) for batch in ((1, 3) if any_batch(a) else (1,))]
    for left, right in zip(run(a, many), run(b, many), strict=True):
        for x, y in zip(left, right, strict=True):
            assert x.shape == y.shape
            assert x.size
            if not np.array_equal(np.isfinite(x), np.isfinite(y)):
                return np.inf
            one, other = (np.where(np.isfinite(v), v, 0).astype(np.float64) for v in (x, y))
            worst = max(worst, float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-12)))
    return worst


def run(model: onnx.ModelProto, feeds: Sequence[Feed], outputs: Sequence[str] | None = None) -> list[list[np.ndarray]]:
    """All outputs for each feed, in plain onnxruntime without optimisations of its own."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [list(session.run(outputs, dict(f))) for f in feeds]


def given(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller gives."""
    known = {t.name for t in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in known]


def any_batch(model: onnx.ModelProto) -> bool:
    """Whether the model takes batches of any size."""
    return any(not d.dim_value for i in given(model) for d in i.type.tensor_type.shape.dim)


def feed(model: onnx.ModelProto, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Noise for a batch: the first dimension, or the one called N."""
    rng, made = np.random.default_rng(seed), {}
    for info in given(model):
        dims = info.type.tensor_type.shape.dim
        free = [batch if i == 0 or d.dim_param == "N" else LENGTH for i, d in enumerate(dims)]
        made[info.name] = noise(rng, info, [d.dim_value or f for d, f in zip(dims, free, strict=True)])
    return made


def noise(rng: np.random.Generator, info: onnx.ValueInfoProto, shape: Sequence[int]) -> np.ndarray:
    """An array of an input's type."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    drawn = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 8, shape)
    return np.asarray(drawn).astype(dtype)


def recounted(model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]]) -> int:
    """Multiply-accumulates of one sample, counted on the shapes that onnxruntime makes; `sizes` of the inputs."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    present = {o.name for o in exposed.graph.output}
    names = list(dict.fromkeys(o for n in model.graph.node for o in n.output if o))
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in present)
    rng = np.random.default_rng(0)
    one = {i.name: noise(rng, i, sizes[i.name]) for i in given(model)}
    made = zip(names, run(exposed, [one], names)[0], strict=True)
    shapes = {n: v.shape for n, v in made if isinstance(v, np.ndarray)}  # a sequence has none
    shapes |= {n: v.shape for n, v in one.items()} | {n: v.shape for n, v in constants(model).items()}
    return sum(
        macs_of(n, [shapes.get(i, ()) for i in n.input], shapes.get(n.output[0], ()))
        for n in model.graph.node
        if n.output[0]
    )


def macs_of(node: onnx.NodeProto, inputs: Sequence[tuple[int, ...]], output: tuple[int, ...]) -> int:
    """Multiply-accumulates of a node: for each number of the output, the numbers that are summed."""
    op, flipped = node.op_type.removeprefix("Fused"), any(a.name == "transA" and a.i for a in node.attribute)
    if op in {"Conv", "ConvTranspose"}:
        whole = output if op == "Conv" else inputs[0]
        return int(np.prod(whole) * np.prod(inputs[1][1:]))
    return int(np.prod(output)) * inputs[0][-2 if flipped else -1] if op in {"Gemm", "MatMul"} else 0
