"""One table of toy networks, one row or more per operator rule, in ONNX's text form; the oracle runs over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper


@dataclass(frozen=True)
class Row:
    """A toy network and what is known of it.

    Args:
        name: Of the row.
        text: Inputs, outputs, weights and nodes; what is declared after the outputs is a weight.
        prunable: Channels that can be removed, summed over all groups.
        reason: Part of a reason that must be given for a group that stays.
        opset: Version of the operator set.
        weights: Values of some weights; the others are seeded noise.
        ir: IR version; at 3 the weights are inputs too.
        tolerance: Relative.

    """

    name: str
    text: str
    prunable: int
    reason: str = ""
    opset: int = 17
    weights: dict[str, Any] = field(default_factory=dict)
    ir: int = 8
    tolerance: float = 1e-4

    def model(self) -> onnx.ModelProto:
        """The network."""
        head = f'<ir_version: {self.ir}, opset_import: ["" : {self.opset}], doc_string: "toy", producer_name: "tests">'
        model = onnx.parser.parse_model(f"{head} toy {self.text}")
        rng = np.random.default_rng(0)
        for info in model.graph.value_info:
            kind = info.type.tensor_type
            shape = [d.dim_value for d in kind.shape.dim]
            value = self.weights.get(info.name)
            if value is None:
                value = rng.normal(size=shape) / np.sqrt(max(np.prod(shape[1:]), 1)) + 0.1
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype).reshape(shape), info.name))
            if self.ir < 4:
                model.graph.input.append(info)
        del model.graph.value_info[:]
        onnx.helper.set_model_props(model, {"author": "tests"})
        onnx.checker.check_model(model)
        return model


def image(name: str, body: str, prunable: int = 8, declared: str = "", channels: int = 8, **more: Any) -> Row:
    """Conv (3 -> 8), the body from h to r, Conv (channels -> 4): the body decides what can be cut."""
    extra = f", {declared}" if declared else ""
    text = f"""(float[N,3,6,6] x) => (float[N,4,P,Q] y) <float[8,3,3,3] w, float[8] b, float[4,{channels},1,1] v, float[4] c{extra}>
        {{ h = Conv <pads = [1,1,1,1]> (x, w, b) {body} y = Conv (r, v, c) }}"""
    return Row(name, text, prunable, **more)


def flat(name: str, body: str, prunable: int = 8, declared: str = "", inputs: int = 8, **more: Any) -> Row:
    """MatMul (6 -> 8) on (N, 5, 6), the body from h to r, MatMul (inputs -> 4)."""
    extra = f", {declared}" if declared else ""
    text = f"""(float[N,5,6] x) => (float[N,5,4] y) <float[6,8] w, float[8] b, float[{inputs},4] v{extra}>
        {{ g = MatMul (x, w) h = Add (g, b) {body} y = MatMul (r, v) }}"""
    return Row(name, text, prunable, **more)


UNARY = {
    "Abs": 17, "Asinh": 17, "Atan": 17, "Ceil": 17, "Celu": 17, "Cos": 17, "Elu": 17, "Erf": 17, "Exp": 17, "Floor": 17,
    "Gelu": 20, "HardSigmoid": 17, "HardSwish": 17, "Identity": 17, "LeakyRelu": 17, "Mish": 18, "Neg": 17, "Relu": 17,
    "Round": 17, "Selu": 17, "Shrink": 17, "Sigmoid": 17, "Sign": 17, "Sin": 17, "Softplus": 17, "Softsign": 17, "Tanh": 17,
    "ThresholdedRelu": 17, "Dropout": 17, "Sinh": 17, "Cosh": 17, "Clip": 10, "Acos": 17, "Asin": 17, "Acosh": 17, "Atanh": 17,
    "Tan": 17, "Sqrt": 17, "Log": 17, "Reciprocal": 17,
}  # fmt: skip
NARROW = {
    "Acos": "Tanh",
    "Asin": "Tanh",
    "Atanh": "Tanh",
    "Acosh": "Cosh",
    "Sqrt": "Exp",
    "Log": "Exp",
    "Reciprocal": "Exp",
}
"""What keeps the argument of an operator in its domain."""


def unary() -> Iterator[Row]:
    """Element-wise operators of one argument."""
    for op, opset in UNARY.items():
        before = f"q = {NARROW[op]} (h)" if op in NARROW else "q = Identity (h)"
        yield image(op, f"{before} r = {op} (q)", opset=opset)
    yield image("Cast", "q = Cast <to = 11> (h) r = Cast <to = 1> (q)")
    yield image("IsNaN, Not", "q = IsNaN (h) n = Not (q) r = Where (n, h, h)")
    yield image("IsInf", "q = IsInf (h) r = Where (q, h, h)")
    yield image("CastLike", "r = CastLike (h, w)")
    yield image(
        "Clip with bounds as constants",
        "r = Clip (h, lo, hi)",
        declared="float lo, float hi",
        weights={"lo": -1, "hi": 1},
    )


def elementwise() -> Iterator[Row]:
    """Element-wise operators of several arguments, with and without broadcasting."""
    for op in ("Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min"):
        yield image(f"{op} per channel", f"r = {op} (h, k)", declared="float[8,1,1] k", weights={"k": np.arange(1, 9)})
        yield image(f"{op} by a scalar", f"r = {op} (h, k)", declared="float[1] k", weights={"k": 3})
        yield image(
            f"{op} with itself", f"q = Relu (h) r = {op} (h, q)" if op != "Div" else "q = Exp (h) r = Div (h, q)"
        )
    yield image("Pow", "q = Exp (h) r = Pow (q, k)", declared="float[8,1,1] k")
    yield image("Mod", "r = Mod <fmod = 1> (h, k)", declared="float[8,1,1] k", weights={"k": np.arange(1, 9)})
    yield image("PRelu per channel", "r = PRelu (h, k)", declared="float[8,1,1] k")
    yield image("PRelu shared", "r = PRelu (h, k)", declared="float[1] k")
    yield image("Where", "q = Relu (h) m = Greater (h, q) r = Where (m, h, q)")
    for op in ("Equal", "Less", "LessOrEqual", "GreaterOrEqual"):
        yield image(op, f"q = Relu (h) m = {op} (h, q) r = Where (m, h, k)", declared="float[8,1,1] k")
    for op in ("And", "Or", "Xor"):
        yield image(op, f"q = Relu (h) m = Greater (h, q) n = Less (q, h) o = {op} (m, n) r = Where (o, h, q)")
    yield Row("Add of the input fixes", """(float[N,3,6,6] x) => (float[N,4,6,6] y) <float[3,3,1,1] w, float[3] b, float[4,3,1,1] v>
        { h = Conv (x, w, b) r = Add (h, x) y = Conv (r, v) }""", 0, "ties it to an axis that cannot be cut")  # fmt: skip
    yield image("a gate from a pool (squeeze-excite)", """g = GlobalAveragePool (h) s = Conv (g, d, e) t = Relu (s) u = Conv (t, f, i)
        a = Sigmoid (u) r = Mul (h, a)""", 12, "float[4,8,1,1] d, float[4] e, float[8,4,1,1] f, float[8] i")  # fmt: skip


def convolutions() -> Iterator[Row]:
    """Contractions of every kind."""
    yield image("Conv without bias", "r = Conv (h, k)", 16, "float[8,8,1,1] k")
    yield image("Conv, stride, dilation, pads", "r = Conv <strides = [2,1], dilations = [1,2], pads = [1,0,2,1]> (h, k, l)", 16,
                "float[8,8,3,2] k, float[8] l")  # fmt: skip
    yield image("Conv, auto_pad", 'r = Conv <auto_pad = "SAME_UPPER"> (h, k)', 16, "float[8,8,3,3] k")
    yield image("Conv in groups", "r = Conv <group = 2> (h, k, l)", 8, "float[8,4,3,3] k, float[8] l")
    yield image("Conv depthwise", "r = Conv <group = 8> (h, k, l)", 8, "float[8,1,3,3] k, float[8] l")
    yield image("Conv depthwise, two each", "r = Conv <group = 8> (h, k, l)", 8, "float[16,1,3,3] k, float[16] l", 16)
    yield image("ConvTranspose", "r = ConvTranspose <strides = [2,2], output_padding = [1,1]> (h, k, l)", 13,
                "float[8,5,3,3] k, float[5] l", 5)  # fmt: skip
    yield image("ConvTranspose depthwise", "r = ConvTranspose <group = 8> (h, k)", 8, "float[8,1,3,3] k")
    yield image("ConvTranspose in groups fixes", "r = ConvTranspose <group = 2> (h, k)", 0, "float[8,4,3,3] k",
                reason="is a grouped transposed convolution")  # fmt: skip
    yield Row("Conv with a weight from outside", """(float[N,3,6,6] x, float[4,8,1,1] z) => (float[N,4,6,6] y) <float[8,3,1,1] w, float[8] b>
        { h = Conv (x, w, b) r = Relu (h) y = Conv (r, z) }""", 0, "weight computed at run time")  # fmt: skip
    yield Row("Conv 1-d", """(float[N,3,9] x) => (float[N,4,7] y) <float[8,3,3] w, float[8] b, float[4,8,1] v>
        { h = Conv (x, w, b) r = Relu (h) y = Conv (r, v) }""", 8)  # fmt: skip
    yield Row("Conv 3-d", """(float[N,2,4,4,4] x) => (float[N,4,3,3,3] y) <float[8,2,2,2,2] w, float[8] b, float[4,8,1,1,1] v>
        { h = Conv (x, w, b) p = Relu (h) y = Conv (p, v) }""", 8)  # fmt: skip
    yield Row("Gemm", """(float[N,6] x) => (float[N,4] y) <float[8,6] w, float[8] b, float[8,9] u, float[1,9] d, float[9,4] v, float[1] c>
        { h = Gemm <transB = 1> (x, w, b) r = Relu (h) s = Gemm <alpha = 0.5, beta = 2.0> (r, u, d) y = Gemm (s, v, c) }""", 17)  # fmt: skip
    yield Row("Gemm transposed", """(float[6,2] x) => (float[2,4] y) <float[6,8] w, float[8] b, float[8,4] v>
        { h = Gemm <transA = 1> (x, w, b) r = Relu (h) y = Gemm (r, v) }""", 8)  # fmt: skip
    yield flat("MatMul", "r = Relu (h)")
    yield flat("MatMul, weight behind a Transpose", "t = Transpose (k) r = MatMul (h, t)", 17, "float[9,8] k", 9)
    yield flat("MatMul, weight behind a Reshape", "t = Reshape (k, s) r = MatMul (h, t)", 11, "float[2,4,9] k, int64[2] s", 9,
               weights={"s": [8, 9]})  # fmt: skip
    yield Row("MatMul, weight on the left", """(float[N,6,5] x) => (float[N,4,5] y) <float[8,6] w, float[8,1] b, float[4,8] v>
        { g = MatMul (w, x) h = Add (g, b) r = Relu (h) y = MatMul (v, r) }""", 8)  # fmt: skip
    yield flat("MatMul of two activations fixes", "q = Relu (h) t = Transpose <perm = [0,2,1]> (q) s = MatMul (h, t) r = MatMul (s, q)", 0,
               reason="contracts two activations")  # fmt: skip
    yield flat("a tied matrix is one", "q = MatMul (h, k) p = Relu (q) r = MatMul (p, k)", 8, "float[8,8] k")
    yield flat("an equal bias is stored once", "q = MatMul (h, k) p = Add (q, b) r = Relu (p)", 16, "float[8,8] k")
    yield flat("Einsum", 'q = Einsum <equation = "nti,io->nto"> (h, k) r = Relu (q)', 17, "float[8,9] k", 9)


def attention(split: str, opset: int = 17) -> Row:
    """Two heads of width four; q, k and v from one matrix."""
    text = f"""(float[N,5,6] x) => (float[N,5,6] y) <float[6,24] w, float[24] b, float[8,6] v, float[6] c, float scale,
        int64[5] five, int64[3] three, int64[1] zero, int64[3] ones, int64 i0, int64 i1, int64 i2>
        {{ g = MatMul (x, w) h = Add (g, b) f = Reshape (h, five) t = Transpose <perm = [2,0,3,1,4]> (f)
        {split}
        kt = Transpose <perm = [0,1,3,2]> (k) s = MatMul (q, kt) d = Mul (s, scale) a = Softmax <axis = -1> (d) o = MatMul (a, z)
        p = Transpose <perm = [0,2,1,3]> (o) r = Reshape (p, three) u = MatMul (r, v) y = Add (u, c) }}"""
    weights = {
        "five": [0, 0, 3, 2, 4],
        "three": [0, 0, 8],
        "zero": [0],
        "ones": [1, 1, 1],
        "scale": 0.5,
        "i0": 0,
        "i1": 1,
        "i2": 2,
    }
    return Row(f"attention by {'Split' if 'Split' in split else 'Gather'}", text, 2, opset=opset, weights=weights)


def normalisations() -> Iterator[Row]:
    """What takes statistics."""
    four = "float[8] s, float[8] o, float[8] m, float[8] e"
    yield image(
        "BatchNormalization",
        "q = BatchNormalization (h, s, o, m, e) r = Relu (q)",
        8,
        four,
        weights={"e": np.arange(1, 9)},
    )
    yield image("InstanceNormalization", "r = InstanceNormalization (h, s, o)", 8, "float[8] s, float[8] o")
    yield image("LRN fixes", "r = LRN <size = 3, alpha = 1.0> (h)", 0, reason="mixes its channels")
    yield image("GroupNormalization fixes", "r = GroupNormalization <num_groups = 2> (h, s, o)", 0, "float[8] s, float[8] o",
                reason="statistics over groups", opset=21)  # fmt: skip
    yield image("MeanVarianceNormalization over space", "r = MeanVarianceNormalization <axes = [2,3]> (h)")
    yield image(
        "LpNormalization over channels fixes", "r = LpNormalization <axis = 1> (h)", 0, reason="mixes its channels"
    )
    yield flat(
        "LayerNormalization fixes",
        "r = LayerNormalization (h, s, o)",
        0,
        "float[8] s, float[8] o",
        reason="statistics over it",
    )
    yield flat("feed-forward under a LayerNormalization", "n = LayerNormalization (h, s, o) q = MatMul (n, k) "
               "p = Relu (q) t = MatMul (p, l) r = Add (t, h)", 12, "float[8] s, float[8] o, float[8,12] k, float[12,8] l",
               reason="statistics over it")  # fmt: skip
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        yield flat(f"{op} over channels fixes", f"r = {op} <axis = 2> (h)", 0, reason="mixes its channels")
    yield flat("Softmax over positions", "r = Softmax <axis = 1> (h)")
    yield flat(
        "Softmax before opset 13 flattens", "r = Softmax <axis = 1> (h)", 0, reason="mixes its channels", opset=11
    )
    yield flat(
        "CumSum over channels fixes", "r = CumSum (h, a)", 0, "int64 a", reason="mixes its channels", weights={"a": 2}
    )
    yield flat("CumSum over positions", "r = CumSum (h, a)", 8, "int64 a", weights={"a": 1})


def rows() -> list[Row]:
    """The table."""
    from nets_shape import shapes

    split = (
        "q0, k0, z0 = Split <axis = 0> (t, ones) q = Squeeze (q0, zero) k = Squeeze (k0, zero) z = Squeeze (z0, zero)"
    )
    gathered = "q = Gather <axis = 0> (t, i0) k = Gather <axis = 0> (t, i1) z = Gather <axis = 0> (t, i2)"
    heads = [attention(split), attention(gathered)]
    return [*unary(), *elementwise(), *convolutions(), *heads, *normalisations(), *shapes()]
