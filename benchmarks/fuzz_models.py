"""Mutations of bytes and of models for `fuzz.py`: what a careless or hostile hand may do to a file."""

from __future__ import annotations

import contextlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from nets import rows  # noqa: E402

NUMBERS = (-(2**63), -(2**31), -7, -1, 0, 1, 2, 3, 7, 1000, 2**16, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
OPERATORS = ("Add", "Conv", "Concat", "ConstantOfShape", "Expand", "Gather", "Gemm", "If", "LSTM", "Loop", "MatMul", "NonZero",
             "Pad", "Range", "Reshape", "Resize", "Scan", "Shape", "Slice", "Softmax", "Split", "Tile",
             "Transpose", "Unsqueeze")  # fmt: skip
PLACES = ("../../secret", "/etc/passwd", "..", ".", "", "link", "a/../../secret", "\0", "w" * 5000, "pipe", "short")
Draw = np.random.Generator


def pick(rng: Draw, choices: Any) -> Any:
    """One of them."""
    found = list(choices)
    return found[int(rng.integers(len(found)))]


def chance(rng: Draw, share: float) -> bool:
    """True in this share of cases."""
    return bool(rng.random() < share)


# ---- bytes -----------------------------------------------------------------------------------------------------------


def flipped(content: bytes, rng: Draw) -> bytes:
    """Some bytes changed, a part left out, doubled or moved, or the end cut off."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 8))):
        if len(data) < 2:
            break
        start, end = sorted(rng.integers(0, len(data), 2).tolist())
        end = min(end, start + 64)
        match int(rng.integers(8)):
            case 0:
                del data[start:end]
            case 1:
                data[start:start] = data[start:end]
            case 2:
                del data[len(data) - int(rng.integers(len(data))) :]
            case _:
                data[start] = int(rng.integers(256))
    return bytes(data)


# ---- models ----------------------------------------------------------------------------------------------------------


@cache
def bases() -> list[onnx.ModelProto]:
    """What is mutated: the toy networks of the tests, and a real one."""
    return [row.model() for row in rows()] + [onnx.load(ROOT / "models" / "digits_mlp.onnx")]


def tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Initializers and constants."""
    inside = [a.t for n in model.graph.node for a in n.attribute if a.HasField("t")]
    return [*model.graph.initializer, *inside] or [model.graph.initializer.add()]


def dims(model: onnx.ModelProto, rng: Draw) -> None:
    """An axis of a tensor gets another length."""
    if chance(rng, 0.5):
        tensor = pick(rng, tensors(model))
        if len(tensor.dims):
            tensor.dims[int(rng.integers(len(tensor.dims)))] = pick(rng, NUMBERS)
    else:
        info = pick(rng, [*model.graph.input, *model.graph.output])
        if shape := info.type.tensor_type.shape.dim:
            pick(rng, shape).dim_value = pick(rng, NUMBERS)


def names(model: onnx.ModelProto, rng: Draw) -> None:
    """Something is called like something else."""
    known = [t.name for t in model.graph.initializer] + [i.name for i in [*model.graph.input, *model.graph.output]]
    known += ["", "<script>alert(1)</script>", "a\0b", "x" * 9000]
    thing = pick(rng, [*model.graph.initializer, *model.graph.input, *model.graph.output, *model.graph.node])
    thing.name = pick(rng, known)


def edges(model: onnx.ModelProto, rng: Draw) -> None:
    """A node reads or makes another tensor: cycles, twins, loose ends."""
    node, every = pick(rng, model.graph.node), [t for n in model.graph.node for t in [*n.input, *n.output]]
    ends = pick(rng, (node.input, node.output))
    if ends and chance(rng, 0.7):
        ends[int(rng.integers(len(ends)))] = pick(rng, [*every, ""])
    elif ends and chance(rng, 0.5):
        del ends[-1]
    else:
        ends.append(pick(rng, every))


def settings(model: onnx.ModelProto, rng: Draw) -> None:
    """An attribute has another value, another type, or is gone."""
    found = [(n, a) for n in model.graph.node for a in n.attribute]
    if not found:
        return
    node, attribute = pick(rng, found)
    match int(rng.integers(4)):
        case 0:
            node.attribute.remove(attribute)
        case 1:
            attribute.type = pick(rng, range(14))
        case 2 if attribute.ints:
            attribute.ints[int(rng.integers(len(attribute.ints)))] = pick(rng, NUMBERS)
        case _:
            attribute.i, attribute.f = pick(rng, NUMBERS), float(pick(rng, (np.nan, np.inf, -1.0, 1e38)))


def operator(model: onnx.ModelProto, rng: Draw) -> None:
    """A node does something else."""
    node = pick(rng, model.graph.node)
    node.op_type = pick(rng, [*OPERATORS, "NoSuch", ""])
    if chance(rng, 0.1):
        node.domain = pick(rng, ("com.microsoft", "nowhere", "ai.onnx.ml"))


def content(model: onnx.ModelProto, rng: Draw) -> None:
    """A tensor's values, type or length of data change."""
    tensor = pick(rng, tensors(model))
    match int(rng.integers(4)):
        case 0:
            tensor.data_type = int(rng.integers(-1, 26))
        case 1:
            tensor.raw_data = flipped(tensor.raw_data or b"ab", rng)
        case 2 if tensor.data_type in {TensorProto.INT64, TensorProto.FLOAT}:
            with contextlib.suppress(ValueError):
                values = numpy_helper.to_array(tensor).copy()
                odd = NUMBERS if tensor.data_type == TensorProto.INT64 else (np.nan, np.inf, 1e38, -1e38)
                if values.size:
                    values.flat[int(rng.integers(values.size))] = pick(rng, odd)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        case _:
            tensor.ClearField("raw_data")


def outside(model: onnx.ModelProto, rng: Draw) -> None:
    """A tensor lies in a file that it must not lie in."""
    tensor = pick(rng, tensors(model))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=pick(rng, PLACES))
    for key in ("offset", "length"):
        if chance(rng, 0.6):
            tensor.external_data.add(key=key, value=pick(rng, (*map(str, NUMBERS), "x", "")))


