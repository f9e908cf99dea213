"""The table's second half: operators that move, join, split, pool or pad axes, and oddities of files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from nets import Row, image


def space() -> Iterator[Row]:
    """Pooling, reductions, resampling, padding."""
    for op in ("MaxPool", "AveragePool", "LpPool"):
        yield image(op, f"r = {op} <kernel_shape = [2,2], strides = [2,2]> (h)")
    for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        yield image(op, f"r = {op} (h)")
    for op in ("Mean", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp", "Prod"):
        yield image(f"Reduce{op} over space", f"r = Reduce{op} <axes = [2,3]> (h)")
    yield image("ReduceLogSum over space", "q = Exp (h) r = ReduceLogSum <axes = [2,3]> (q)")
    yield image("ReduceSum, axes as input", "r = ReduceSum (h, a)", 8, "int64[2] a", weights={"a": [2, -1]})
    yield image("ReduceMean at opset 18", "r = ReduceMean (h, a)", 8, "int64[2] a", weights={"a": [2, 3]}, opset=18)
    yield image("ReduceMean without the axes kept", "q = ReduceMean <axes = [2,3], keepdims = 0> (h) r = Unsqueeze (q, a)", 8,
                "int64[2] a", weights={"a": [2, 3]})  # fmt: skip
    yield image(
        "ReduceMean over channels fixes", "q = ReduceMean <axes = [1]> (h) r = Add (h, q)", 0, reason="reduces over it"
    )
    yield image("ArgMax over space", "q = ArgMax <axis = 3> (h) r = Cast <to = 1> (q)")
    yield image("ArgMin over channels fixes", "q = ArgMin <axis = 1> (h) p = Cast <to = 1> (q) r = Add (h, p)", 0,
                reason="reduces over it")  # fmt: skip
    yield image("TopK over space", "q, i = TopK <axis = 3> (h, k) r = Relu (q)", 8, "int64[1] k", weights={"k": [2]})
    yield image(
        "TopK over channels fixes",
        "r, i = TopK <axis = 1> (h, k)",
        0,
        "int64[1] k",
        5,
        weights={"k": [5]},
        reason="sorts it",
    )
    yield image(
        "Resize by scales", "r = Resize (h, n, s)", 8, "float[0] n, float[4] s", weights={"n": [], "s": [1, 1, 2, 2]}
    )
    yield image(
        "Resize to sizes", "r = Resize (h, n, n, s)", 8, "float[0] n, int64[4] s", weights={"n": [], "s": [1, 8, 9, 9]}
    )
    yield image("Upsample", "r = Upsample (h, s)", 8, "float[4] s", weights={"s": [1, 1, 2, 2]}, opset=9)
    yield image("Pad in space", "r = Pad (h, p)", 8, "int64[8] p", weights={"p": [0, 0, 1, 1, 0, 0, 2, 0]})
    yield image("Pad in space, as attribute", "r = Pad <pads = [0,0,1,1,0,0,2,0]> (h)", opset=10)
    yield image("Pad of channels", "r = Pad (h, p)", 8, "int64[8] p", 11, weights={"p": [0, 1, 0, 0, 0, 2, 0, 0]})
    yield image("Pad of channels, by a constant, named axes", "r = Pad (h, p, k, a)", 8, "int64[2] p, float k, int64[1] a", 11,
                weights={"p": [1, 2], "k": 0.7, "a": [1]}, opset=18)  # fmt: skip
    yield image("Pad of channels by reflection fixes", 'r = Pad <mode = "reflect"> (h, p)', 0, "int64[8] p", 10,
                weights={"p": [0, 1, 0, 0, 0, 1, 0, 0]}, reason="pads it by other than constants")  # fmt: skip
    yield image("option-A shortcut", "q = Slice (h, s, e, a, t) p = Pad (q, z) k = Conv <strides = [2,2], pads = [1,1,1,1]> (h, u, o) "
                "r = Add (k, p)", 16, "int64[2] s, int64[2] e, int64[2] a, int64[2] t, int64[8] z, float[16,8,3,3] u, float[16] o", 16,
                weights={"s": [0, 0], "e": [2**62, 2**62], "a": [2, 3], "t": [2, 2], "z": [0, 4, 0, 0, 0, 4, 0, 0]})  # fmt: skip
    yield image("DepthToSpace", "r = DepthToSpace <blocksize = 2> (h)", 2, "", 2)
    yield image("DepthToSpace by columns and rows", 'r = DepthToSpace <blocksize = 2, mode = "CRD"> (h)', 2, "", 2)
    yield image("SpaceToDepth", "r = SpaceToDepth <blocksize = 2> (h)", 8, "", 32)
    yield image("no rule", "q = Trilu (h) r = Relu (q)", 0, reason="has no rule yet")


def order() -> Iterator[Row]:
    """Transposing and reshaping."""
    yield image("channels last", "t = Transpose <perm = [0,2,3,1]> (h) q = MatMul (t, k) p = Add (q, l) r = Transpose <perm = [0,3,1,2]> (p)",
                17, "float[8,9] k, float[9] l", 9)  # fmt: skip
    yield image("channel shuffle", "q = Reshape (h, f) t = Transpose <perm = [0,2,1,3,4]> (q) r = Reshape (t, g)", 4,
                "int64[5] f, int64[4] g", weights={"f": [0, 2, 4, 6, 6], "g": [0, 8, 6, 6]})  # fmt: skip
    yield image("Squeeze, Unsqueeze", "q = GlobalAveragePool (h) s = Squeeze (q, a) r = Unsqueeze (s, a)", 8, "int64[2] a",
                weights={"a": [2, 3]})  # fmt: skip
    yield image(
        "Squeeze by attribute",
        "q = GlobalAveragePool (h) s = Squeeze <axes = [3]> (q) r = Unsqueeze <axes = [3]> (s)",
        opset=11,
    )
    yield Row("Flatten of a convolution", """(float[N,3,4,4] x) => (float[N,5] y) <float[8,3,3,3] w, float[8] b, float[5,32] v, float[5] c>
        { h = Conv (x, w, b) r = Flatten (h) y = Gemm <transB = 1> (r, v, c) }""", 8)  # fmt: skip
    yield Row("Reshape of a convolution and back", """(float[N,3,4,4] x) => (float[N,5,2,2] y)
        <float[8,3,3,3] w, float[8] b, int64[2] s, int64[4] t, float[5,8,1,1] v>
        { h = Conv (x, w, b) q = Reshape (h, s) p = Relu (q) r = Reshape (p, t) y = Conv (r, v) }""", 8,
        weights={"s": [-1, 32], "t": [-1, 8, 2, 2]})  # fmt: skip
    yield Row("Reshape to a size computed at run time", """(float[N,3,4,4] x) => (float[N,5] y)
        <float[8,3,3,3] w, float[8] b, float[32,5] v, int64 zero, int64[1] first, int64[1] rest>
        { h = Conv (x, w, b) s = Shape (h) d = Gather (s, zero) u = Unsqueeze (d, first) t = Concat <axis = 0> (u, rest)
        r = Reshape (h, t) y = Gemm (r, v) }""", 8, weights={"zero": 0, "first": [0], "rest": [-1]})  # fmt: skip
    yield image("Expand", "q = GlobalAveragePool (h) r = Expand (q, s)", 8, "int64[4] s", weights={"s": [1, 8, 3, 3]})
    yield image("Tile in space", "r = Tile (h, s)", 8, "int64[4] s", weights={"s": [1, 1, 2, 1]})
    yield image(
        "Tile of channels fixes",
        "r = Tile (h, s)",
        0,
        "int64[4] s",
        16,
        weights={"s": [1, 2, 1, 1]},
        reason="repeats it",
    )
    yield image("Size, Shape", "s = Shape (h) d = Cast <to = 1> (s) m = ReduceMax <keepdims = 0> (d) z = Size (x) f = Cast <to = 1> (z) "
                "g = Mul (m, f) k = Sub (g, g) r = Add (h, k)")  # fmt: skip


def selection() -> Iterator[Row]:
    """Joining, splitting, selecting."""
    yield image(
        "Concat", "q = Relu (h) k = Conv (q, u, o) r = Concat <axis = 1> (q, k)", 13, "float[5,8,1,1] u, float[5] o", 13
    )
    yield image("Concat with the input", "r = Concat <axis = 1> (h, x)", 8, "", 11)
    yield image("dense block", "k = Conv (h, u) p = Concat <axis = 1> (h, k) l = Conv (p, o) r = Concat <axis = 1> (p, l)", 16,
                "float[4,8,1,1] u, float[4,12,1,1] o", 16)  # fmt: skip
    yield image("residual stream", "k = Conv (h, u, o) p = Relu (k) l = Conv (p, m, n) q = Add (h, l) r = Relu (q)", 17,
                "float[9,8,1,1] u, float[9] o, float[8,9,1,1] m, float[8] n")  # fmt: skip
    yield image(
        "Split by attribute",
        "p, q = Split <axis = 1, split = [3,5]> (h) t = Relu (p) r = Concat <axis = 1> (q, t)",
        opset=11,
    )
    yield image("Split by input", "p, q = Split <axis = 1> (h, s) t = Relu (p) r = Concat <axis = 1> (q, t)", 8, "int64[2] s",
                weights={"s": [3, 5]})  # fmt: skip
    yield image("Split evenly", "p, q = Split <axis = 1> (h) r = Concat <axis = 1> (q, p)")
    yield image(
        "Split in so many", "p, q = Split <axis = 1, num_outputs = 2> (h) r = Concat <axis = 1> (q, p)", opset=18
    )
    yield image("Split and gate", "p, q = Split <axis = 1> (h) a = Sigmoid (p) r = Mul (a, q)", 4, "", 4)
    yield image(
        "Slice by attributes",
        "r = Slice <axes = [1], starts = [2], ends = [7]> (h)",
        5,
        "",
        5,
        opset=9,
        reason="no weight reads it",
    )
    yield image("Slice of two ends", "p = Slice (h, a, s, i) q = Slice (h, s, e, i) t = Relu (q) r = Concat <axis = 1> (t, p)", 8,
                "int64[1] a, int64[1] s, int64[1] e, int64[1] i", weights={"a": [0], "s": [-5], "e": [2**62], "i": [1]})  # fmt: skip
    yield image("Slice with a stride fixes", "r = Slice (h, s, e, i, t)", 0, "int64[1] s, int64[1] e, int64[1] i, int64[1] t", 4,
                weights={"s": [0], "e": [8], "i": [1], "t": [2]}, reason="takes every other channel")  # fmt: skip
    yield image(
        "Gather permutes", "r = Gather <axis = 1> (h, i)", 8, "int64[8] i", weights={"i": [7, 1, 5, 3, 4, 2, 6, 0]}
    )
    yield image("Gather takes some, one twice", "r = Gather <axis = 1> (h, i)", 2, "int64[3] i", 3, weights={"i": [5, 1, 5]},
                reason="no weight reads it")  # fmt: skip
    yield image("Gather of one fixes", "q = Gather <axis = 1> (h, i) p = Unsqueeze (q, a) r = Add (h, p)", 0, "int64 i, int64[1] a",
                weights={"i": 2, "a": [1]}, reason="picks from it")  # fmt: skip
    yield Row("embedding", """(int64[N,5] x) => (float[N,5,4] y) <float[10,8] e, float[8,4] v>
        { h = Gather (e, x) r = Relu (h) y = MatMul (r, v) }""", 8)  # fmt: skip


def recurrent() -> Iterator[Row]:
    """Recurrent layers in both directions."""
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for way, ways in (("forward", 1), ("bidirectional", 2)):
            yield Row(f"{op}, {way}", f"""(float[5,N,6] x) => (float[5,N,4] y) <float[{ways},{gates * 8},6] w,
                float[{ways},{gates * 8},8] u, float[{ways},{gates * 16}] b, int64[3] s, float[{ways * 8},4] v>
                {{ h = {op} <hidden_size = 8, direction = "{way}"> (x, w, u, b) t = Transpose <perm = [0,2,1,3]> (h) r = Reshape (t, s)
                y = MatMul (r, v) }}""", 8, weights={"s": [0, 0, ways * 8]})  # fmt: skip
    yield Row("LSTM with a state from outside", """(float[5,1,6] x, float[1,1,8] s0) => (float[5,1,1,8] y) <float[1,32,6] w, float[1,32,8] u>
        { y = LSTM <hidden_size = 8> (x, w, u, , , s0, s0) }""", 0, "first state")  # fmt: skip


def files() -> Iterator[Row]:
    """Oddities of files."""
    yield image("Constant nodes", "k = Constant <value = float[1] {2.0}> () r = Mul (h, k)")
    yield image("IR 3, weights are inputs", "r = Relu (h)", ir=3, opset=8)
    yield image("an unused node", "u = Relu (h) r = Tanh (h)")
    yield image("Identity of a weight", "k = Identity (u) r = Conv (h, k)", 16, "float[8,8,1,1] u")
    yield image("quantised weights", "k = DequantizeLinear <axis = 0> (u, s, z) r = Conv (h, k)", 16,
                "int8[8,8,1,1] u, float[8] s, int8[8] z", weights={"u": np.arange(-32, 32), "s": np.full(8, 0.02), "z": np.zeros(8)})  # fmt: skip
    yield image("quantised activations", "q = QuantizeLinear (h, s, z) r = DequantizeLinear (q, s, z)", 8, "float s, uint8 z",
                weights={"s": 0.05, "z": 128})  # fmt: skip
    yield Row("float16", """(float16[N,3,6,6] x) => (float16[N,4,6,6] y) <float16[8,3,3,3] w, float16[8] b, float16[4,8,1,1] v>
        { h = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu (h) y = Conv (r, v) }""", 8, tolerance=1e-2)  # fmt: skip
    yield Row("two inputs, two outputs", """(float[N,3,6,6] x, float[N,3,6,6] z) => (float[N,4,6,6] y, float[N,8,6,6] p)
        <float[8,3,1,1] w, float[8,3,1,1] u, float[4,8,1,1] v>
        { h = Conv (x, w) p = Conv (z, u) r = Add (h, p) y = Conv (r, v) }""", 0, "it is the model's output 'p'")  # fmt: skip


def shapes() -> list[Row]:
    """All of this file's rows."""
    return [*space(), *order(), *selection(), *recurrent(), *files()]
