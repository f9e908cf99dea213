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
        text: Inputs, outputs, weights and nodes; what is declared after the outputs is a weight. Dimension N is the batch.
        prunable: Channels that can be removed, summed over all groups.
        reason: Part of a reason that must be given for a group that stays.
        opset: Version of the operator set.
        weights: Values of some weights; the others are seeded noise.
        ir: IR version; at 3 the weights are inputs too.
        tolerance: Relative.
        domains: Other operator sets, as in ONNX's text form.

    """

    name: str
    text: str
    prunable: int
    reason: str = ""
    opset: int = 17
    weights: dict[str, Any] = field(default_factory=dict)
    ir: int = 8
    tolerance: float = 1e-4
    domains: str = ""

    def model(self) -> onnx.ModelProto:
        """The network."""
        opsets = f'"" : {self.opset}{self.domains}'
        head = f'<ir_version: {self.ir}, opset_import: [{opsets}], doc_string: "toy", producer_name: "tests">'
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


# One row of the table is one statement, however long.
# fmt: off

UNARY = {
    "Abs": 17, "Asinh": 17, "Atan": 17, "Ceil": 17, "Celu": 17, "Cos": 17, "Elu": 17, "Erf": 17, "Exp": 17, "Floor": 17,
    "Gelu": 20, "HardSigmoid": 17, "HardSwish": 17, "Identity": 17, "LeakyRelu": 17, "Mish": 18, "Neg": 17, "Relu": 17,
    "Round": 17, "Selu": 17, "Shrink": 17, "Sigmoid": 17, "Sign": 17, "Sin": 17, "Softplus": 17, "Softsign": 17, "Tanh": 17,
    "ThresholdedRelu": 17, "Dropout": 17, "Sinh": 17, "Cosh": 17, "Clip": 10, "Acos": 17, "Asin": 17, "Acosh": 17, "Atanh": 17,
    "Tan": 17, "Sqrt": 17, "Log": 17, "Reciprocal": 17,
}
BEFORE = {"Acos": "Tanh", "Asin": "Tanh", "Atanh": "Tanh", "Acosh": "Cosh", "Sqrt": "Exp", "Log": "Exp", "Reciprocal": "Exp",
          "ThresholdedRelu": "Exp", "Shrink": "Exp"}
"""What keeps the argument of an operator where it is defined, or where it is not nothing."""


def unary() -> Iterator[Row]:
    """Element-wise operators of one argument."""
    for op, opset in UNARY.items():
        yield image(op, f"q = {BEFORE.get(op, 'Identity')} (h) r = {op} (q)", opset=opset)
    yield image("Swish", "r = Swish <alpha = 2.0> (h)", opset=24, ir=11)
    yield image("Cast", "q = Cast <to = 11> (h) r = Cast <to = 1> (q)")
    yield image("IsNaN, Not", "q = IsNaN (h) n = Not (q) r = Where (n, h, h)")
    yield image("IsInf", "q = IsInf (h) r = Where (q, h, h)")
    yield image("CastLike", "r = CastLike (h, w)")
    yield image("BitwiseNot", "a = Mul (h, k) q = Cast <to = 6> (a) p = BitwiseNot (q) r = Cast <to = 1> (p)", 8, "float k",
                weights={"k": 100}, opset=18)
    yield image("Clip with bounds as constants", "r = Clip (h, lo, hi)", 8, "float lo, float hi", weights={"lo": -1, "hi": 1})
    yield image("Dropout with its mask", "q, m = Dropout (h) r = Where (m, q, h)")


def elementwise() -> Iterator[Row]:
    """Element-wise operators of several arguments, with and without broadcasting."""
    per, rising, spread = "float[8,1,1] k", {"k": np.arange(1, 9)}, {"k": np.linspace(-1, 1, 8)}
    for op in ("Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min"):
        yield image(f"{op} per channel", f"r = {op} (h, k)", 8, per, weights=spread)
        yield image(f"{op} by a scalar", f"r = {op} (h, k)", 8, "float[1] k", weights={"k": 0.1})
        yield image(f"{op} with itself", f"q = Relu (h) r = {op} (h, q)" if op != "Div" else "q = Exp (h) r = Div (h, q)")
    yield image("Sub from a constant", "r = Sub (k, h)", 8, per)
    yield image("Div of a constant", "q = Exp (h) r = Div (k, q)", 8, per)
    yield image("Add along space", "r = Add (h, k)", 8, "float[6] k")
    yield image("Mul by a constant of full rank", "r = Mul (h, k)", 8, "float[1,8,6,6] k")
    yield flat("Add of positions", "r = Add (h, k)", 8, "float[5,8] k")
    yield image("Add of whole numbers fixes", "q = Cast <to = 7> (h) p = Add (q, k) r = Cast <to = 1> (p)", 0, "int64[8,1,1] k",
                weights=rising, reason="ties it to an axis that cannot be cut")
    yield image("Pow", "q = Exp (h) r = Pow (q, k)", 8, per)
    yield image("Mod", "r = Mod <fmod = 1> (h, k)", 8, per, weights=rising)
    yield image("PRelu per channel", "r = PRelu (h, k)", 8, per)
    yield image("PRelu shared", "r = PRelu (h, k)", 8, "float[1] k")
    yield image("Where", "q = Relu (h) m = Greater (h, q) r = Where (m, h, q)")
    yield image("Where by a mask of space", "r = Where (m, h, k)", 8, "bool[6,6] m, float[8,1,1] k", weights={"m": np.eye(6)})
    for op in ("Equal", "Less", "LessOrEqual", "GreaterOrEqual"):
        yield image(op, f"q = Relu (h) m = {op} (h, q) r = Where (m, h, k)", 8, per)
    for op in ("And", "Or", "Xor"):
        yield image(op, f"q = Relu (h) m = Greater (h, q) n = Less (q, h) o = {op} (m, n) r = Where (o, h, q)")
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        yield image(op, f"a = Mul (h, k) p = Cast <to = 6> (a) d = Mul (a, h) q = Cast <to = 6> (d) s = {op} (p, q) r = Cast <to = 1> (s)",
                    8, "float k", weights={"k": 100}, opset=18)
    yield image("BitShift", 'a = Exp (h) q = Cast <to = 12> (a) p = BitShift <direction = "LEFT"> (q, q) r = Cast <to = 1> (p)')
    yield Row("Add of the input fixes", """(float[N,3,6,6] x) => (float[N,4,6,6] y) <float[3,3,1,1] w, float[3] b, float[4,3,1,1] v>
        { h = Conv (x, w, b) r = Add (h, x) y = Conv (r, v) }""", 0, "ties it to an axis that cannot be cut")
    yield image("a gate from a pool (squeeze-excite)", """g = GlobalAveragePool (h) s = Conv (g, d, e) t = Relu (s) u = Conv (t, f, i)
        a = Sigmoid (u) r = Mul (h, a)""", 12, "float[4,8,1,1] d, float[4] e, float[8,4,1,1] f, float[8] i")


def convolutions() -> Iterator[Row]:
    """Convolutions of every kind."""
    yield image("Conv without bias", "r = Conv (h, k)", 16, "float[8,8,1,1] k")
    yield image("Conv, stride, dilation, pads", "r = Conv <strides = [2,1], dilations = [1,2], pads = [1,0,2,1]> (h, k, l)", 16,
                "float[8,8,3,2] k, float[8] l")
    for pad in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        yield image(f"Conv, auto_pad {pad}", f'r = Conv <auto_pad = "{pad}", strides = [2,2]> (h, k)', 16, "float[8,8,3,3] k")
    yield image("Conv in groups", "r = Conv <group = 2> (h, k, l)", 8, "float[8,4,3,3] k, float[8] l")
    yield image("Conv in many groups of few", "q = Conv <group = 4> (h, k, l) r = Relu (q)", 4, "float[12,2,3,3] k, float[12] l", 12)
    yield image("Conv in groups, twice", "q = Conv <group = 2> (h, k, l) r = Conv <group = 4> (q, m)", 6,
                "float[12,4,3,3] k, float[12] l, float[8,3,1,1] m")
    yield image("Conv depthwise", "r = Conv <group = 8> (h, k, l)", 8, "float[8,1,3,3] k, float[8] l")
    yield image("Conv depthwise, two each", "r = Conv <group = 8> (h, k, l)", 8, "float[16,1,3,3] k, float[16] l", 16)
    yield image("ConvTranspose", "r = ConvTranspose <strides = [2,2], output_padding = [1,1]> (h, k, l)", 13,
                "float[8,5,3,3] k, float[5] l", 5)
    yield image("ConvTranspose without bias", 'r = ConvTranspose <auto_pad = "SAME_UPPER", dilations = [2,1]> (h, k)', 13,
                "float[8,5,3,2] k", 5)
    yield image("ConvTranspose depthwise", "r = ConvTranspose <group = 8> (h, k, l)", 8, "float[8,1,3,3] k, float[8] l")
    yield image("ConvTranspose depthwise, two each", "r = ConvTranspose <group = 8> (h, k, l)", 8, "float[8,2,3,3] k, float[16] l", 16)
    yield image("ConvTranspose in groups", "r = ConvTranspose <group = 2> (h, k)", 2, "float[8,4,3,3] k")
    yield Row("Conv with a weight from outside", """(float[N,3,6,6] x, float[4,8,1,1] z) => (float[N,4,6,6] y) <float[8,3,1,1] w, float[8] b>
        { h = Conv (x, w, b) r = Relu (h) y = Conv (r, z) }""", 0, "weight computed at run time")
    yield Row("Conv 1-d", """(float[N,3,9] x) => (float[N,4,7] y) <float[8,3,3] w, float[8] b, float[4,8,1] v>
        { h = Conv (x, w, b) r = Relu (h) y = Conv (r, v) }""", 8)
    yield Row("Conv 3-d", """(float[N,2,4,4,4] x) => (float[N,4,3,3,3] y) <float[8,2,2,2,2] w, float[8] b, float[4,8,1,1,1] v>
        { h = Conv (x, w, b) p = Relu (h) y = Conv (p, v) }""", 8)
    yield image("a blur of each channel by itself, among the samples", "a = Reshape (h, s) q = Conv <pads = [1,1,1,1]> (a, k) r = Reshape (q, t)", 8,
                "int64[4] s, int64[4] t, float[1,1,3,3] k", weights={"s": [-1, 1, 6, 6], "t": [-1, 8, 6, 6]})
    yield image("one kernel that spreads each channel, among the samples", """a = Reshape (h, s) q = ConvTranspose <strides = [2,2]> (a, k)
                r = Reshape (q, t)""", 8, "int64[4] s, int64[4] t, float[1,1,2,2] k", weights={"s": [-1, 1, 6, 6], "t": [-1, 8, 12, 12]})
    yield image("a tied kernel is one", "p = Conv (h, k) q = Relu (p) r = Conv (q, k)", 8, "float[8,8,1,1] k")


def products() -> Iterator[Row]:
    """Gemm, MatMul, Einsum, and weights that are computed from weights."""
    yield Row("Gemm", """(float[N,6] x) => (float[N,4] y) <float[8,6] w, float[8] b, float[8,9] u, float[1,9] d, float[9,4] v, float[1] c>
        { h = Gemm <transB = 1> (x, w, b) r = Relu (h) s = Gemm <alpha = 0.5, beta = 2.0> (r, u, d) y = Gemm (s, v, c) }""", 17)
    yield Row("Gemm with offsets of every shape", """(float[N,6] x) => (float[N,4] y)
        <float[6,8] w, float b, float[8,9] u, float[1,1] d, float[9,9] k, float[9,4] v>
        { h = Gemm (x, w, b) p = Gemm <beta = 0.3> (h, u, d) q = Gemm (p, k, p) y = Gemm (q, v) }""", 17)
    yield Row("Gemm, an offset per sample", """(float[3,6] x) => (float[3,4] y) <float[6,8] w, float[3,8] b, float[8,4] v, float[3,1] c>
        { h = Gemm (x, w, b) r = Relu (h) y = Gemm (r, v, c) }""", 8)
    yield Row("Gemm transposed", """(float[6,2] x) => (float[2,4] y) <float[6,8] w, float[8] b, float[8,4] v>
        { h = Gemm <transA = 1> (x, w, b) r = Relu (h) y = Gemm (r, v) }""", 8)
    yield Row("Gemm, weight on the left", """(float[6,2] x) => (float[4,2] y) <float[6,8] w, float[8,1] b, float[4,8] v>
        { h = Gemm <transA = 1> (w, x, b) r = Relu (h) y = Gemm (v, r) }""", 8)
    yield flat("MatMul", "r = Relu (h)")
    yield Row("MatMul of matrices", """(float[N,6] x) => (float[N,4] y) <float[6,8] w, float[8,4] v>
        { h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }""", 8)
    yield flat("MatMul, weight behind a Transpose", "t = Transpose (k) r = MatMul (h, t)", 17, "float[9,8] k", 9)
    yield flat("MatMul, weight behind a Reshape", "t = Reshape (k, s) r = MatMul (h, t)", 11, "float[2,4,9] k, int64[2] s", 9,
               weights={"s": [8, 9]})
    yield Row("MatMul, weight on the left", """(float[N,6,5] x) => (float[N,4,5] y) <float[8,6] w, float[8,1] b, float[4,8] v>
        { g = MatMul (w, x) h = Add (g, b) r = Relu (h) y = MatMul (v, r) }""", 8)
    yield flat("MatMul by a vector", "q = MatMul (h, k) r = Unsqueeze (q, a)", 8, "float[8] k, int64[1] a", 1, weights={"a": [2]})
    yield flat("MatMul by a matrix per head", """f = Reshape (h, s) t = Transpose <perm = [0,2,1,3]> (f) m = MatMul (t, k)
        p = Transpose <perm = [0,2,1,3]> (m) r = Reshape (p, o)""", 4, "int64[4] s, int64[3] o, float[4,2,3] k", 12,
        weights={"s": [0, 0, 4, 2], "o": [0, 0, 12]})
    yield flat("MatMul of two activations", "q = Relu (h) t = Transpose <perm = [0,2,1]> (q) s = MatMul (h, t) r = MatMul (s, q)", 8)
    yield flat("MatMul of two activations that are never zero fixes", """q = Exp (h) p = Sigmoid (h) t = Transpose <perm = [0,2,1]> (q)
        s = MatMul (p, t) r = MatMul (s, h)""", 0, reason="neither of which is zero where its weights are")
    yield flat("MatMul of two activations, one of them never zero", """q = Exp (h) t = Transpose <perm = [0,2,1]> (q) s = MatMul (h, t)
        p = Softmax (s) r = MatMul (p, h)""", 8)
    yield flat("a tied matrix is one", "q = MatMul (h, k) p = Relu (q) r = MatMul (p, k)", 8, "float[8,8] k")
    yield flat("a tied matrix, back by its transpose", "q = MatMul (h, k) p = Relu (q) t = Transpose (k) r = MatMul (p, t)", 17,
               "float[8,9] k")
    yield flat("an equal bias is stored once", "q = MatMul (h, k) p = Add (q, b) r = Relu (p)", 16, "float[8,8] k")
    yield flat("an equal fill is stored once", "q = MatMul (h, k) p = Relu (q) r = MatMul (p, k)", 24, "float[8,8] k",
               weights={"k": np.full((8, 8), 0.1)})
    yield flat("a vector that two read is stored once", "q = MatMul (h, k) p = Relu (h) s = MatMul (p, k) t = Add (q, s) r = Unsqueeze (t, a)",
               8, "float[8] k, int64[1] a", 1, weights={"a": [2]})
    yield flat("Einsum", 'q = Einsum <equation = "nti,io->nto"> (h, k) r = Relu (q)', 17, "float[8,9] k", 9)
    yield flat("Einsum of one operand", 'q = Einsum <equation = "nti->nit"> (h) r = Einsum <equation = "nit->nti"> (q)')


def computed() -> Iterator[Row]:
    """Weights that are computed from weights; a mask must still be nothing where it is read."""
    square, two = "float[8,8] k", "float[8,8] k, float[8,8] l"
    yield flat("a weight scaled", "q = Mul (k, s) r = MatMul (h, q)", 16, square + ", float[1,8] s")
    yield flat("a weight cast", "q = Cast <to = 11> (k) p = Cast <to = 1> (q) r = MatMul (h, p)", 16, square)
    yield flat("a product of weights", "q = Mul (k, l) r = MatMul (h, q)", 16, two)
    yield flat("a slice of a weight", "q = Slice (k, s, e) r = MatMul (h, q)", 16, "float[10,8] k, int64[1] s, int64[1] e",
               weights={"s": [1], "e": [9]})
    yield flat("a split weight", "p, q = Split <axis = 1> (k) s = MatMul (h, p) t = MatMul (h, q) u = Relu (s) r = Add (t, u)", 16,
               "float[8,16] k")
    yield flat("rows of two weights", "q = Concat <axis = 0> (k, l) r = MatMul (h, q)", 16, "float[3,8] k, float[5,8] l")
    yield flat("columns of two weights", "q = Concat <axis = 1> (k, l) r = MatMul (h, q)", 16, "float[8,3] k, float[8,5] l")
    yield flat("a sum of weights", "q = Add (k, l) r = MatMul (h, q)", 16, two)
    yield flat("a low-rank change of a weight", "q = MatMul (k, l) p = Add (m, q) r = MatMul (h, p)", 16,
               "float[8,2] k, float[2,8] l, float[8,8] m", reason="multiplies two weights")
    yield flat("a function of a weight", "q = Exp (k) r = MatMul (h, q)", 8, square)
    yield flat("a weight and a number", "q = Add (k, o) r = MatMul (h, q)", 8, square + ", float o")
    yield flat("a softmax of a weight", "q = Softmax <axis = 1> (k) r = MatMul (h, q)", 0, square)
    yield flat("a padded weight", "q = Pad (k, p) r = MatMul (h, q)", 16, "float[6,8] k, int64[4] p", weights={"p": [1, 0, 1, 0]})


def attention() -> Iterator[Row]:
    """Two heads of width four; q, k and v from one matrix."""
    split = "q0, k0, z0 = Split <axis = 0> (t, ones) q = Squeeze (q0, zero) k = Squeeze (k0, zero) z = Squeeze (z0, zero)"
    gather = "q = Gather <axis = 0> (t, i0) k = Gather <axis = 0> (t, i1) z = Gather <axis = 0> (t, i2)"
    for name, length, way in (("Split", "5", split), ("Gather", "5", gather), ("Gather, any length", "T", gather)):
        yield Row(f"attention by {name}", f"""(float[N,{length},6] x) => (float[N,{length},6] y) <float[6,24] w, float[24] b, float[8,6] v,
            float[6] c, float scale, int64[5] five, int64[3] three, int64[1] zero, int64[3] ones, int64 i0, int64 i1, int64 i2>
            {{ g = MatMul (x, w) h = Add (g, b) f = Reshape (h, five) t = Transpose <perm = [2,0,3,1,4]> (f) {way}
            kt = Transpose <perm = [0,1,3,2]> (k) s = MatMul (q, kt) d = Mul (s, scale) a = Softmax <axis = -1> (d) o = MatMul (a, z)
            p = Transpose <perm = [0,2,1,3]> (o) r = Reshape (p, three) u = MatMul (r, v) y = Add (u, c) }}""", 2,
            weights={"five": [0, 0, 3, 2, 4], "three": [0, 0, 8], "zero": [0], "ones": [1, 1, 1], "scale": 0.5, "i0": 0, "i1": 1, "i2": 2})
    fused = """(float[N,5,6] x) => (float[N,5,6] y) <float[6,{q}] wq, float[6,{k}] wk, float[6,{k}] wv, float[{q},6] v,
        int64[4] s, int64[4] t, int64[3] o> {{ q = MatMul (x, wq) k = MatMul (x, wk) z = MatMul (x, wv)
        {body} y = MatMul (r, v) }}"""
    for q, k in ((8, 8), (16, 8)):
        body = f"r = Attention <q_num_heads = {q // 4}, kv_num_heads = {k // 4}> (q, k, z)"
        yield Row(f"Attention as one operator, {q // 4} heads on {k // 4}", fused.format(q=q, k=k, body=body), k // 4, opset=23, ir=11,
                  weights={"s": [0, 0, 2, 4], "t": [0, 0, 2, 4], "o": [0, 0, 8]})
    yield Row("Attention as one operator, all queries on one head", fused.format(q=12, k=4, body="r = Attention <q_num_heads = 3, kv_num_heads = 1> (q, k, z)"), 3,
              "has one head", opset=23, ir=11, weights={"s": [0, 0, 3, 4], "t": [0, 0, 1, 4], "o": [0, 0, 12]})
    masked = fused.format(q=8, k=8, body="r = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, z, mm)").replace("int64[3] o>", "int64[3] o, float[2,5,5] mm>")
    yield Row("Attention with a mask for each head", masked, 2, opset=23, ir=11, weights={"s": [0, 0, 2, 4], "t": [0, 0, 2, 4], "o": [0, 0, 8]})
    apart = """(float[N,5,6] x) => (float[N,5,6] y) <float[6,8] wq, float[8] bq, float[6,8] wk, float[6,8] wv, float[8,6] v, int64[4] s,
        int64[3] o> {{ qm = MatMul (x, wq) q = Add (qm, bq) k = MatMul (x, wk) z = MatMul (x, wv) {split}
        kt = Transpose <perm = [0,1,3,2]> (k4) m = MatMul (q4, kt) p = Softmax (m) a = MatMul (p, z4) {join} y = MatMul (r, v) }}"""
    four = "{0}r = Reshape ({0}, s) {0}4 = Transpose <perm = [0,2,1,3]> ({0}r)"
    split, join = " ".join(four.format(n) for n in "qkz"), "b = Transpose <perm = [0,2,1,3]> (a) r = Reshape (b, o)"
    for heads, prunable in ((2, 2), (4, 4), (1, 16)):
        yield Row(f"attention of {heads} heads, projected apart", apart.format(split=split, join=join), prunable,
                  weights={"s": [0, 0, heads, 8 // heads], "o": [0, 0, 8]})
    split = "f = Reshape (kz, two) k = Gather <axis = 2> (f, i0) z = Gather <axis = 2> (f, i1) " + split
    crossed = apart.format(split=split, join=join).replace("k = MatMul (x, wk) z = MatMul (x, wv)", "kz = MatMul (x, wk)")
    yield Row("attention, k and v split before the heads", crossed.replace("float[6,8] wk, float[6,8] wv", "float[6,16] wk, int64[4] two, int64 i0, int64 i1"), 2,
              weights={"s": [0, 0, 2, 4], "o": [0, 0, 8], "two": [0, 0, 2, 8], "i0": 0, "i1": 1})
    single = "q4 = Identity (q) k4 = Identity (k) z4 = Identity (z)"
    yield Row("attention without heads", apart.format(split=single, join="r = Identity (a)").replace("[0,1,3,2]", "[0,2,1]"), 16,
              weights={"s": [0, 0, 1, 8], "o": [0, 0, 8]})
    yield Row("Attention as one operator, turned flat", fused.format(q=8, k=8, body="""d = RotaryEmbedding <num_heads = 2> (q, cs, sn, at)
        e = RotaryEmbedding <num_heads = 2> (k, cs, sn, at) r = Attention <q_num_heads = 2, kv_num_heads = 2> (d, e, z)""").replace("[N", "[1").replace(
        "int64[3] o>", "int64[3] o, float[9,2] cs, float[9,2] sn, int64[1,5] at>"), 2, opset=23, ir=11,
        weights={"s": [0, 0, 2, 4], "t": [0, 0, 2, 4], "o": [0, 0, 8], "at": [[0, 1, 2, 3, 4]]})
    turns = "{0}4 = Reshape ({0}, s) {0}t = Transpose <perm = [0,2,1,3]> ({0}4)"
    yield Row("Attention as one operator, turned", fused.format(q=8, k=8, body=" ".join(turns.format(n) for n in "qkz") + """
        d = RotaryEmbedding (qt, cs, sn, at) a = Attention (d, kt, zt) b = Transpose <perm = [0,2,1,3]> (a) r = Reshape (b, o)""").replace("[N", "[1").replace(
        "int64[3] o>", "int64[3] o, float[9,2] cs, float[9,2] sn, int64[1,5] at>"), 2, opset=23, ir=11,
        weights={"s": [0, 0, 2, 4], "t": [0, 0, 2, 4], "o": [0, 0, 8], "at": [[0, 1, 2, 3, 4]]})
    body = " ".join(turns.format(n) for n in "qkz") + """ a = Attention (qt, kt, zt) b = Transpose <perm = [0,2,1,3]> (a)
        r = Reshape (b, o)"""
    yield Row("Attention as one operator, heads apart", fused.format(q=8, k=8, body=body), 2, opset=23, ir=11,
              weights={"s": [0, 0, 2, 4], "t": [0, 0, 2, 4], "o": [0, 0, 8]})


def normalisations() -> Iterator[Row]:
    """What takes statistics."""
    four, pair = "float[8] s, float[8] o, float[8] m, float[8] e", "float[8] s, float[8] o"
    positive = {"e": np.arange(1, 9)}
    yield image("BatchNormalization", "q = BatchNormalization (h, s, o, m, e) r = Relu (q)", 8, four, weights=positive)
    yield image("BatchNormalization, one vector for all", "q = BatchNormalization (h, e, e, e, e) p = BatchNormalization (q, e, e, e, e) r = Relu (p)",
                8, "float[8] e", weights=positive)
    trained = "r, mean, variance = BatchNormalization <training_mode = 1> (h, s, o, m, e)"
    yield image("BatchNormalization in training mode", trained, 8, four, weights=positive)
    yield flat("BatchNormalization in training mode over other axes fixes", trained, 0, four.replace("8", "5"), reason="statistics over it",
               weights={"e": np.arange(1, 6)})
    yield image("InstanceNormalization", "r = InstanceNormalization (h, s, o)", 8, pair)
    yield image("LRN fixes", "r = LRN <size = 3, alpha = 1.0> (h)", 0, reason="mixes its channels")
    yield image("GroupNormalization by whole groups", "r = GroupNormalization <num_groups = 4> (h, s, o)", 4, pair, opset=21)
    yield image("GroupNormalization of one group fixes", "r = GroupNormalization <num_groups = 1> (h, s, o)", 0, pair, opset=21,
                reason="statistics over it")
    yield image("groups by InstanceNormalization", """f = Reshape (h, to) g = InstanceNormalization (f, one, nil) i = Reshape (g, back)
        j = Mul (i, s) r = Add (j, o)""", 2, "int64[3] to, float[2] one, float[2] nil, int64[4] back, float[8,1,1] s, float[8,1,1] o",
                weights={"to": [0, 2, -1], "back": [0, 8, 6, 6], "one": [1, 1], "nil": [0, 0]})
    yield image("MeanVarianceNormalization over space", "r = MeanVarianceNormalization <axes = [2,3]> (h)")
    yield image("LpNormalization over space", "r = LpNormalization (h)")
    yield flat("LayerNormalization fixes", "r = LayerNormalization (h, s, o)", 0, pair, reason="statistics over it")
    yield image("LayerNormalization over space", "r = LayerNormalization <axis = 2> (h, s, o)", 8, "float[6,6] s, float[6,6] o")
    yield flat("RMSNormalization fixes", "r = RMSNormalization (h, s)", 0, "float[8] s", reason="statistics over it", opset=23, ir=11)
    yield flat("feed-forward under a LayerNormalization", "n = LayerNormalization (h, s, o) q = MatMul (n, k) p = Relu (q) t = MatMul (p, l) r = Add (t, h)",
               12, pair + ", float[8,12] k, float[12,8] l", reason="statistics over it")
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        yield flat(f"{op} over channels fixes", f"r = {op} <axis = 2> (h)", 0, reason="mixes its channels")
    yield flat("Softmax over positions", "r = Softmax <axis = 1> (h)")
    yield flat("Softmax before opset 13 flattens", "r = Softmax <axis = 1> (h)", 0, reason="mixes its channels", opset=11)
    yield flat("CumSum over channels fixes", "r = CumSum (h, a)", 0, "int64 a", reason="mixes its channels", weights={"a": 2})
    yield flat("CumSum over positions", "r = CumSum (h, a)", 8, "int64 a", weights={"a": 1})


def rows() -> list[Row]:
    """The table."""
    from nets_odd import odd
    from nets_shape import shapes

    return [*unary(), *elementwise(), *convolutions(), *products(), *computed(), *attention(), *normalisations(), *shapes(), *odd()]
