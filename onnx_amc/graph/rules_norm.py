"""The operator table, continued: element by element, normalisations, recurrent layers, Einsum, quantisation, blocks."""

from __future__ import annotations

from functools import reduce

import numpy as np

from onnx_amc.graph.ledger import Axes, Tokens, number
from onnx_amc.graph.proto import spelled
from onnx_amc.graph.rules import Step, broadcast, contract, contract_axes, mark_params, read_by, rule

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)


@rule(*UNARY.split())
def unary(step: Step) -> list[Axes]:
    """Y = f(x), element by element."""
    if step.node.op_type != "Identity":
        mark_params(step)
    return [step.x(0) for _ in step.node.output]


ELEMENTWISE = (
    "Add Sub Mul Div Pow Mod Sum Mean Max Min PRelu Where And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual "
    "BitwiseAnd BitwiseOr BitwiseXor BitShift CastLike"
)


@rule(*ELEMENTWISE.split())
def elementwise(step: Step) -> list[Axes]:
    """Z = f(x, y), element by element with broadcasting."""
    mark_params(step)
    if step.attrs.get("broadcast") or "axis" in step.attrs:
        return step.fix_all("uses the broadcasting of opsets before 7")
    inputs = [0] if step.node.op_type == "CastLike" else [i for i in range(len(step.node.input)) if step.has(i)]
    return [broadcast(step, inputs, step.out_shape())]


@rule("BatchNormalization", "InstanceNormalization")
def normalise_channels(step: Step) -> list[Axes]:
    """Per-channel affine; the statistics live with the channel."""
    x = step.x(0)
    channels = x[1]
    for i in range(1, len(step.node.input)):
        step.book.mark(step.x(i)[0], "carries", step.key)
        channels = step.join(channels, step.x(i)[0])
    alone = step.node.op_type == "InstanceNormalization"
    trains = not alone and bool(step.attrs.get("training_mode") or any(step.node.output[1:]))
    out: list[Tokens | None] = []
    for i, tokens in enumerate(x):
        mixed = (i > 1 and (alone or trains)) or (i == 0 and trains)
        if mixed:
            step.loosen(tokens, "takes the statistics over it")
        out.append(channels if i == 1 else None if mixed and not step.book.approximate else tokens)
    return [tuple(out), *((channels,) for _ in step.node.output[1:])]


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_norm(step: Step) -> list[Axes]:
    """Every axis from `axis` on is read as a whole; the others pass."""
    x = step.x(0)
    first = int(step.attrs.get("axis", -1)) % max(len(x), 1)
    for tokens in x[first:]:
        step.loosen(tokens, "takes the statistics over it")
    mark_params(step)
    out = list(x)
    for i in range(1, len(step.node.input)):
        scales = step.x(i) if step.has(i) else ()
        for axis, tokens in zip(range(len(x) - len(scales), len(x)), scales, strict=True):
            if step.book.approximate and tokens is not None:
                out[axis] = step.join(out[axis], tokens)
            else:
                step.fix(tokens, "scales an axis that cannot be cut")
    statistics = (*x[:first], *(None for _ in x[first:]))
    return [tuple(out), *(statistics for _ in step.node.output[1:])]


@rule("GroupNormalization")
def group_norm(step: Step) -> list[Axes]:
    """Channels of a group share their statistics: whole groups go; of a single group, only approximately, any channel."""
    x, groups = step.x(0), int(step.attrs["num_groups"])
    for tokens in x[2:]:
        step.loosen(tokens, "takes the statistics over it")
    mark_params(step)
    channels, alone = x[1], groups == 1
    if alone:
        step.loosen(channels, "takes the statistics over it")
    elif channels is not None:
        first = channels.reshape(groups, -1)[:, 0]
        step.book.tie(channels.reshape(groups, -1), first[:, None])
        step.edit("num_groups", channels, number(first))
    for i in (1, 2):
        channels = step.join(channels, step.x(i)[0])
    return [(x[0], channels, *x[2:])]