def versions(model: onnx.ModelProto, rng: Draw) -> None:
    """Other versions of the format and of the operators."""
    model.ir_version = pick(rng, (*range(14), 2**31))
    if model.opset_import:
        model.opset_import[0].version = pick(rng, (*range(28), *NUMBERS))


def more(model: onnx.ModelProto, rng: Draw) -> None:
    """Nodes that make much of little, a function that calls itself, a sparse tensor of any size, graphs in graphs."""
    graph, size = model.graph, [int(n) for n in rng.choice(NUMBERS, int(rng.integers(1, 4)))]
    match int(rng.integers(5)):
        case 0:
            graph.initializer.append(numpy_helper.from_array(np.array(size), "how many"))
            made = helper.make_node(
                pick(rng, ("ConstantOfShape", "RandomNormalLike", "NonZero")), ["how many"], ["much"]
            )
            last = helper.make_node("Shape" if chance(rng, 0.5) else "ReduceMax", ["much"], ["much more"])
            graph.node.insert(0, last)
            graph.node.insert(0, made)
            graph.output.append(helper.make_tensor_value_info("much more", pick(rng, (1, 7)), None))
        case 1:
            call = helper.make_node("again", ["a"], ["b"], domain="own")
            model.functions.append(
                helper.make_function("own", "again", ["a"], ["b"], [call], [helper.make_opsetid("own", 1)])
            )
            model.opset_import.append(helper.make_opsetid("own", 1))
            graph.node.insert(0, helper.make_node("again", [graph.input[0].name], ["never read"], domain="own"))
        case 2:
            values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
            index = numpy_helper.from_array(np.array([pick(rng, NUMBERS)]), "")
            graph.sparse_initializer.append(helper.make_sparse_tensor(values, index, size))
        case 3:
            inner = onnx.GraphProto()
            inner.CopyFrom(graph)
            for _ in range(int(rng.integers(1, 40))):
                outer = onnx.GraphProto(name="outer")
                outer.node.append(
                    helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner.__class__())
                )
                inner = outer
            graph.node.append(helper.make_node("Loop", ["", "", graph.input[0].name], ["w"], body=inner))
        case _:
            node = pick(rng, graph.node)
            graph.node.extend([node] * int(rng.integers(1, 20)))


CHANGES = (dims, names, edges, settings, operator, content, outside, versions, more)


def mutated(rng: Draw) -> bytes:
    """A model that has changed somewhere."""
    model = onnx.ModelProto()
    model.CopyFrom(pick(rng, bases()))
    if chance(rng, 0.3):
        return flipped(model.SerializeToString(), rng)
    for _ in range(1 if chance(rng, 0.6) else int(rng.integers(2, 6))):
        with contextlib.suppress(Exception):  # a change upon a change may not be possible
            pick(rng, CHANGES)(model, rng)
    return bytes(model.SerializeToString())
