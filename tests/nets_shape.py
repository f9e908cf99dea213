"""The table's second half: operators that move, join, split, pool or pad axes, and oddities of files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from nets import Row, flat, image

END = 2**62

# One row of the table is one statement, however long.
# fmt: off


def space() -> Iterator[Row]:
    """Pooling, reductions, resampling."""
    for op in ("MaxPool", "AveragePool", "LpPool"):
        yield image(op, f"r = {op} <kernel_shape = [2,2], strides = [2,2]> (h)")
    yield image("AveragePool of the same size", 'r = AveragePool <kernel_shape = [3,3], auto_pad = "SAME_UPPER", count_include_pad = 1> (h)')
    yield image("MaxPool with the places of its maxima", "q, i = MaxPool <kernel_shape = [2,2]> (h) r = Cast <to = 1> (i)", 0)
    yield image("MaxPool with places that nothing reads", "q, i = MaxPool <kernel_shape = [2,2]> (h) r = Clip (q, , hi)", 8,
                "float hi", weights={"hi": 1.0})
    yield image("MaxPool beside an input that is left out", "q = MaxPool <kernel_shape = [2,2]> (h) r = Clip (q, , hi)", 8, "float hi", weights={"hi": 1.0})
    yield Row("MaxPool with places that are an output", """(float[N,3,6,6] x) => (float[N,4,5,5] y, int64[N,8,5,5] i) <float[8,3,1,1] w, float[4,8,1,1] v>
        { h = Conv (x, w) r, i = MaxPool <kernel_shape = [2,2]> (h) y = Conv (r, v) }""", 0, "places of the maxima")
    yield image("MaxPool over channels", """t = Transpose <perm = [0,2,1,3]> (h) p = MaxPool <kernel_shape = [3,1], pads = [1,0,1,0]> (t)
        r = Transpose <perm = [0,2,1,3]> (p)""", 0, reason="pools over it")
    for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        yield image(op, f"r = {op} (h)")
    for op in ("Mean", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp"):
        yield image(f"Reduce{op} over space", f"r = Reduce{op} <axes = [2,3]> (h)")
    yield image("ReduceLogSum over space", "q = Exp (h) r = ReduceLogSum <axes = [2,3]> (q)")
    yield image("ReduceProd over space", "p = Tanh (h) q = Exp (p) r = ReduceProd <axes = [3]> (q)")
    yield image("ReduceSum, axes as input", "r = ReduceSum (h, a)", 8, "int64[2] a", weights={"a": [2, -1]})
    yield image("ReduceMean at opset 18", "r = ReduceMean (h, a)", 8, "int64[2] a", weights={"a": [2, 3]}, opset=18)
    yield image("ReduceMean without the axes kept", "q = ReduceMean <axes = [2,3], keepdims = 0> (h) r = Unsqueeze (q, a)", 8,
                "int64[2] a", weights={"a": [2, 3]})
    yield image("ReduceSum of nothing", "r = ReduceSum <noop_with_empty_axes = 1> (h)")
    yield image("ReduceMax of everything fixes", "q = ReduceMax (h) r = Add (h, q)", 0, reason="reduces over it")
    yield image("ReduceMean over channels fixes", "q = ReduceMean <axes = [1]> (h) r = Add (h, q)", 0, reason="reduces over it")
    yield image("ArgMax over space", "q = ArgMax <axis = 3> (h) r = Cast <to = 1> (q)")
    yield image("ArgMin over channels fixes", "q = ArgMin <axis = 1> (h) p = Cast <to = 1> (q) r = Add (h, p)", 0, reason="reduces over it")
    yield image("TopK over space", "q, i = TopK <axis = 3> (h, k) r = Relu (q)", 8, "int64[1] k", weights={"k": [2]})
    yield image("TopK over channels fixes", "r, i = TopK <axis = 1> (h, k)", 0, "int64[1] k", 5, weights={"k": [5]}, reason="sorts it")
    none: dict[str, object] = {"n": []}
    yield image("Resize by scales", "r = Resize (h, n, s)", 8, "float[0] n, float[4] s", weights={**none, "s": [1, 1, 2, 2]})
    yield image("Resize by scales at opset 10", "r = Resize (h, s)", 8, "float[4] s", weights={"s": [1, 1, 2, 2]}, opset=10)
    yield image("Resize to sizes", "r = Resize (h, n, n, s)", 8, "float[0] n, int64[4] s", weights={**none, "s": [1, 8, 9, 9]})
    yield image("Resize to sizes of named axes", 'r = Resize <axes = [1,2,3], mode = "linear"> (h, , , s)', 8, "int64[3] s",
                weights={"s": [8, 9, 9]}, opset=18)
    yield image("Resize to sizes of axes from the end", "r = Resize <axes = [-3,-2,-1]> (h, , , s)", 8, "int64[3] s",
                weights={"s": [8, 9, 9]}, opset=18)
    yield image("Upsample", "r = Upsample (h, s)", 8, "float[4] s", weights={"s": [1, 1, 2, 2]}, opset=9)
    yield image("Upsample by attribute", "r = Upsample <scales = [1.0, 1.0, 2.0, 2.0]> (h)", opset=8)
    yield image("Resize by a scale that leaves as many channels fixes", "r = Resize (h, n, s)", 0, "float[0] n, float[4] s", weights={**none, "s": [1, 1.1, 2, 2]},
                reason="resamples it")
    yield image("Upsample by a scale that leaves as many channels fixes", "r = Upsample <scales = [1.0, 1.1, 2.0, 2.0]> (h)", 0, opset=8, reason="resamples it")
    for name, scale, channels in (("", 1, 8), (" that leave as many channels fixes", 1.1, 0)):
        yield image(f"Resize by scales joined at run time{name}", """z = Size (x) f = Cast <to = 1> (z) g = Div (f, f) i = Add (g, g) j = Reshape (i, o)
                    t = Concat <axis = 0> (s, j, j) r = Resize (h, n, t)""", channels, "float[0] n, float[2] s, int64[1] o", weights={**none, "s": [1, scale], "o": [1]})
    for name, low, channels in (("", 0, 8), (" and of some channels fixes", 0.2, 0)):
        yield image(f"Resize of a part of the image{name}", 'r = Resize <mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize"> (h, k, s)', channels,
                    "float[8] k, float[4] s", weights={"k": [0, low, 0.2, 0.2, 1, 1, 0.7, 0.7], "s": [1, 1, 2, 2]})
    yield image("MaxRoiPool", "q = MaxRoiPool <pooled_shape = [6, 6]> (h, i) r = Relu (q)", 8, "float[1,5] i", weights={"i": [[0, 0, 0, 5, 5]]})
    yield image("RoiAlign", "r = RoiAlign <output_height = 2, output_width = 3, sampling_ratio = 2> (h, k, i)", 8, "float[1,4] k, int64[1] i",
                weights={"k": [[0, 1, 4, 5]], "i": [0]})
    yield Row("GridSample", """(float[N,3,6,6] x, float[N,5,4,2] z) => (float[N,4,5,4] y) <float[8,3,3,3] w, float[4,8,1,1] v>
        { h = Conv <pads = [1,1,1,1]> (x, w) r = GridSample (h, z) y = Conv (r, v) }""", 8)
    yield image("CenterCropPad of space", "r = CenterCropPad <axes = [-2, 3]> (h, s)", 8, "int64[2] s", weights={"s": [4, 8]}, opset=18)
    yield image("CenterCropPad of everything fixes", "r = CenterCropPad (h, s)", 0, "int64[4] s", 6, weights={"s": [1, 6, 4, 8]}, opset=18, reason="crops or pads it")
    yield Row("Col2Im", """(float[N,3,9] x) => (float[N,4,4,4] y) <float[8,3,1] w, int64[2] s, int64[2] k, float[4,2,1,1] v>
        { h = Conv (x, w) r = Col2Im (h, s, k) y = Conv (r, v) }""", 2, weights={"s": [4, 4], "k": [2, 2]}, opset=18)
    yield image("no rule", "r = Compress <axis = 2> (h, i)", 0, "bool[6] i", weights={"i": [1, 0, 1, 1, 0, 1]}, reason="has no rule yet")
    yield Row("any height and width", """(float[N,3,H,W] x) => (float[N,4,P,Q] y) <float[8,3,3,3] w, float[8] b, float[4,8,1,1] v>
        { h = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu (h) y = Conv (r, v) }""", 8)


def padding() -> Iterator[Row]:
    """Padding of space and of channels."""
    yield image("Pad in space", "r = Pad (h, p)", 8, "int64[8] p", weights={"p": [0, 0, 1, 1, 0, 0, 2, 0]})
    yield image("Pad in space by reflection", 'r = Pad <mode = "reflect"> (h, p)', 8, "int64[8] p", weights={"p": [0, 0, 1, 1, 0, 0, 2, 0]})
    yield image("Pad in space, as attribute", "r = Pad <pads = [0,0,1,1,0,0,2,0]> (h)", opset=10)
    yield image("Pad of channels", "r = Pad (h, p)", 8, "int64[8] p", 11, weights={"p": [0, 1, 0, 0, 0, 2, 0, 0]})
    yield image("Pad of channels at the end alone", "r = Pad (h, p)", 8, "int64[8] p", 10, weights={"p": [0, 0, 0, 0, 0, 2, 0, 0]})
    yield image("Pad of channels, as attribute", "r = Pad <pads = [0,1,0,0,0,2,0,0], value = 0.7> (h)", 8, "", 11, opset=10)
    yield image("Pad of channels, by a constant, named axes", "r = Pad (h, p, k, a)", 8, "int64[2] p, float k, int64[1] a", 11,
                weights={"p": [1, 2], "k": 0.7, "a": [1]}, opset=18)
    yield image("Pad of channels by reflection fixes", 'r = Pad <mode = "reflect"> (h, p)', 0, "int64[8] p", 10,
                weights={"p": [0, 1, 0, 0, 0, 1, 0, 0]}, reason="pads it by other than constants")
    shortcut = "int64[2] s, int64[2] e, int64[2] a, int64[2] t, int64[8] z, float[16,8,3,3] u, float[16] o"
    yield image("option-A shortcut", """q = Slice (h, s, e, a, t) p = Pad (q, z) k = Conv <strides = [2,2], pads = [1,1,1,1]> (h, u, o)
        r = Add (k, p)""", 16, shortcut, 16,
        weights={"s": [0, 0], "e": [END, END], "a": [2, 3], "t": [2, 2], "z": [0, 4, 0, 0, 0, 4, 0, 0]})
    yield image("DepthToSpace", "r = DepthToSpace <blocksize = 2> (h)", 2, "", 2)
    yield image("DepthToSpace by columns and rows", 'r = DepthToSpace <blocksize = 2, mode = "CRD"> (h)', 2, "", 2)
    yield image("SpaceToDepth", "r = SpaceToDepth <blocksize = 2> (h)", 8, "", 32)


def order() -> Iterator[Row]:
    """Transposing and reshaping."""
    yield image("channels last", "t = Transpose <perm = [0,2,3,1]> (h) q = MatMul (t, k) p = Add (q, l) r = Transpose <perm = [0,3,1,2]> (p)",
                17, "float[8,9] k, float[9] l", 9)
    yield image("channel shuffle", "q = Reshape (h, f) t = Transpose <perm = [0,2,1,3,4]> (q) r = Reshape (t, g)", 4,
                "int64[5] f, int64[4] g", weights={"f": [0, 2, 4, 6, 6], "g": [0, 8, 6, 6]})
    yield flat("ReverseSequence", "r = ReverseSequence (h, n)", 8, "int64[5] n", weights={"n": [1] * 5})
    yield flat("ReverseSequence of channels fixes", "t = Transpose (h) u = ReverseSequence (t, n) r = Transpose (u)", 0, "int64[5] n", weights={"n": [8] * 5},
               reason="runs along it")
    yield image("Squeeze, Unsqueeze", "q = GlobalAveragePool (h) s = Squeeze (q, a) r = Unsqueeze (s, a)", 8, "int64[2] a",
                weights={"a": [2, 3]})
    yield image("Squeeze by attribute", "q = GlobalAveragePool (h) s = Squeeze <axes = [3]> (q) r = Unsqueeze <axes = [3]> (s)", opset=11)
    yield Row("Flatten of a convolution", """(float[N,3,4,4] x) => (float[N,5] y) <float[8,3,3,3] w, float[8] b, float[5,32] v, float[5] c>
        { h = Conv (x, w, b) r = Flatten (h) y = Gemm <transB = 1> (r, v, c) }""", 8)
    yield image("Flatten of the batch and the channels", "q = Flatten <axis = 2> (h) r = Reshape (q, s)", 8, "int64[4] s",
                weights={"s": [-1, 8, 6, 6]})
    yield Row("Reshape of a convolution and back", """(float[N,3,4,4] x) => (float[N,5,2,2] y)
        <float[8,3,3,3] w, float[8] b, int64[2] s, int64[4] t, float[5,8,1,1] v>
        { h = Conv (x, w, b) q = Reshape (h, s) p = Relu (q) r = Reshape (p, t) y = Conv (r, v) }""", 8,
        weights={"s": [-1, 32], "t": [-1, 8, 2, 2]})
    yield image("Reshape that counts the channels itself", "q = Reshape (h, s) r = Reshape (q, t)", 8, "int64[3] s, int64[4] t",
                weights={"s": [0, -1, 36], "t": [0, -1, 6, 6]})
    yield Row("tokens of any number", """(float[N,3,H,W] x) => (float[N,T,4] y) <float[8,3,3,3] w, float[8] b, float[8,4] v, int64[3] s>
        { h = Conv <pads = [1,1,1,1]> (x, w, b) q = Reshape (h, s) r = Transpose <perm = [0,2,1]> (q) y = MatMul (r, v) }""", 8,
        weights={"s": [0, 8, -1]})
    yield image("Expand", "q = GlobalAveragePool (h) r = Expand (q, s)", 8, "int64[4] s", weights={"s": [1, 8, 3, 3]})
    yield image("Expand that names no channels", "q = GlobalAveragePool (h) r = Expand (q, s)", 8, "int64[2] s", weights={"s": [3, 3]})
    yield image("Tile in space", "r = Tile (h, s)", 8, "int64[4] s", weights={"s": [1, 1, 2, 1]})
    yield image("Tile of channels", "r = Tile (h, s)", 8, "int64[4] s", 16, weights={"s": [1, 2, 1, 2]})
    yield image("Tile of the samples", "t = Tile (h, s) r = Reshape (t, o)", 8, "int64[4] s, int64[4] o", weights={"s": [2, 1, 1, 1], "o": [-1, 8, 6, 6]})
    yield image("Tile of one channel to many", "q = Conv (h, k) t = Tile (q, s) r = Add (h, t)", 8, "float[1,8,1,1] k, int64[4] s", weights={"s": [1, 8, 1, 1]})
    yield image("Tile of channels as often as the run says fixes", """z = Size (x) d = Div (z, z) t = Add (d, d) u = Reshape (t, o) s = Concat <axis = 0> (o, u, o, o)
                r = Tile (h, s)""", 0, "int64[1] o", 16, weights={"o": [1]}, reason="as often as the run says")


def runtime() -> Iterator[Row]:
    """Sizes that are known at run time only, since the batch is; exporters write them where the batch is dynamic."""
    batch = "n = Shape (x) d = Gather (n, zero) u = Unsqueeze (d, first) t = Concat <axis = 0> (u, rest)"
    declared, sizes = "int64 zero, int64[1] first, ", {"zero": 0, "first": [0]}
    for name, rest in (("", [-1]), (" that names the channels", [32])):
        yield Row(f"Reshape to a size computed at run time{name}", f"""(float[N,3,4,4] x) => (float[N,5] y)
            <float[8,3,3,3] w, float[8] b, float[32,5] v, {declared} int64[1] rest>
            {{ h = Conv (x, w, b) {batch} r = Reshape (h, t) y = Gemm (r, v) }}""", 8, weights={**sizes, "rest": rest})
    yield Row("a class token of every sample", f"""(float[N,5,6] x) => (float[N,M,4] y) <float[6,8] w, float[8,4] v, {declared}
        int64[2] rest, float[1,1,8] e> {{ h = MatMul (x, w) {batch} k = Expand (e, t) r = Concat <axis = 1> (k, h) y = MatMul (r, v) }}""",
        8, weights={**sizes, "rest": [1, 8]})
    yield Row("batch times heads at run time", """(float[N,5,6] x) => (float[N,5,4] y) <float[6,8] w, float[8,4] v, int64 zero, int64[1] first,
        int64 two, int64[1] five, int64[1] four, int64[3] back> { h = MatMul (x, w) n = Shape (x) d = Gather (n, zero) m = Mul (d, two)
        u = Unsqueeze (m, first) t = Concat <axis = 0> (five, u, four) f = Transpose <perm = [1,0,2]> (h) q = Reshape (f, t)
        p = Softmax <axis = 2> (q) b = Reshape (p, back) r = Transpose <perm = [1,0,2]> (b) y = MatMul (r, v) }""", 2,
        weights={**sizes, "two": 2, "five": [5], "four": [4], "back": [5, -1, 8]})
    yield Row("an LSTM from a state of zeros per sample", """(float[7,N,3] x) => (float[7,N,2] y) <float[1,16,3] w, float[1,16,4] q, float[4,2] v,
        int64 one, int64[1] first, int64[1] a, int64[1] four, float nil> { n = Shape (x) i = Gather (n, one) u = Unsqueeze (i, first)
        t = Concat <axis = 0> (a, u, four) s = Expand (nil, t) h = LSTM <hidden_size = 4> (x, w, q, , , s, s) p = Squeeze (h, a)
        y = MatMul (p, v) }""", 4, weights={**sizes, "one": 1, "a": [1], "four": [4], "nil": 0})
    yield image("Resize to a size computed at run time", f"{batch} r = Resize (h, e, e, t)", 8, f"{declared} int64[3] rest, float[0] e",
                weights={**sizes, "rest": [8, 9, 9], "e": []})
    yield image("Reshape to the shape of another", "n = Shape (h) q = Reshape (h, s) p = Relu (q) r = Reshape (p, n)", 8, "int64[3] s",
                weights={"s": [0, 8, -1]})
    yield Row("Reshape to the shape of one beside it", """(float[N,3,6,6] x) => (float[N,4,6,6] y, float[N,2,6,6] z) <float[8,3,1,1] w,
        float[8,3,1,1] u, float[4,8,1,1] v, float[2,8,1,1] k, int64[3] s> { h = Conv (x, w) g = Conv (x, u) n = Shape (g) q = Reshape (h, s)
        p = Relu (q) r = Reshape (p, n) y = Conv (r, v) z = Conv (g, k) }""", 8, weights={"s": [0, 8, -1]})
    yield image("Shape and Slice as before opset 10", """n = Shape (h) d = Slice <starts = [0], ends = [1]> (n) t = Concat <axis = 0> (d, rest)
                r = Reshape (h, t)""", 8, "int64[3] rest", weights={"rest": [8, 6, 6]}, opset=9)
    yield flat("a fill of the same shape", "n = Shape (h) k = ConstantOfShape <value = float[1] {2.0}> (n) r = Add (h, k)")
    yield image("Size, Shape", "s = Shape (x) d = Cast <to = 1> (s) m = ReduceMax <keepdims = 0> (d) z = Size (x) f = Cast <to = 1> (z) "
                "g = Div (f, m) r = Add (h, g)")
    yield flat("a scale by the root of the width", "s = Shape (h) d = Gather (s, i) f = Cast <to = 1> (d) q = Sqrt (f) r = Div (h, q)", 8,
               "int64 i", weights={"i": -1})
    yield image("a mean by the size", "s = Size (h) f = Cast <to = 1> (s) r = Div (h, f)", 0)
    yield Row("copies beside their channels", """(float[1,6] x) => (float[2,4] y) <float[6,8] w, float[8,4] v, int64[2] s, int64[1] a, int64[2] b>
        { h = MatMul (x, w) f = Expand (h, s) g = Reshape (f, a) p = Relu (g) r = Reshape (p, b) y = MatMul (r, v) }""", 8,
        weights={"s": [2, 8], "a": [-1], "b": [2, -1]})
    hidden = "n = Shape (x) d = Slice (n, zero, two) t = Concat <axis = 0> (d, all) f = Reshape (x, t)"  # inference loses it in opset 11
    yield Row("halves of an axis whose length inference does not know", f"""(float[N,5,6] x) => (float[N,5,4] y) <float[6,16] w, float[8,4] v,
        int64[1] zero, int64[1] two, int64[1] all, int64[1] far> {{ {hidden} h = MatMul (f, w) m = Shape (h) c = Gather <axis = 0> (m, two)
        g = Div (c, two) a = Slice (h, zero, g, two) b = Slice (h, g, far, two) r = Mul (a, b) y = MatMul (r, v) }}""", 8, opset=11,
        weights={"zero": [0], "two": [2], "all": [-1], "far": [2**31 - 1]})
    yield Row("a width that is measured on channels that stay", f"""(float[N,5,6] x) => (float[N,5,4] y) <float[6,8] w, float[8,8] k, float[8,4] v,
        int64[1] zero, int64[1] two, int64[1] all> {{ {hidden} h = MatMul (f, w) p = ReduceMean <axes = [2]> (h) m = Shape (h)
        c = Gather <axis = 0> (m, two) u = MatMul (h, k) e = Concat <axis = 0> (d, c) r = Reshape (u, e) z = MatMul (r, v) y = Add (z, p) }}""",
        8, "reduces over it", opset=11, weights={"zero": [0], "two": [2], "all": [-1]})


def places() -> Iterator[Row]:
    """Elements that are taken by their place."""
    yield image("GatherND over the batch", "r = GatherND (h, i)", 8, "int64[2,1] i", weights={"i": [[0], [0]]})
    yield image("GatherND of channels fixes", "q = GatherND (h, i) r = Unsqueeze (q, a)", 0, "int64[1,2] i, int64[1] a", 1,
                weights={"i": [[0, 1]], "a": [1]}, reason="picks from it")
    sample, places = "(float[1,3,6,6] x) => (float[1,4,6,P] y) <float[8,3,1,1] w, float[4,8,1,1] v", {"i": np.arange(96) % 5}
    elements = sample + ", int64[1,8,6,2] i, float[1,8,6,2] u> {{ h = Conv (x, w) r = {} y = Conv (r, v) }}"
    yield Row("GatherElements over space", elements.format("GatherElements <axis = 3> (h, i)"), 8, weights=places)
    yield Row("ScatterElements over space", elements.format("ScatterElements <axis = -1> (h, i, u)"), 8, weights=places)
    yield image("GatherElements over channels fixes", "r = GatherElements <axis = 1> (h, i)", 0, "int64[1,8,6,6] i", weights={"i": np.arange(288) % 8},
                reason="by their place")
    yield Row("ScatterElements of fewer channels fixes", elements.replace("1,8,6,2", "1,7,6,2").format("ScatterElements <axis = 3> (h, i, u)"), 0,
              weights={"i": np.arange(84) % 5}, reason="by their place")
    best = "s = MatMul (h, k) t, i = TopK <axis = 1> (s, n) j = {} (i, o) q = GatherElements <axis = 1> (h, j)"
    declared = "float[8,1] k, int64[1] n, int64[3] o"
    yield flat("the best positions, by Tile", f"{best.format('Tile')} r = Relu (q)", 8, declared, weights={"n": [5], "o": [1, 1, 8]})
    yield flat("the best positions, put back", f"{best.format('Expand')} p = MatMul (q, m) r = ScatterElements <axis = 1> (h, j, p)", 8, f"{declared}, float[8,8] m",
               weights={"n": [3], "o": [1, 1, 8]})
    yield image("ScatterND over the batch", "r = ScatterND (h, i, u)", 8, "int64[1,1] i, float[1,8,6,6] u", weights={"i": [[0]]})
    yield image("ScatterND into channels fixes", "r = ScatterND (h, i, u)", 0, "int64[1,2] i, float[1,6,6] u", weights={"i": [[0, 1]]}, reason="by place")
    yield image("Trilu", "r = Trilu (h)")


def selection() -> Iterator[Row]:
    """Joining, splitting, selecting."""
    yield image("Concat", "q = Relu (h) k = Conv (q, u, o) r = Concat <axis = 1> (q, k)", 13, "float[5,8,1,1] u, float[5] o", 13)
    yield image("Concat with itself", "r = Concat <axis = -3> (h, h)", 8, "", 16)
    yield image("Concat in space", "q = Relu (h) r = Concat <axis = 2> (h, q)")
    yield Row("Concat with a constant", """(float[1,3,6,6] x) => (float[1,4,6,6] y) <float[8,3,1,1] w, float[1,3,6,6] k, float[4,11,1,1] v>
        { h = Conv (x, w) r = Concat <axis = 1> (k, h) y = Conv (r, v) }""", 8)
    yield image("Concat with the input", "r = Concat <axis = 1> (h, x)", 8, "", 11)
    yield image("dense block", "k = Conv (h, u) p = Concat <axis = 1> (h, k) l = Conv (p, o) r = Concat <axis = 1> (p, l)", 16,
                "float[4,8,1,1] u, float[4,12,1,1] o", 16)
    yield image("residual stream", "k = Conv (h, u, o) p = Relu (k) l = Conv (p, m, n) q = Add (h, l) r = Relu (q)", 17,
                "float[9,8,1,1] u, float[9] o, float[8,9,1,1] m, float[8] n")
    join = "t = Relu (p) r = Concat <axis = 1> (q, t)"
    yield image("Split by attribute", f"p, q = Split <axis = 1, split = [3,5]> (h) {join}", opset=11)
    yield image("Split by input", f"p, q = Split <axis = 1> (h, s) {join}", 8, "int64[2] s", weights={"s": [3, 5]})
    yield image("Split evenly", f"p, q = Split <axis = 1> (h) {join}")
    yield image("Split in so many", f"p, q = Split <axis = 1, num_outputs = 2> (h) {join}", opset=18)
    yield image("Split in so many, unevenly", "p, q, s = Split <axis = 1, num_outputs = 3> (h) r = Concat <axis = 1> (q, s, p)", opset=18)
    yield image("Split and gate", "p, q = Split <axis = 1> (h) a = Sigmoid (p) r = Mul (a, q)", 4, "", 4)
    yield image("Split and pool", "p, q = Split <axis = 1> (h) s = GlobalAveragePool (p) t = GlobalMaxPool (q) r = Concat <axis = 1> (t, s)")
    yield image("Split and reshape", "p, q = Split <axis = 1> (h) i = Reshape (p, s) j = Reshape (q, s) k = Concat <axis = 1> (j, i) r = Reshape (k, t)",
                8, "int64[3] s, int64[4] t", weights={"s": [0, 0, -1], "t": [0, 0, 6, 6]})
    yield image("Slice by attributes", "r = Slice <axes = [1], starts = [2], ends = [7]> (h)", 5, "", 5, opset=9, reason="no weight reads it")
    yield image("Slice of two ends", "p = Slice (h, a, s, i) q = Slice (h, s, e, i) t = Relu (q) r = Concat <axis = 1> (t, p)", 8,
                "int64[1] a, int64[1] s, int64[1] e, int64[1] i", weights={"a": [0], "s": [-5], "e": [END], "i": [1]})
    yield image("Slice of channels and space", "r = Slice (h, s, e, i)", 4, "int64[3] s, int64[3] e, int64[3] i", 4,
                weights={"s": [1, 1, 0], "e": [-1, 5, END], "i": [2, 1, 3]}, reason="no weight reads it")
    turned = "int64[2] s, int64[2] e, int64[2] i, int64[2] t"
    for name, at in (("by the end", -1), ("by a number", 7)):
        yield image(f"Slice backwards, {name}", "p = Slice (h, s, e, i, t) r = Concat <axis = 1> (p, h)", 8, turned, 16,
                    weights={"s": [at, -1], "e": [-END, -END], "i": [1, 3], "t": [-1, -1]})
    yield image("Slice of some backwards fixes", "r = Slice (h, s, e, i, t)", 0, turned, 7, weights={"s": [6, -1], "e": [-END, -END], "i": [1, 3], "t": [-1, -1]},
                reason="takes every other channel")
    combed = "int64[1] s, int64[1] o, int64[1] e, int64[1] i, int64[1] t"
    for start, end, by, channels in ((0, 8, 2, 4), (-8, -1, 2, 4), (2, 7, 4, 2), (-7, 8, 2, 0), (2, 8, 2, 0), (0, 6, 2, 0), (1, 8, 3, 0)):
        yield image(f"Slice from {start} to {end} by {by}{'' if channels else ' fixes'}", "r = Slice (h, s, e, i, t)", channels, combed,
                    len(range(*slice(start, end, by).indices(8))), weights={"s": [start], "o": [1], "e": [end], "i": [1], "t": [by]},
                    reason="" if channels else "takes every other channel")
    for name, join, channels in (("a gate", "g = Sigmoid (q) r = Mul (p, g)", 4), ("channels", "r = Concat <axis = 1> (q, p)", 8)):
        yield image(f"halves that lie in turn, as {name}", f"p = Slice (h, s, e, i, t) q = Slice (h, o, e, i, t) {join}", 4, combed, channels,
                    weights={"s": [0], "o": [1], "e": [END], "i": [1], "t": [2]})
    yield image("Slice of one channel", "q = Slice (h, s, e, i) p = Slice (h, e, k, i) g = Sigmoid (q) r = Mul (p, g)", 5,
                "int64[1] s, int64[1] e, int64[1] k, int64[1] i", 5, weights={"s": [2], "e": [3], "k": [END], "i": [1]}, reason="takes one channel of it")
    yield image("Gather permutes", "r = Gather <axis = 1> (h, i)", 8, "int64[8] i", weights={"i": [7, 1, 5, 3, 4, 2, -8, 6]})
    yield image("Gather takes some, one twice", "r = Gather <axis = 1> (h, i)", 2, "int64[3] i", 3, weights={"i": [5, 1, 5]},
                reason="no weight reads it")
    yield image("Gather of one fixes that one", "q = Gather <axis = 1> (h, i) p = Unsqueeze (q, a) r = Add (h, p)", 7, "int64 i, int64[1] a",
                weights={"i": 2, "a": [1]}, reason="picks from it")
    for name, places, channels in (("a column", [[-1], [2], [3]], 8), ("a table fixes those", [[-1, 2], [2, 3]], 5)):
        yield image(f"Gather by {name}", "q = Gather <axis = 1> (h, i) p = ReduceSum <keepdims = 0> (q, a) r = Concat <axis = 1> (h, p)", channels,
                    f"int64[{len(places)},{len(places[0])}] i, int64[1] a", 8 + len(places), weights={"i": places, "a": [2]})
    for name, places, channels in (("a column", [[-1], [2], [2]], 8), ("a single place fixes that one", [[5]], 7)):
        yield image(f"GatherND by {name}", "t = Transpose <perm = [1,0,2,3]> (h) q = GatherND (t, i) u = Transpose <perm = [1,0,2,3]> (q) r = Concat <axis = 1> (h, u)",
                    channels, f"int64[{len(places)},1] i", 8 + len(places), weights={"i": places})
    yield Row("embedding", """(int64[N,5] x) => (float[N,5,4] y) <float[10,8] e, float[8,4] v>
        { h = Gather (e, x) r = Relu (h) y = MatMul (r, v) }""", 8)
    yield Row("an embedding that is the head too", """(int64[N,5] x) => (float[N,5,10] y) <float[10,8] e>
        { h = Gather (e, x) r = Relu (h) t = Transpose (e) y = MatMul (r, t) }""", 8)


def recurrent() -> Iterator[Row]:
    """Recurrent layers in both directions."""
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for way, ways in (("forward", 1), ("bidirectional", 2)):
            yield Row(f"{op}, {way}", f"""(float[5,N,6] x) => (float[5,N,4] y) <float[{ways},{gates * 8},6] w,
                float[{ways},{gates * 8},8] u, float[{ways},{gates * 16}] b, int64[3] s, float[{ways * 8},4] v>
                {{ h = {op} <hidden_size = 8, direction = "{way}"> (x, w, u, b) t = Transpose <perm = [0,2,1,3]> (h) r = Reshape (t, s)
                y = MatMul (r, v) }}""", 8, weights={"s": [0, 0, ways * 8]})
        yield Row(f"{op}, stacked, the last state", f"""(float[T,N,3] x) => (float[1,N,4] y) <float[1,{gates * 8},3] w,
            float[1,{gates * 8},8] u, float[1,{gates * 5},8] p, float[1,{gates * 5},5] q, float[5,4] v, int64[1] a>
            {{ h = {op} <hidden_size = 8> (x, w, u) s = Squeeze (h, a) , t = {op} <hidden_size = 5> (s, p, q) y = MatMul (t, v) }}""", 13,
            weights={"a": [1]})
    yield Row("LSTM, peepholes", """(float[5,N,6] x) => (float[5,1,N,4] y) <float[1,32,6] w, float[1,32,8] u, float[1,64] b, float[1,24] p, float[8,4] v>
        { h = LSTM <hidden_size = 8> (x, w, u, b, , , , p) y = MatMul (h, v) }""", 8)
    yield Row("GRU behind a convolution", """(float[N,3,9] x) => (float[9,1,N,4] y) <float[7,3,1] c, float[1,24,7] w, float[1,24,8] u, float[1,48] b, float[8,4] v>
        { g = Conv (x, c) t = Transpose <perm = [2,0,1]> (g) h = GRU <hidden_size = 8, linear_before_reset = 1> (t, w, u, b) y = MatMul (h, v) }""", 15)
    yield Row("LSTM with a constant state", """(float[5,1,6] x) => (float[5,1,1,4] y) <float[1,32,6] w, float[1,32,8] u, float[1,1,8] s, float[1,1,8] t, float[8,4] v>
        { h = LSTM <hidden_size = 8> (x, w, u, , , s, t) y = MatMul (h, v) }""", 8)
    yield Row("LSTM with a state from outside", """(float[5,1,6] x, float[1,1,8] s0) => (float[5,1,1,8] y) <float[1,32,6] w, float[1,32,8] u>
        { y = LSTM <hidden_size = 8> (x, w, u, , , s0, s0) }""", 0, "first state")
    yield Row("two LSTMs, their last states alone", """(float[5,N,6] x) => (float[1,N,4] y)
        <float[1,32,6] w, float[1,32,8] u, float[1,20,6] p, float[1,20,5] q, float[13,4] v>
        { , g = LSTM <hidden_size = 8> (x, w, u) , h = LSTM <hidden_size = 5> (x, p, q) r = Concat <axis = 2> (g, h) y = MatMul (r, v) }""", 13)


def files() -> Iterator[Row]:
    """Oddities of files."""
    yield image("Constant nodes", "k = Constant <value = float[1] {2.0}> () r = Mul (h, k)")
    yield image("a Constant node as a kernel", "k = Constant <value = float[2,8,1,1] {1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}> () r = Conv (h, k)", 10, "", 2)
    yield image("Constant nodes of whole numbers", """f = Constant <value_ints = [0,2,4,6,6]> () g = Constant <value_ints = [0,8,6,6]> ()
        q = Reshape (h, f) t = Transpose <perm = [0,2,1,3,4]> (q) r = Reshape (t, g)""", 4)
    yield flat("a Constant node of plain floats", "k = Constant <value_floats = [1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0]> () r = Mul (h, k)")
    for ir, opset in ((3, 8), (4, 9)):
        yield image(f"IR {ir}", "k = Constant <value = float[1] {2.0}> () r = Mul (h, k)", ir=ir, opset=opset)
        yield image(f"IR {ir}, a shuffle and a bias stored once", """k = Conv (h, u, b) q = Reshape (k, f) t = Transpose <perm = [0,2,1,3,4]> (q)
            r = Reshape (t, g)""", 12, "float[8,8,1,1] u, int64[5] f, int64[4] g", weights={"f": [0, 2, 4, 6, 6], "g": [0, 8, 6, 6]}, ir=ir, opset=opset)
    yield image("an unused node", "u = Conv (h, k) r = Tanh (h)", 8, "float[5,8,1,1] k", reason="no weight reads it")
    yield image("Identity of a weight", "k = Identity (u) r = Conv (h, k)", 16, "float[8,8,1,1] u")
    yield image("quantised weights", "k = DequantizeLinear <axis = 0> (u, s, z) r = Conv (h, k)", 16,
                "int8[8,8,1,1] u, float[8] s, int8[8] z", weights={"u": np.arange(-32, 32), "s": np.full(8, 0.02), "z": np.zeros(8)})
    yield image("quantised weights, off centre, fix", "k = DequantizeLinear <axis = 0> (u, s, z) r = Conv (h, k)", 8,
                "uint8[8,8,1,1] u, float[8] s, uint8[8] z", weights={"u": np.arange(64), "s": np.full(8, 0.02), "z": np.full(8, 7)},
                reason="a weight that is not zero where its sources are")
    yield flat("a quantised bias, off centre", "k = DequantizeLinear <axis = 0> (u, s, z) r = Add (h, k)", 8, "uint8[8] u, float[8] s, uint8[8] z",
               weights={"u": np.arange(8) * 9, "s": np.full(8, 0.02), "z": np.full(8, 7)})
    yield image("quantised weights of one scale", "k = DequantizeLinear (u, s, z) r = Conv (h, k)", 16, "uint8[8,8,1,1] u, float s, uint8 z",
                weights={"u": np.arange(64), "s": 0.02, "z": 0})
    yield image("quantised activations", "q = QuantizeLinear (h, s, z) r = DequantizeLinear (q, s, z)", 8, "float s, uint8 z",
                weights={"s": 0.05, "z": 128})
    yield Row("float16", """(float16[N,3,6,6] x) => (float16[N,4,6,6] y) <float16[8,3,3,3] w, float16[8] b, float16[4,8,1,1] v>
        { h = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu (h) y = Conv (r, v) }""", 8, tolerance=1e-2)
    yield Row("float64", """(double[N,6] x) => (double[N,4] y) <double[6,8] w, double[8] b, double[8,4] v>
        { g = MatMul (x, w) h = Add (g, b) r = Relu (h) y = MatMul (r, v) }""", 8)
    yield Row("two inputs, two outputs", """(float[N,3,6,6] x, float[N,3,6,6] z) => (float[N,4,6,6] y, float[N,8,6,6] p)
        <float[8,3,1,1] w, float[8,3,1,1] u, float[4,8,1,1] v>
        { h = Conv (x, w) p = Conv (z, u) r = Add (h, p) y = Conv (r, v) }""", 0, "it is the model's output 'p'")
    yield Row("two inputs, two heads", """(float[N,3,6,6] x, float[N,3,6,6] z) => (float[N,4,6,6] y, float[N,2,6,6] p)
        <float[8,3,1,1] w, float[8,3,1,1] u, float[4,8,1,1] v, float[2,8,1,1] k>
        { h = Conv (x, w) q = Conv (z, u) r = Add (h, q) y = Conv (r, v) p = Conv (h, k) }""", 8)
    branches = "then_branch = a () => (float[N,5,8] o) { o = Relu (p) }, else_branch = b () => (float[N,5,8] q) { q = Tanh (p) }"
    yield flat("If fixes what its branches read", f"p = MatMul (h, k) n = Size (x) t = Cast <to = 9> (n) r = If (t) <{branches}>", 8,
               "float[8,8] k", reason="reads it inside a subgraph")
    yield flat("an If by a constant is no weight", f"p = MatMul (h, k) q = If (t) <{branches}> r = MatMul (q, u)", 16,
               "float[8,8] k, float[8,8] u, bool t", weights={"t": True}, reason="reads it inside a subgraph")
    ours = ', "com.microsoft" : 1'
    for op in ("Gelu", "QuickGelu", "FastGelu"):
        yield flat(f"{op} as onnxruntime saves it", f"r = com.microsoft.{op} (h)", domains=ours)
    yield flat("BiasGelu as onnxruntime saves it", "r = com.microsoft.BiasGelu (h, k)", 8, "float[8] k", domains=ours)
    yield image("FusedConv as onnxruntime saves it", """q = com.microsoft.FusedConv <activation = "Relu", pads = [1,1,1,1]> (h, k, l, h)
        r = Relu (q)""", 8, "float[8,8,3,3] k, float[8] l", domains=ours)
    yield Row("FusedGemm as onnxruntime saves it", """(float[N,6] x) => (float[N,4] y) <float[6,8] w, float[8] b, float[8,4] v>
        { h = com.microsoft.FusedGemm <activation = "Relu"> (x, w, b) y = Gemm (h, v) }""", 8, domains=ours)
    yield flat("FusedMatMul as onnxruntime saves it", """s = com.microsoft.FusedMatMul <alpha = 0.1, transB = 1> (h, h) p = Softmax (s)
        r = com.microsoft.FusedMatMul <transA = 1> (p, h)""", 8, domains=ours)
    yield flat("FusedMatMul by a matrix that lies flipped", "r = com.microsoft.FusedMatMul <transB = 1> (h, k)", 17, "float[9,8] k", 9,
               domains=ours)
    yield flat("another domain's operator of the same name fixes", "r = com.microsoft.Trilu (h)", 0, domains=', "com.microsoft" : 1',
               reason="has no rule yet")
    yield image("names that look like ours", """[a] p, q = Split <axis = 1> (h) [s] s = Conv (p, u) ["s#2"] t = Conv (q, o) z = Add (s, t)
        l, m = Split <axis = 1> (z) i = Conv (l, k) j = Conv (m, n) r = Add (i, j)""", 24,
        "float[8,4,1,1] u, float[8,4,1,1] o, float[8,4,1,1] k, float[8,4,1,1] n")
    layer = '<opset_import: ["" : 17], domain: "own"> layer (a, k, c) => (r) { m = MatMul (a, k) n = Add (m, c) r = Relu (n) }'
    heads = "(float[N,6] x) => (float[N,4] y) <float[6,8] w, float[8,8] k, float[8] b, float[8,4] v> { g = own.layer (x, w, b) h = own.layer (g, k, b)"
    yield Row("functions that share a bias", f"{heads} y = MatMul (h, v) }} {layer}", 16, domains=', "own" : 1')
    yield Row("functions that share a fill", f"{heads} r = own.layer (h, k, b) y = MatMul (r, v) }} {layer}", 24, domains=', "own" : 1',
              weights={"k": np.full((8, 8), 0.1)})
    dead = layer.replace("r = Relu", "d = MatMul (m, c) r = Relu")
    yield Row("functions that compute what nothing reads", f"{heads} r = own.layer (h, k, b) y = MatMul (r, v) }} {dead}", 24,
              domains=', "own" : 1', weights={"k": np.full((8, 8), 0.1)})
    gate = '<opset_import: ["" : 17], domain: "own"> gate (a, b, k) => (r) { p = MatMul (a, k) q = MatMul (b, k) r = Add (p, q) }'
    streams = "(float[N,6] x) => (float[N] y) <float[6,8] w, float[6,8] u, float[8] k> { g = MatMul (x, w) p = Relu (g) h = MatMul (x, u) q = Tanh (h)"
    yield Row("a function whose vector reads two streams", f"{streams} y = own.gate (p, q, k) }} {gate}", 8, domains=', "own" : 1')
    yield Row("two calls whose vector reads two streams each", f"""{streams} e = MatMul (x, w) s = Sigmoid (e) m = own.gate (p, q, k)
        n = own.gate (s, s, k) y = Add (m, n) }} {gate}""", 8, domains=', "own" : 1')


def shapes() -> list[Row]:
    """All of this file's rows."""
    return [*space(), *padding(), *order(), *runtime(), *selection(), *places(), *recurrent(), *files()]