@rule("DepthToSpace", "SpaceToDepth")
def blocks(step: Step) -> list[Axes]:
    """Channels move into space or back: the b x b channels of one pixel block live and die together."""
    x, size = step.x(0), int(step.attrs["blocksize"]) ** 2
    step.fix_each(x[2:], "shuffles it")
    tokens = x[1]
    if tokens is None:
        return [step.plain()]
    if step.node.op_type == "SpaceToDepth":
        out: Tokens = np.tile(tokens, size)
        return [(x[0], out, None, None)]
    crd = step.attrs.get("mode", b"DCR") in {b"CRD", "CRD"}
    block = tokens.reshape(-1, size) if crd else tokens.reshape(size, -1).T
    step.book.tie(block, block[:, :1])
    first = block[:, 0]
    if len(first) == 1:
        step.fix(first, "makes one channel of it")
        return [(x[0], None, None, None)]
    return [(x[0], first, None, None)]


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@rule("LSTM", "GRU", "RNN")
def recurrent(step: Step) -> list[Axes]:
    """A hidden unit is one row of every gate in W, R and B, one column of R, and the same in both directions."""
    kind, hidden = step.node.op_type, int(step.attrs["hidden_size"])
    gates = GATES[kind]
    if step.attrs.get("layout", 0) or not (step.is_param(1) and step.is_param(2)):
        return step.fix_all("has an unusual layout, or weights computed at run time")
    x, w, r = step.x(0), step.x(1), step.x(2)
    step.fix(x[0], "runs along it")
    if any(step.has(i) for i in (4, 5, 6)):
        step.fix(x[1], "starts from a state for each")
        step.fix_each((t for i in (5, 6) if step.has(i) for t in step.x(i)[:-1]), "starts from a state for each")
    contract_axes(step, x[2], w[2], 1, 0)
    unit = r[2]
    for tokens in (w[1], r[1]):
        step.book.mark(tokens, "produces", step.key)
        unit = _gatewise(step, tokens, unit, gates)
    if r[2] is not None:
        read_by(step, r[2], 2)
    if step.has(3):
        step.book.mark(step.x(3)[1], "produces", step.key)
        unit = _gatewise(step, step.x(3)[1], unit, 2 * gates)
    for i in (5, 6):
        if step.has(i):
            mark_params(step)
            unit = step.join(unit, step.x(i)[2], "takes its first state from an axis that cannot be cut")
    if step.has(7):
        step.book.mark(step.x(7)[1], "carries", step.key)
        unit = _gatewise(step, step.x(7)[1], unit, 3)
    if unit is not None and hidden > 1:
        step.edit("hidden_size", unit, number(unit))
    whole: Axes = (None, None, x[1], unit)
    last: Axes = (None, x[1], unit)
    return [whole, last, last][: len(step.node.output)]


def _gatewise(step: Step, tokens: Tokens | None, unit: Tokens | None, gates: int) -> Tokens | None:
    """Tie the rows of each gate to the hidden units."""
    if tokens is None or unit is None:
        return step.join(tokens, unit)
    step.book.tie(tokens.reshape(gates, -1), unit[None])
    return unit


@rule("Einsum")
def einsum(step: Step) -> list[Axes]:
    """Letters that stay are tied; a letter that goes is contracted."""
    operands, right = spelled(step.node, [len(step.shape(i)) for i in range(len(step.axes))])
    if any(len(set(o)) < len(o) for o in operands):
        return step.fix_all("has an equation that is not understood")
    axes: dict[str, Tokens | None] = {}
    for letter in dict.fromkeys("".join(operands)):
        holders = [i for i, o in enumerate(operands) if letter in o]
        tokens = [step.x(i)[operands[i].index(letter)] for i in holders]
        if letter in right:
            for i, t in zip(holders, tokens, strict=True):
                if step.is_param(i):
                    step.book.mark(t, "produces", step.key)
            axes[letter] = reduce(step.join, tokens)
        elif len(holders) == 1:
            step.add_up(holders[0], operands[holders[0]].index(letter), "sums over it")
        else:
            contract(step, holders, tokens)
    return [tuple(axes[letter] for letter in right)]


@rule("TopK")
def top_k(step: Step) -> list[Axes]:
    """The axis is sorted as a whole; the others pass."""
    out = step.without({int(step.attrs.get("axis", -1)) % len(step.x(0))}, "sorts it")
    return [out for _ in step.node.output]


@rule("QuantizeLinear", "DequantizeLinear")
def quantise(step: Step) -> list[Axes]:
    """Element by element; scales and zero points per channel live with the channel."""
    x = step.x(0)
    axis = int(step.attrs.get("axis", 1)) % max(len(x), 1)
    if step.attrs.get("block_size"):
        step.fix_all("quantises in blocks")
        return [x]
    out = list(x)
    for i in range(1, len(step.node.input)):
        if step.has(i) and len(step.shape(i)) == 1 and step.shape(i)[0] > 1:
            step.book.mark(step.x(i)[0], "carries", step.key)
            out[axis] = step.join(out[axis], step.x(i)[0])
    return [tuple(out)]
