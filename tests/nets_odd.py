"""The table's third part: what an exhaustive hunt for wrong cuts has found; each was wrong, refused or broken once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from nets import Row, flat, image

END = 2**62

# One row of the table is one statement, however long.
# fmt: off


def made() -> Iterator[Row]:
    """Weights that folding makes: no plan can name them, so what they read must be zero by itself."""
    yield image("a weight cast from integers", "k = Cast <to = 1> (u) l = Mul (k, s) r = Conv (h, l)", 16, "int8[8,8,1,1] u, float s",
                weights={"u": np.arange(-32, 32), "s": 0.02})
    yield image("a filled weight", "k = ConstantOfShape <value = float[1] {0.3}> (s) r = Conv (h, k)", 16, "int64[4] s",
                weights={"s": [8, 8, 1, 1]})
    yield flat("a matrix cast from integers behind Exp", "e = Exp (h) k = Cast <to = 1> (u) r = MatMul (e, k)", 8, "int8[8,8] u",
               weights={"u": np.arange(-32, 32)}, reason="not zero where its sources are")
    yield Row("a Constant of floats that reads", """(float[N,5,6] x) => (float[N,5] y) <float[6,8] w> { h = MatMul (x, w) r = Relu (h)
        k = Constant <value_floats = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]> () y = MatMul (r, k) }""", 8)


def zeros() -> Iterator[Row]:
    """What is and what is not zero where its sources are."""
    wide = "t = Transpose <perm = [0,2,1]> (q) m = MatMul (q, t) r = MatMul (m, h)"
    yield image("a residual with a dense convolution", "q = Conv (h, k) s = Exp (q) r = Add (h, s)", 8, "float[8,8,1,1] k")
    yield Row("a residual with a grouped convolution, contracted", """(float[N,3,6,6] x) => (float[N,4,36] y) <float[8,3,3,3] w, float[8] b,
        float[8,4,1,1] k, float[4,36] v, int64[3] s> { h = Conv <pads = [1,1,1,1]> (x, w, b) g = Conv <group = 2> (h, k) r = Add (h, g)
        f = Reshape (r, s) t = Transpose <perm = [0,2,1]> (f) q = MatMul (t, f) y = MatMul (v, q) }""", 4, weights={"s": [0, 8, -1]})
    yield flat("Clip around zero, contracted", f"q = Clip (h, lo, hi) {wide}", 8, "float lo, float hi", weights={"lo": 0.0, "hi": 6.0})
    yield flat("Clip above zero, contracted", f"q = Clip (h, lo, hi) {wide}", 0, "float lo, float hi", weights={"lo": 0.1, "hi": 6.0})
    yield flat("the mask of a Dropout, contracted", """d, mask = Dropout (h) q = Cast <to = 1> (mask) t = Transpose <perm = [0,2,1]> (q)
               m = MatMul (q, t) r = MatMul (m, h)""", 0)
    for zero in (0, 3):
        yield flat(f"a quantised activation with zero point {zero}, contracted", f"""p = QuantizeLinear (h, s, z) q = DequantizeLinear (p, s, z)
                   {wide}""", 8, "float s, int8 z", weights={"s": 0.05, "z": zero})
    yield flat("two zero points, contracted", f"p = QuantizeLinear (h, s, z) q = DequantizeLinear (p, s, o) {wide}", 0,
               "float s, int8 z, int8 o", weights={"s": 0.05, "z": 3, "o": 4})
    for name, divisor, channels in (("itself", "d = Identity (h)", 0), ("its sum over positions", "p = Relu (h) d = ReduceSum (p, a)", 0),
                                    ("its length over positions, and a little", "p = ReduceL2 <axes = [1]> (h) d = Clip (p, lo)", 8),
                                    ("its deviation over positions, and a little", "p = Mul (h, h) n = ReduceMean <axes = [1]> (p) o = Add (n, lo) d = Sqrt (o)", 8)):
        yield flat(f"channels divided by {name}, contracted", f"{divisor} q = Div (h, d) {wide}", channels, "float lo, int64[1] a", weights={"lo": 1e-3, "a": [1]},
                   reason="" if channels else "is divided by")
    yield flat("keys divided by their sum, where the queries are masked", """q = MatMul (h, k) z = MatMul (h, l) p = Abs (z) s = ReduceSum (p, a) d = Div (p, s)
               t = Transpose <perm = [0,2,1]> (d) m = MatMul (t, h) r = MatMul (q, m)""", 16, "float[8,8] k, float[8,8] l, int64[1] a", weights={"a": [1]})
    yield flat("channels divided by themselves beside a contraction", "d = Div (h, h) q = Relu (h) t = Transpose <perm = [0,2,1]> (q) m = MatMul (q, t) "
               "n = MatMul (m, h) r = Add (n, d)", 0, reason="is divided by")


def sums() -> Iterator[Row]:
    """What adds channels up: a zero adds nothing."""
    one, told = "int64[1] a", "not zero where its weights are"
    for name, body, channels in (("a sum", "q = ReduceSum (h, a) r = Add (h, q)", 8), ("a sum of absolutes", "q = ReduceL1 (h, a) r = Mul (h, q)", 8),
                                 ("a sum of squares", "q = ReduceSumSquare (h, a) r = Mul (h, q)", 8), ("the length", "q = ReduceL2 (h, a) r = Div (h, q)", 8),
                                 ("the length, at once,", "r = LpNormalization <axis = 1> (h)", 8), ("the length of what is never zero", "q = Sigmoid (h) r = LpNormalization <axis = 1> (q)", 0),
                                 ("a sum of what is never zero", "p = Exp (h) q = ReduceSum (p, a) r = Add (h, q)", 0)):
        yield image(f"{name} over channels{'' if channels else ' fixes'}", body, channels, one, weights={"a": [1]}, reason="" if channels else told, opset=18)
    yield flat("Einsum that sums over channels", 'q = Einsum <equation = "nti->nt"> (h) p = Unsqueeze (q, a) r = Add (h, p)', 8, one, weights={"a": [2]})
    yield flat("channels that an Einsum makes, contracted", """q = Einsum <equation = "nti,io->nto"> (h, k) s = Einsum <equation = "nto,nuo->ntu"> (q, q)
               r = Einsum <equation = "ntu,nui->nti"> (s, h)""", 17, "float[8,9] k")
    yield flat("channels that an Einsum makes of what is never zero, contracted", """e = Exp (h) d = Sigmoid (h) q = Einsum <equation = "nti,nti->nti"> (e, d)
               s = Einsum <equation = "nti,nui->ntu"> (q, d) r = Einsum <equation = "ntu,nui->nti"> (s, h)""", 0, reason="neither of which is zero")
    yield flat("channels that GatherND picks, contracted", """t = Transpose <perm = [2,0,1]> (h) k = GatherND (t, i) u = Transpose <perm = [1,2,0]> (k)
               d = Transpose <perm = [0,2,1]> (u) s = MatMul (u, d) p = Softmax (s) r = MatMul (p, h)""", 8, "int64[4,1] i", weights={"i": [[7], [2], [2], [0]]})
    yield Row("attention by Einsum", """(float[N,5,6] x) => (float[N,5,6] y) <float[6,2,4] wq, float[6,2,4] wk, float[6,2,4] wv, float[2,4,6] wo>
        { q = Einsum <equation = "ntd,dhk->nthk"> (x, wq) k = Einsum <equation = "ntd,dhk->nthk"> (x, wk) v = Einsum <equation = "ntd,dhk->nthk"> (x, wv)
        s = Einsum <equation = "nqhk,nvhk->nhqv"> (q, k) a = Softmax (s) z = Einsum <equation = "nhqv,nvhk->nqhk"> (a, v)
        y = Einsum <equation = "nqhk,hkd->nqd"> (z, wo) }""", 10)
    for name, third, channels in (("three", "c = MatMul (x, k)", 8), ("two and a weight", "c = Exp (b)", 8)):
        yield Row(f"Einsum of {name} that sums over channels", f"""(float[N,6] x) => (float[N] y) <float[6,8] w, float[6,8] k, float[8] l>
            {{ a = MatMul (x, w) b = MatMul (x, k) {third} y = Einsum <equation = "nd,d,nd->n"> (a, {"l" if "weight" in name else "b"}, c) }}""".replace(
            "nd,d,nd", "nd,d,nd" if "weight" in name else "nd,nd,nd"), channels)
    yield Row("a factorisation machine", """(float[N,5,6] x) => (float[N,1] y) <float[6,8] w, int64[1] a> { h = MatMul (x, w) s = ReduceSum <keepdims = 0> (h, a)
        p = Mul (s, s) q = Mul (h, h) t = ReduceSum <keepdims = 0> (q, a) d = Sub (p, t) y = ReduceSum (d, a) }""", 8, weights={"a": [1]})
    yield Row("the cosine of two towers", """(float[N,6] x, float[N,6] z) => (float[N] y) <float[6,8] w, float[6,8] k, int64[1] a> { h = MatMul (x, w) g = MatMul (z, k)
        p = LpNormalization (h) q = LpNormalization (g) m = Mul (p, q) y = ReduceSum <keepdims = 0> (m, a) }""", 8, weights={"a": [1]})
    for name, body in (("its length", "d = ReduceL2 <axes = [1,2,3]> (k)"), ("the root of its squares", "p = Pow (k, two) q = ReduceSum (p, a) d = Sqrt (q)")):
        yield image(f"a weight divided by {name}", f"{body} e = Div (k, d) f = Mul (e, s) r = Conv (h, f)", 16,
                    "float[8,8,3,3] k, float[8,1,1,1] s, float two, int64[3] a", weights={"two": 2, "a": [1, 2, 3]})


def along() -> Iterator[Row]:
    """Channels on an axis that a node runs along, indexes by or takes a softmax over."""
    yield Row("channels as the time of an LSTM", """(float[1,3,6] x) => (float[1,4,5] y) <float[8,3,1] w, float[1,20,6] p, float[1,20,5] q,
        int64[1] one, float[4,8,1] v> { h = Conv (x, w) t = Transpose <perm = [1,0,2]> (h) l = LSTM <hidden_size = 5> (t, p, q)
        s = Squeeze (l, one) u = Transpose <perm = [1,0,2]> (s) y = Conv (u, v) }""", 0, "runs along it", weights={"one": [1]})
    yield Row("channels as the keys of an Attention", """(float[1,3,8] x) => (float[1,3,8] y) <float[8,3,1] w, float[8,8] k>
        { h = Conv (x, w) z = MatMul (x, k) y = Attention <q_num_heads = 2, kv_num_heads = 2> (z, h, h) }""", 0, "softmax", opset=23, ir=11)
    yield flat("channels that index", "i = Cast <to = 7> (h) j = Gather (k, i) r = ReduceSum <keepdims = 0> (j, m)", 2, "float[3,2] k, int64[1] m",
               weights={"m": [-1], "w": np.zeros((6, 8)), "b": [0, 1, 2, 0, 1, 2, 0, 1]}, reason="is indexed by it")
    yield flat("Slice by 32-bit bounds", "p = Slice (h, a, s, i) q = Slice (h, s, e, i) t = Relu (q) r = Concat <axis = 2> (t, p)", 8,
               "int32[1] a, int32[1] s, int32[1] e, int32[1] i", weights={"a": [0], "s": [3], "e": [8], "i": [2]})


def run_time() -> Iterator[Row]:
    """Sizes, equations and amounts that leave something to the run."""
    yield Row("a class token stretched over the batch", """(float[N,5,6] x) => (float[N,6,4] y) <float[6,8] w, float[1,1,8] c, int64[1] z, int64[1] o,
        int64[1] m, int64[3] ones, float[8,4] v> { h = MatMul (x, w) s = Shape (h) n = Slice (s, z, o) t = Concat <axis = 0> (n, m, m)
        e = Equal (t, m) f = Where (e, ones, t) k = Expand (c, f) r = Concat <axis = 1> (k, h) y = MatMul (r, v) }""", 8,
        weights={"z": [0], "o": [1], "m": [-1], "ones": [1, 1, 1]})
    yield flat("Einsum with an ellipsis", 'r = Einsum <equation = "...k,kj->...j"> (h, k)', 16, "float[8,8] k")
    yield flat("Einsum without an output", 'r = Einsum <equation = "abk,kz"> (h, k)', 16, "float[8,8] k")
    for length, channels in (("T", 0), ("1", 8)):
        yield Row(f"a Reshape that scrambles over a length of {length}", f"""(float[N,{length},3] x) => (float[N,P,4] y) <float[3,8] w, int64[3] s, float[8,4] v>
            {{ h = MatMul (x, w) r = Reshape (h, s) t = Transpose <perm = [0,2,1]> (r) y = MatMul (t, v) }}""", channels,
            "" if channels else "at another batch or length", weights={"s": [0, 8, -1]})
    yield Row("a Reshape over an open length that keeps the channels apart", """(float[N,T,3] x) => (float[N,T,4] y) <float[3,8] w, int64[4] s, int64[3] t,
        float[8,4] v> { h = MatMul (x, w) r = Reshape (h, s) q = Relu (r) t3 = Reshape (q, t) y = MatMul (t3, v) }""", 4,
        weights={"s": [0, -1, 2, 4], "t": [0, -1, 8]})
    for name, last, why in (("a run", "Relu (u)", "puts it elsewhere"), ("no run", "Add (u, k)", "may put it elsewhere")):
        yield Row(f"a Reshape over a computed length that {name} tells", f"""(float[N,T,3] x) => (float[N,P,4] y) <float[3,8] w, int64 z, int64 o, int64[1] a,
            int64[1] e, float[8,4] v, float[6,4] k> {{ h = MatMul (x, w) s = Shape (h) n = Gather (s, z) t = Gather (s, o) d = Div (t, o)
            nu = Unsqueeze (n, a) du = Unsqueeze (d, a) c = Concat <axis = 0> (nu, e, du) q = Reshape (h, c) r = Transpose <perm = [0,2,1]> (q)
            u = MatMul (r, v) y = {last} }}""", 0, f"{why} at another batch or length", weights={"z": 0, "o": 1, "a": 0, "e": 8})
    yield Row("positions that only the assumed length lets stretch", """(float[N,T,6] x) => (float[N,P,3] y) <float[6,12] w, float[6,12] p, int64[6] i,
        float[6,6] l, float[6,6] k, float[12,3] v> { h = MatMul (x, w) e = Gather (p, i) s = Add (h, e) r = Relu (s) q = MatMul (l, r) t = Relu (q)
        u = MatMul (k, t) y = MatMul (u, v) }""", 18, "Add 's' ties it to an axis that cannot be cut", weights={"i": np.arange(6)})
    yield image("Pad by amounts of the run, axes known", """s = Shape (h) n = Slice (s, two, three) m = Sub (n, n) p = Concat <axis = 0> (z, m, z, m)
                r = Pad (h, p, , a)""", 8, "int64[1] z, int64[1] two, int64[1] three, int64[2] a", weights={"z": [0], "two": [2], "three": [3], "a": [2, 3]}, opset=18)
    yield Row("Pad by amounts of the run, where written zeros tell of the channels", """(float[N,3,H,W] x) => (float[N,4,P,Q] y) <float[8,3,1,1] w, float[4,8,1,1] v,
        int64[1] z, int64[1] two, int64[1] four, int64[8] i> { h = Conv (x, w) s = Shape (h) n = Slice (s, two, four) m = Div (n, n) a, b = Split (m)
        p = Concat <axis = 0> (z, a, b, z, z, a, b, z) q = Gather (p, i) c0, c1 = Split (q) k = Concat <axis = 0> (c0, c1) r = Pad (h, k) y = Conv (r, v) }""", 8,
        weights={"z": [0], "two": [2], "four": [4], "i": [0, 3, 1, 2, 4, 7, 5, 6]})
    yield image("Pad by amounts that are the same in every run, in 32 bits", """s = Shape (h) c2 = Cast <to = 6> (s) n = Slice (c2, z, o) k = Concat <axis = 0> (n, e)
                d = Slice (k, t, f) l = Slice (c2, t, f) m = Sub (d, l) a = Cast <to = 7> (m) p = Concat <axis = 0> (u, a, u, a) r = Pad (h, p)""", 8,
                "int64[1] z, int64[1] o, int64[1] t, int64[1] f, int32[3] e, int64[2] u", weights={"z": [0], "o": [1], "t": [2], "f": [4], "e": [8, 7, 8], "u": [0, 0]})
    yield image("a dense layer on the last of four axes, as Tensordot", """t = Transpose <perm = [0,2,3,1]> (h) s = Shape (t) c2 = Cast <to = 6> (s) g = Gather (c2, l)
                p = ReduceProd <keepdims = 0> (g) u = Unsqueeze (p, z) f = Gather (c2, i) m = ReduceProd <keepdims = 0> (f) a = Unsqueeze (m, z)
                k = Concat <axis = 0> (a, u) b2 = Cast <to = 7> (k) q = Reshape (t, b2) d = MatMul (q, e) n = Concat <axis = 0> (f, o) j = Cast <to = 7> (n)
                y2 = Reshape (d, j) r = Transpose <perm = [0,3,1,2]> (y2)""", 16, "float[8,8] e, int64[1] l, int64[1] z, int64[3] i, int32[1] o",
                weights={"l": [3], "z": [0], "i": [0, 1, 2], "o": [8]})
    for shape, channels in (([-1, 288], 8), ([-1, 6, 48], 8), ([-1, 12], 4), ([-1, 12, 24], 8)):
        yield Row(f"places of all samples merged with channels into {shape}", f"""(float[N,6,6,3] x) => (float[M,{'P,' * (len(shape) - 2)}4] y) <float[3,8] w,
            int64[2] s, int64[{len(shape)}] t, float[{shape[-1]},4] v> {{ q = Reshape (x, s) h = MatMul (q, w) f = Reshape (h, t) y = MatMul (f, v) }}""", channels,
            weights={"s": [-1, 3], "t": shape})
    yield image("a sequence of tensors of several shapes", """p = Conv (h, k) q = SplitToSequence <axis = 1> (p, s) a = SequenceAt (q, i)
                d = SequenceAt (q, j) r = Concat <axis = 1> (d, a)""", 8, "float[8,8,1,1] k, int64[2] s, int64 i, int64 j",
                weights={"s": [3, 5], "i": 0, "j": 1}, reason="SplitToSequence")
    yield image("one zero point for two layers", """kd = DequantizeLinear <axis = 0> (k, s, z) c1 = Conv (h, kd) ld = DequantizeLinear <axis = 0> (l, t, z)
                r = Conv (c1, ld)""", 24, "int8[8,8,1,1] k, int8[8,8,1,1] l, float[8] s, float[8] t, int8[8] z",
                weights={"k": np.arange(64) - 30, "l": 31 - np.arange(64), "s": np.full(8, 0.02), "t": np.full(8, 0.03), "z": np.zeros(8)})


def lengths() -> Iterator[Row]:
    """Axes of any length: where a channel lies on them, and how long they are, is another at every run."""
    registers = """(float[T,6] x) => (float[P,4] y) <float[6,8] w, float[3,8] e0, int64[3] j, float[8,4] v{}> {{ h = MatMul (x, w) p = Gather (e0, j) c = Concat <axis = 0> (p, h)
        t = Transpose (c) m = MatMul (t, c) o = MatMul (c, m) {} y = MatMul (r, v) }}"""
    slices, bounds = "r = Slice (o, s, e)", ", int64[1] s, int64[1] e"
    for name, body, extra, sizes in (("Slice from the end", slices, bounds, {"s": [-2], "e": [END]}), ("Slice to the end", slices, bounds, {"s": [2], "e": [END]}),
                                     ("Gather", "r = Gather <axis = 0> (o, i)", ", int64[2] i", {"i": [-1, -2]}), ("Split", "u, r = Split (o)", "", {})):
        yield Row(f"registers before tokens of any number, {name}", registers.format(extra, body), 8, "any length", weights={**sizes, "j": [0, 1, 2]},
                  opset=13 if name == "Split" else 17)
    for name, body, extra in (("Slice", "p = Slice (q, s, e)", "int64[1] s, int64[1] e"), ("Gather", "p = Gather <axis = 0> (q, i)", "int64[8] i")):
        yield image(f"{name} of channels among the samples fixes", f"q = Reshape (h, a) {body} r = Reshape (p, d)", 0,
                    f"int64[3] a, int64[4] d, {extra}", reason="an axis of any length",
                    weights={"s": [0], "e": [8], "i": list(range(8)), "a": [-1, 6, 6], "d": [-1, 8, 6, 6]})
    yield image("halves behind a Reshape to a size that is calculated", """n = Shape (x) d = Div (n, i) u = Slice (d, o, i) t = Concat <axis = 0> (u, e)
                q = Reshape (h, t) z = Relu (q) p, k = Split <axis = 1> (z) r = Concat <axis = 1> (k, p)""", 8,
                "int64[1] i, int64[1] o, int64[3] e", weights={"i": [1], "o": [0], "e": [8, 6, 6]})
    for opset, ways in ((8, 0), (9, 8)):
        for name, body, channels in (("a -1", "a = Reshape (h, s) q = Reshape (a, t)", 8), ("a 1 that stretches", "p = GlobalAveragePool (h) q = Expand (p, t)", ways)):
            yield image(f"{name} behind a Cast at opset {opset}", f"""n = Shape (x) d = Cast <to = 6> (n) l = Slice <starts = [0], ends = [1]> (d)
                k = Concat <axis = 0> (l, m, e, e) t = Cast <to = 7> (k) {body} r = Relu (q)""", channels, "int64[3] s, int32[1] m, int32[1] e", opset=opset,
                ir=opset - 5, weights={"s": [0, 48, 6], "m": -1 if name == "a -1" else 1, "e": 6}, reason="" if channels else "computed at run time")


def ones() -> Iterator[Row]:
    """An axis of a second input that has the length 1 where nobody says another, and six as the channels have when it runs."""
    second = """(float[N,3,6,6] x, float[N,K,6,6] z) => (float[N,4,6,6] y) <float[6,3,1,1] w, float[4,6,1,1] v{}> {{ h = Conv (x, w) {} y = Conv (r, v) }}"""
    for name, body, extra in (("Mul", "r = Mul (h, z)", ""), ("MatMul", "r = MatMul (h, z)", ""), ("Expand", "e = Expand (z, s) r = Mul (h, e)", ", int64[4] s")):
        yield Row(f"{name} of an axis that is 1 by chance fixes", second.format(extra, body), 0, "ties it to an axis that cannot be cut", weights={"s": [1, 6, 1, 1]})
    yield Row("Gemm with an offset that is 1 by chance fixes", """(float[N,5] x, float[N,K] z) => (float[N,4] y) <float[5,6] w, float[6,4] v>
        { h = Gemm (x, w, z) r = Relu (h) y = MatMul (r, v) }""", 0, "ties it to an axis that cannot be cut")
    yield Row("Attention with a mask whose heads are 1 by chance fixes", """(float[N,5,6] x, float[N,K,5,5] z) => (float[N,5,4] y) <float[6,12] k, float[6,12] l,
        float[6,12] m, float[12,4] v> { q = MatMul (x, k) p = MatMul (x, l) n = MatMul (x, m)
        r = Attention <q_num_heads = 6, kv_num_heads = 6> (q, p, n, z) y = MatMul (r, v) }""", 0, "ties it to an axis that cannot be cut", opset=23, ir=11)


def counted() -> Iterator[Row]:
    """Counts of channels, which are less in a cut model: as numbers, and as sizes of what keeps its own."""
    h, two = "h = Conv (x, w) n = Shape (h)", "float[8,3,1,1] w, float[4,8,1,1] v, float[4,16,1,1] k"
    one, sizes = "int64[1] i0, int64[1] i1, int64[1] i2, int64[1] i4", {"i0": [0], "i1": [1], "i2": [2], "i4": [4]}
    parts = "m = Identity (n) c = Slice (m, i1, i2) a = Slice (m, i0, i1) d = Slice (m, i2, i4)"
    for name, body in (("a shape", "s = Identity (n)"), ("a part of a shape", "s = Slice (n, i0, i2)")):
        yield Row(f"{name} as an output fixes", f"(float[N,3,6,6] x) => (float[N,4,6,6] y, int64[S] s) <{two}, {one}> {{ {h} {body} y = Conv (h, v) }}", 0,
                  "it is the model's output 's'", weights=sizes)
    branches = "then_branch = a () => (float[1] o) { g = Gather (n, i1) o = Cast <to = 1> (g) }, else_branch = b () => (float[1] q) { q = Cast <to = 1> (i1) }"
    yield image("a shape that a branch reads fixes", f"n = Shape (h) s = Size (x) t = Cast <to = 9> (s) g = If (t) <{branches}> r = Mul (h, g)", 0, "int64[1] i1",
                weights=sizes, reason="inside a subgraph")
    for name, z, body in (("Reshape", "288", "u = Reshape (z, n)"), ("Expand", "8,1,1", "u = Expand (z, n)"), ("Resize", "8,3,3", "u = Resize (z, , , n)"),
                          ("Slice", "8,7,7", "o = Sub (n, n) u = Slice (z, o, n)"), ("Slice of channels", "16,6,6", f"{parts} u = Slice (z, i0, c, i1)"),
                          ("Split", "16,6,6", f"{parts} e = Concat <axis = 0> (c, c) u, f = Split <axis = 1> (z, e)"),
                          ("Pad", "1,6,6", f"{parts} e = Concat <axis = 0> (i0, i0, i0, i0, i0, c, i0, i0) u = Pad (z, e)")):
        wide = "float[4,17,1,1] k" if name == "Pad" else "float[4,16,1,1] k"
        yield Row(f"{name} of an input by the channels of another tensor fixes", f"""(float[N,3,6,6] x, float[N,{z}] z) => (float[N,4,6,6] y)
            <{two.replace("float[4,16,1,1] k", wide)}, {one}> {{ {h} {body} r = Concat <axis = 1> (h, u) y = Conv (r, k) }}""", 0,
            "its channels" if name not in {"Reshape", "Expand", "Resize"} else "gives its length to another axis", weights=sizes)
    yield Row("Expand of an input to the channels of another tensor, apart, fixes", f"""(float[N,3,6,6] x, float[N,8,1,1] z) => (float[N,4,6,6] y, float[N,4,6,6] q)
        <{two}> {{ {h} u = Expand (z, n) y = Conv (h, v) q = Conv (u, v) }}""", 0, "gives its length to another axis")
    for name, body, channels in (("less than sixteen", "e = Sub (b16, c)", 0), ("at most eight", "f = Cast <to = 6> (c) g = Min (f, b8) e = Cast <to = 7> (g)", 0),
                                 ("a multiple of eight", "f = Add (c, i7) g = Div (f, i8) e = Mul (g, i8)", 0), ("itself", "f = Mul (i1, c) g = Sub (f, i0) e = Div (g, i1)", 8)):
        yield Row(f"a fill of as many channels as the count gives, {name}", f"""(float[N,3,6,6] x) => (float[N,4,6,6] y) <{two}, {one}, int64[1] i7, int64[1] i8,
            int64[1] b16, int32[1] b8> {{ {h} {parts} {body} t = Concat <axis = 0> (a, e, d) u = ConstantOfShape (t) r = Concat <axis = 1> (h, u) y = Conv (r, k) }}""",
            channels, "" if channels else "calculates with the number of its channels", weights={**sizes, "i7": [7], "i8": [8], "b16": [16], "b8": [8]})
    yield Row("a shape that is split and joined again", f"""(float[N,3,H,W] x) => (float[N,4,P,Q] y) <{two.split(", float[4,16", maxsplit=1)[0]}, int64[3] f>
        {{ {h} a, b, c, d = Split (n) q = Reshape (h, f) z = Relu (q) t = Concat <axis = 0> (a, b, c, d) r = Reshape (z, t) y = Conv (r, v) }}""", 8,
        weights={"f": [0, 8, -1]}, opset=13)
    for name, body, channels, why in (
            ("the batch, merged", "e = Mul (a, c) t = Concat <axis = 0> (e, i1, d) q = Reshape (h, t) z = Conv (q, p) r = Reshape (z, m)", 8, ""),
            ("positions, filled,", "f = Slice (d, i0, i1) e = Mul (f, c) t = Concat <axis = 0> (a, e) q = ConstantOfShape (t) g = ReduceSum (q) r = Add (h, g)", 0, "a number calculated"),
            ("channels", "e = Mul (c, c) f = Cast <to = 1> (e) g = ReduceSum (f) r = Mul (h, g)", 0, "calculates with")):
        yield Row(f"channels times {name}{'' if channels else ' fixes'}", f"""(float[N,3,6,6] x) => (float[N,4,6,6] y) <{two.split(", float[4,16", maxsplit=1)[0]}, float[1,1,1,1] p, {one}>
            {{ {h} {parts} {body} y = Conv (r, v) }}""", channels, why, weights=sizes)
    yield image("Expand to a shape whose channels no -1 stands for", """n = Shape (h) e = Equal (n, m) s = Where (e, o, n) k = Expand (z, s) r = Add (h, k)""", 8,
                "int64[4] m, int64[4] o, float z", weights={"m": [-1] * 4, "o": [1] * 4})


def statistics() -> Iterator[Row]:
    """The second output of a LayerNormalization, which has the channels that the first has."""
    for name, body, channels in (("its mean is an output", "z = Identity (m)", 0), ("its mean is read", "z = Conv (m, u)", 8)):
        yield Row(f"LayerNormalization over space, {name}", f"""(float[N,3,9] x) => (float[N,4,9] y, float[N,C,1] z) <float[8,3,1] w, float[8] b, float[9] s,
            float[4,8,1] v, float[2,8,1] u> {{ h = Conv (x, w, b) r, m = LayerNormalization (h, s) y = Conv (r, v) {body} }}""", channels,
            "" if channels else "it is the model's output 'z'")


def odd() -> list[Row]:
    """All of them."""
    return [*made(), *zeros(), *sums(), *along(), *run_time(), *lengths(), *ones(), *counted(), *statistics()]
