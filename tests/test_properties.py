"""Masked equals cut for networks and plans that hypothesis draws."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import Row
from oracle import delivered, difference, mispriced

from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import load

CHANNELS = (2, 4, 6, 8)
STEPS = (
    "conv",
    "grouped",
    "depthwise",
    "relu",
    "add",
    "concat",
    "split",
    "shuffle",
    "pool",
    "norm",
    "gate",
    "pad",
    "transpose",
)


class Writer:
    """Writes a network line by line; keeps the tensors made so far with their channels, all of one spatial size."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.lines, self.weights, self.fixed = draw, [], [], {}  # type: ignore[var-annotated]
        self.tensors: list[tuple[str, int]] = [("x", 3)]

    def weight(self, *shape: int, kind: str = "float", value: object = None) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(f"{kind}[{','.join(map(str, shape))}] {name}")
        if value is not None:
            self.fixed[name] = value
        return name

    def node(self, text: str, channels: int) -> None:
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        self.tensors.append((name, channels))

    def pick(self) -> tuple[str, int]:
        return self.draw(st.sampled_from(self.tensors[1:] or self.tensors))

    def conv(self, x: str, c: int, out: int, groups: int = 1) -> None:
        k = self.draw(st.sampled_from((1, 3)))
        w, b = self.weight(out, c // groups, k, k), self.weight(out)
        self.node(f"Conv <group = {groups}, pads = [{k // 2},{k // 2},{k // 2},{k // 2}]> ({x}, {w}, {b})", out)

    def step(self, kind: str) -> None:
        """Write one step, if it fits what is there."""
        x, c = self.pick()
        if kind == "conv" or x == "x":
            self.conv(x, c, self.draw(st.sampled_from(CHANNELS)))
        elif kind == "grouped" and c % 2 == 0:
            self.conv(x, c, self.draw(st.sampled_from(CHANNELS)), 2)
        elif kind == "depthwise":
            self.conv(x, c, c * self.draw(st.sampled_from((1, 2))), c)
        elif kind == "relu":
            self.node(f"{self.draw(st.sampled_from(('Relu', 'Tanh', 'Sigmoid', 'HardSwish')))} ({x})", c)
        elif kind == "add":
            y, d = self.pick()
            if c == d:
                self.node(f"{self.draw(st.sampled_from(('Add', 'Mul', 'Max')))} ({x}, {y})", c)
        elif kind == "concat":
            y, d = self.pick()
            self.node(f"Concat <axis = 1> ({x}, {y})", c + d)
        elif kind != "grouped":
            getattr(self, kind)(x, c)

    def split(self, x: str, c: int) -> None:
        if c == 1:
            return
        a = self.draw(st.integers(1, c - 1))
        s = self.weight(2, kind="int64", value=[a, c - a])
        self.lines.append(f"p{len(self.lines)}, q{len(self.lines)} = Split <axis = 1> ({x}, {s})")
        n = len(self.lines) - 1
        self.tensors += [(f"p{n}", a), (f"q{n}", c - a)]

    def shuffle(self, x: str, c: int) -> None:
        apart, back = (self.weight(len(v), kind="int64", value=v) for v in ([0, 2, c // 2, 4, 4], [0, c, 4, 4]))
        if c % 2 == 0:
            n = len(self.lines)
            self.lines.append(f"a{n} = Reshape ({x}, {apart}) b{n} = Transpose <perm = [0,2,1,3,4]> (a{n})")
            self.node(f"Reshape (b{n}, {back})", c)

    def pool(self, x: str, c: int) -> None:
        self.node(f"MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> ({x})", c)

    def norm(self, x: str, c: int) -> None:
        s, o, m = (self.weight(c) for _ in range(3))
        v = self.weight(c, value=np.arange(1, c + 1))
        self.node(f"BatchNormalization ({x}, {s}, {o}, {m}, {v})", c)

    def gate(self, x: str, c: int) -> None:
        n, w = len(self.lines), self.weight(c, c, 1, 1)
        self.lines.append(f"g{n} = GlobalAveragePool ({x}) h{n} = Conv (g{n}, {w}) s{n} = Sigmoid (h{n})")
        self.node(f"Mul ({x}, s{n})", c)

    def pad(self, x: str, c: int) -> None:
        a, b = self.draw(st.integers(0, 2)), self.draw(st.integers(0, 2))
        self.node(f"Pad ({x}, {self.weight(8, kind='int64', value=[0, a, 0, 0, 0, b, 0, 0])})", c + a + b)

    def transpose(self, x: str, c: int) -> None:
        n = len(self.lines)
        w = self.weight(c, 6)
        self.lines.append(f"a{n} = Transpose <perm = [0,2,3,1]> ({x}) b{n} = MatMul (a{n}, {w})")
        self.node(f"Transpose <perm = [0,3,1,2]> (b{n})", 6)

    def finish(self) -> Row:
        x, c = self.tensors[-1]
        w = self.weight(c * 16, 3)
        body = "\n".join(self.lines)
        weights = ", ".join(self.weights)
        text = f"(float[N,3,4,4] x) => (float[N,3] y) <{weights}> {{ {body} f = Flatten ({x}) y = MatMul (f, {w}) }}"
        return Row("drawn", text, 0, weights=self.fixed)


@st.composite
def networks(draw: st.DrawFn) -> Analysis:
    """A network of up to twelve steps."""
    writer = Writer(draw)
    writer.step("conv")
    for kind in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=12)):
        writer.step(kind)
    return analyse(load(writer.finish().model()))


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(networks(), st.data())
def test_masked_equals_cut(analysis: Analysis, data: st.DataObject) -> None:
    kept = {
        g.name: tuple(data.draw(st.sets(st.integers(0, g.channels - 1), min_size=1, max_size=g.channels)))
        for g in analysis.groups
    }
    assert difference(analysis, kept) <= 1e-4
    assert mispriced(analysis, kept, delivered(analysis, kept)) == []


class Attentive:
    """Writes a stream of width 8 through drawn blocks of attention and feed-forward, in the spellings that exporters use."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.writer, self.draw, self.stream = Writer(draw), draw, "x0"
        w, b = self.writer.weight(6, 8), self.writer.weight(8)
        self.add("m = MatMul (x, {w}) {out} = Add (m, {b})", w=w, b=b)

    def add(self, text: str, **names: str) -> str:
        """Write nodes whose tensors get a number of their own; returns the output."""
        n = len(self.writer.lines)
        out = f"o{n}"
        for name in (
            "m",
            "n",
            "a",
            "c",
            "d",
            "e",
            "f",
            "g",
            "q",
            "k",
            "z",
            "s",
            "p",
            "u",
            "q4",
            "k4",
            "z4",
            "qt",
            "kt",
            "zt",
        ):
            text = re.sub(rf"(?<![\w.]){name}(?=[ ,)])", f"{name}_{n}", text)
        self.writer.lines.append(text.format(out=out, x=self.stream, **names))
        self.stream = out
        return out

    def shape(self, *values: int) -> str:
        return self.writer.weight(len(values), kind="int64", value=list(values))

    def norm(self) -> None:
        one, two = self.writer.weight(8), self.writer.weight(8)
        if self.draw(st.booleans()):
            self.add("{out} = LayerNormalization ({x}, {one}, {two})", one=one, two=two)

    def attention(self) -> None:
        """Heads h of width d for q and k, v of the same; fused or apart; MatMul or Einsum; a bias on q or none."""
        before = self.stream
        self.norm()
        h, d = self.draw(st.sampled_from(((1, 4), (2, 2), (2, 4), (3, 2), (4, 2))))
        c, apart = h * d, self.shape(0, 0, h, d)
        if self.draw(st.booleans()):
            w, sizes = self.writer.weight(8, 3 * c), self.shape(c, c, c)
            text = "m = MatMul ({x}, {w}) q, k, z = Split <axis = 2> (m, {sizes})"
        else:
            w, sizes = self.writer.weight(8, c), self.writer.weight(8, c)
            third, bias = self.writer.weight(8, c), self.writer.weight(c)
            text = "m = MatMul ({x}, {w}) q = Add (m, {bias}) k = MatMul ({x}, {sizes}) z = MatMul ({x}, {third})"
            text = text.replace("{bias}", bias).replace("{third}", third)
        text += " ".join(f" {n}4 = Reshape ({n}, {apart}) {n}t = Transpose <perm = [0,2,1,3]> ({n}4)" for n in "qkz")
        if self.draw(st.booleans()):
            text += ' a = Einsum <equation = "bhid,bhjd->bhij"> (qt, kt) s = Softmax <axis = 3> (a)'
            text += ' p = Einsum <equation = "bhij,bhjd->bhid"> (s, zt)'
        else:
            text += " c = Transpose <perm = [0,1,3,2]> (kt) a = MatMul (qt, c) s = Softmax <axis = 3> (a) p = MatMul (s, zt)"
        text += " e = Transpose <perm = [0,2,1,3]> (p) f = Reshape (e, {back}) g = MatMul (f, {v}) {out} = Add ({before}, g)"
        back = self.shape(0, 0, c if self.draw(st.booleans()) else -1)
        v = self.writer.weight(c, 8)
        self.add(text, w=w, sizes=sizes, back=back, v=v, before=before)

    def feed_forward(self) -> None:
        before = self.stream
        self.norm()
        width = self.draw(st.sampled_from((2, 5, 12)))
        one, two, three = self.writer.weight(8, width), self.writer.weight(8, width), self.writer.weight(width, 8)
        gate = self.draw(st.sampled_from(("p = Gelu (m)", "u = MatMul ({x}, {two}) s = Sigmoid (u) p = Mul (m, s)")))
        self.add(
            "m = MatMul ({x}, {one}) " + gate + " f = MatMul (p, {three}) {out} = Add ({before}, f)",
            one=one, two=two, three=three, before=before,
        )  # fmt: skip

    def finish(self) -> Row:
        w = self.writer.weight(8, 3)
        text = f"(float[N,5,6] x) => (float[N,5,3] y) <{', '.join(self.writer.weights)}> {{ " + "\n".join(
            self.writer.lines
        )
        return Row("drawn", f"{text} y = MatMul ({self.stream}, {w}) }}", 0, weights=self.writer.fixed, opset=20)


@st.composite
def transformers(draw: st.DrawFn) -> Analysis:
    """A transformer of one to three blocks."""
    made = Attentive(draw)
    for kind in draw(st.lists(st.sampled_from(("attention", "feed_forward")), min_size=1, max_size=3)):
        getattr(made, kind)()
    return analyse(load(made.finish().model()))


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(transformers(), st.data())
def test_masked_equals_cut_for_transformers(analysis: Analysis, data: st.DataObject) -> None:
    kept = {
        g.name: tuple(data.draw(st.sets(st.integers(0, g.channels - 1), min_size=1, max_size=g.channels)))
        for g in analysis.groups
    }
    assert difference(analysis, kept) <= 1e-4
    assert mispriced(analysis, kept, delivered(analysis, kept)) == []
