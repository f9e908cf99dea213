"""The operator table, continued: operators that pool, reduce, mix, sample, pad, permute or reshape axes."""

from __future__ import annotations

import math

import numpy as np

from onnx_amc.graph.ledger import Axes, Owner, Tokens, numbers
from onnx_amc.graph.rules import Step, mark_params, normal, rule

# ---- space --------------------------------------------------------------------------------------------------------


@rule("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def pool(step: Step) -> list[Axes]:
    """Each channel is pooled by itself; what is pooled over at once is reduced over."""
    for tokens in step.x(0)[2:]:
        (step.loosen if step.node.op_type.startswith("Global") else step.fix)(tokens, "pools over it")
    outputs = {o.name for o in step.model.proto.graph.output}
    if any(o and (o in step.model.consumers or o in outputs) for o in step.node.output[1:]):
        step.fix(step.x(0)[1], "counts its channels in the places of the maxima")
    channels = step.x(0)[1]
    slides = int(np.prod(step.out_shape()[2:])) > 1
    if channels is not None and len(channels) % 8 == 0 and slides:
        step.book.blocked.append(channels)
    out = (*step.x(0)[:2], *((None,) * (len(step.shape(0)) - 2)))
    return [out for _ in step.node.output]


SUMS = frozenset({"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"})
"""Reductions to which a zero adds nothing."""


@rule("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSumSquare",
      "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin")  # fmt: skip
def reduce(step: Step) -> list[Axes]:
    """A channel that is reduced over is read without a weight, and stays unless it can be made zero; all others pass."""
    rank = len(step.shape(0))
    if step.node.op_type.startswith("Arg"):
        axes: list[int] | None = [int(step.attrs.get("axis", 0))]
    else:
        axes = step.setting("axes", 1)
        if axes is None and step.has(1):
            return step.fix_all("reduces over axes known at run time only")
        if not axes:
            axes = [] if step.attrs.get("noop_with_empty_axes") else list(range(rank))
    gone = set(normal(axes or [], rank))
    for axis in gone:
        if step.node.op_type.startswith("Arg"):
            step.fix(step.x(0)[axis], "reduces over it")
        elif step.node.op_type in SUMS:
            step.add_up(0, axis, "reduces over it")
        else:
            step.loosen(step.x(0)[axis], "reduces over it")
    if step.attrs.get("keepdims", 1):
        return [tuple(None if i in gone else t for i, t in enumerate(step.x(0)))]
    return [tuple(t for i, t in enumerate(step.x(0)) if i not in gone)]


@rule("Softmax", "LogSoftmax", "Hardmax", "LRN", "LpNormalization", "CumSum", "MeanVarianceNormalization")
def across(step: Step) -> list[Axes]:
    """The axis is read as a whole; before opset 13 a softmax flattens all axes from `axis` on."""
    x = step.x(0)
    rank = len(x)
    kind = step.node.op_type
    if kind == "LRN":
        mixed = {1}
    elif kind == "CumSum":
        at = step.const(1)
        mixed = set(range(rank)) if at is None else set(normal([int(at.reshape(-1)[0])], rank))
    elif kind == "MeanVarianceNormalization":
        mixed = set(normal([int(a) for a in step.attrs.get("axes", [0, 2, 3])], rank))
    else:
        old = step.model.opset < 13 and kind != "LpNormalization"
        axis = step.axis(1 if old else -1, rank)
        mixed = set(range(axis, rank)) if old else {axis}
    for i in mixed:
        if kind == "LpNormalization":
            step.add_up(0, i, "mixes its channels")
        elif kind in {"LRN", "MeanVarianceNormalization"}:
            step.loosen(x[i], "mixes its channels")
        else:
            step.fix(x[i], "mixes its channels")
    return [x for _ in step.node.output]


@rule("ReverseSequence")
def turned(step: Step) -> list[Axes]:
    """The time of each sample runs backwards, as far as the sample goes: channels lie on other axes."""
    axes = [int(step.attrs.get(name, usual)) for name, usual in (("batch_axis", 1), ("time_axis", 0))]
    step.fix_each(step.x(1), "turns as many as it says")
    return [step.without(normal(axes, len(step.shape(0))), "runs along it")]


@rule("Resize", "Upsample")
def resize(step: Step) -> list[Axes]:
    """Space is resampled; the channel axis must keep its length."""
    out: list[Tokens | None] = []
    before, after = step.shape(0), step.out_shape()
    axes = normal([int(a) for a in step.attrs.get("axes", range(len(before)))], len(before))
    sizes, same = step.const(3) if step.node.op_type == "Resize" else None, _same(step, len(axes))
    moving: list[tuple[int, Tokens]] = []
    for i, tokens in enumerate(step.x(0)):
        if tokens is not None and (before[i] != after[i] or (i in axes and not same[axes.index(i)])):
            step.fix(tokens, "resamples it")
            out.append(None)
            continue
        if tokens is not None and i in axes:
            moving.append((axes.index(i), tokens))
        out.append(tokens)
    if step.node.op_type == "Resize" and step.has(3):
        step.follow(3, moving, sizes, len(axes))
    return [tuple(out)]


def _same(step: Step, count: int) -> np.ndarray:
    """Whether each axis that a Resize names stays as it is if its length does: 8 x 1.1 is 8, but of other places."""
    slot = 2 if step.node.op_type == "Resize" and step.model.opset >= 11 else 1
    same = np.ones(count, dtype=bool)
    if "scales" in step.attrs or (step.has(slot) and step.shape(slot) != (0,)):
        value = step.attrs["scales"] if "scales" in step.attrs else step.const(slot)
        known = step.book.written.get(step.node.input[slot], [None] * count) if value is None else value
        same = np.array([scale == 1 for scale in known])
    if step.attrs.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
        region = step.const(1)
        same = same & (False if region is None else (region.reshape(2, -1) == [[0], [1]]).all(axis=0))
    return same


@rule("GridSample", "RoiAlign", "MaxRoiPool")
def sample(step: Step) -> list[Axes]:
    """Each channel is sampled by itself, at places that the other inputs name."""
    mark_params(step)
    x = step.x(0)
    for axes in (x[2:], *(step.x(i) for i in range(1, len(step.node.input)))):
        step.fix_each(axes, "samples along it, or at it")
    if step.node.op_type == "GridSample":
        return [(x[0], x[1], *step.plain()[2:])]
    step.fix(x[0], "picks from it")
    return [(None, x[1], None, None)]


@rule("Col2Im")
def columns(step: Step) -> list[Axes]:
    """The elements of each channel's window stand one after the other: they live and die together."""
    x, window = step.x(0), step.const(2)
    step.fix(x[2], "moves it into space")
    if x[1] is None or window is None:
        step.fix(x[1], "has windows known at run time only")
        return [(x[0], *step.plain()[1:])]
    block = x[1].reshape(-1, int(np.prod(window)))
    step.book.tie(block, block[:, :1])
    return [(x[0], block[:, 0], *step.plain()[2:])]


@rule("CenterCropPad")
def centre(step: Step) -> list[Axes]:
    """The axes that it names are cropped or padded; the others pass."""
    x = step.x(0)
    named = normal([int(a) for a in step.attrs.get("axes", range(len(x)))], len(x))
    return [step.without(named, "crops or pads it")]


@rule("Pad")
def pad(step: Step) -> list[Axes]:
    """Padding along the channel axis makes constant channels: fresh tokens, cut by lowering the pad."""
    x, rank = step.x(0), len(step.shape(0))
    pads = step.setting("pads", 1) or step.setting("paddings", 1)
    listed = step.setting("axes", 3)
    if pads is None or (step.has(3) and listed is None):
        told = step.book.written.get(step.node.input[1], [])
        still = [i for i in range(rank) if not step.has(3) and told[i::rank] == [0, 0]]  # these are written as zeros
        padded = set(range(rank) if listed is None else normal(listed, rank)).difference(still)
        return [step.without(padded, "pads by amounts known at run time only")]
    axes = normal(listed, rank) if listed is not None else list(range(rank))
    mode = step.attrs.get("mode", b"constant")
    constant = mode in {b"constant", "constant"}
    out: list[Tokens | None] = list(x)
    added: list[tuple[int, Tokens]] = []
    for at, axis in enumerate(axes):
        before, after, tokens = pads[at], pads[at + len(axes)], x[axis]
        if tokens is None or (before == 0 and after == 0):
            continue
        if not constant or before < 0 or after < 0:
            step.fix(tokens, "pads it by other than constants")
            out[axis] = None
            continue
        made = step.book.fresh(Owner(step.key, -1 - axis), before + after)
        out[axis] = np.concatenate([made[:before], tokens, made[before:]])
        added += [(at, made[:before]), (at + len(axes), made[before:])]
    if added:
        slot = "pads" if "pads" in step.attrs else 1
        step.edit(slot, np.concatenate([t for _, t in added]), numbers(np.array(pads, dtype=np.int64), added))
    return [tuple(out)]


# ---- order and shape ------------------------------------------------------------------------------------------------


@rule("Transpose")
def transpose(step: Step) -> list[Axes]:
    """Permute the axes."""
    rank = len(step.shape(0))
    return [tuple(step.x(0)[int(p)] for p in step.attrs.get("perm", range(rank - 1, -1, -1)))]


@rule("Squeeze", "Unsqueeze")
def squeeze(step: Step) -> list[Axes]:
    """Axes of length 1 come and go; the others pass in their order."""
    if step.node.op_type == "Squeeze" and not step.setting("axes", 1):
        step.book.vanishing += [t for t in step.x(0) if t is not None]
    left = [t for t, d in zip(step.x(0), step.shape(0), strict=True) if d != 1]
    return [tuple(None if d == 1 else left.pop(0) for d in step.out_shape())]


@rule("Flatten", "Reshape")
def reshape(step: Step) -> list[Axes]:
    """Split the axes of both shapes into the shortest runs of equal product, and map each run by itself."""
    before, after = step.shape(0), step.out_shape()
    out: list[Tokens | None] = [None] * len(after)
    for old, new in _runs(before, after):
        tokens = _merged(step, old)
        for axis, part in zip(new, _split(step, tokens, [after[i] for i in new]), strict=True):
            out[axis] = part
    _fix_scrambled(step, before, after)
    if "shape" in step.attrs:
        step.fix_all("uses the reshape of opsets before 5")
    elif step.node.op_type == "Reshape":
        target = step.const(1)
        named = [(i, t) for i, t in enumerate(out) if t is not None and (target is None or target[i] > 0)]
        step.follow(1, named, target, len(after))
    return [tuple(out)]


Shape = tuple[int, ...]


def _fix_scrambled(step: Step, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """Fix the channels that land on other axes when the batch or an open length changes."""
    names = (step.node.input[0], step.key)
    if not step.model.others or names[0] in step.params:
        return
    others = [step.model.others.get(name) for name in names]
    if others[0] is None or others[1] is None:
        # The batch apart, only a length of 1 hides a scramble, and a Flatten keeps the order anyway.
        if step.node.op_type == "Reshape" and 1 in (*before[1:], *after[1:]):
            step.fix_all("may put it elsewhere at another batch or length")
        return
    if math.prod(others[0]) != math.prod(others[1]):
        return
    for axis, tokens in enumerate(step.x(0)):
        alone = tokens is not None and others[0][axis] == len(tokens)  # not merged with the batch or the length before
        same = _lands(before, after, axis) == _lands(others[0], others[1], axis)
        if alone and not same and not _recurs(before, after, others[0], others[1], axis):
            step.fix(tokens, "puts it elsewhere at another batch or length")


def _lands(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> set[int]:
    new = next(new for old, new in _runs(before, after) if axis in old)
    return {i for i in new if after[i] > 1}


def _recurs(before: Shape, after: Shape, again: Shape, then: Shape, axis: int) -> bool:
    """Whether the index on an axis is told by that on a single new axis, and in both runs by the same one and in the same way.

    So the channels of (places of all samples, channels) are told when the places of each sample are merged with them.
    """
    inner, whole = math.prod(before[axis + 1 :]), math.prod(again[axis + 1 :])
    for i in range(len(after)):
        steps, others = math.prod(after[i + 1 :]), math.prod(then[i + 1 :])
        within = inner % steps == whole % others == 0 and inner * others == whole * steps
        if within and after[i] == then[i] and (steps * after[i]) % (inner * before[axis]) == 0 < after[i] - 1:
            return True
    return False


def _runs(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Pair off the axes of two shapes of equal size: [(axes before, axes after)] with equal products, as short as can be."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = [], []
        left = right = 1
        if i < len(before):
            old, left, i = [i], before[i], i + 1
        if j < len(after):
            new, right, j = [j], after[j], j + 1
        while left != right:
            if left < right and i < len(before):
                left, i = left * before[i], i + 1
                old.append(i - 1)
            elif j < len(after):
                right, j = right * after[j], j + 1
                new.append(j - 1)
            else:
                return [(list(range(len(before))), list(range(len(after))))]
        runs.append((old, new))
    return runs


def _merged(step: Step, axes: list[int]) -> Tokens | None:
    """Tokens of several axes laid out as one: repeated along the axes that have none."""
    shape = [step.shape(0)[i] for i in axes]
    held = [(k, t) for k, i in enumerate(axes) if (t := step.x(0)[i]) is not None]
    if not held:
        return None
    held.sort(key=lambda pair: not step.book.weighted(pair[1]))  # of what an Expand repeats, no channel is missed
    for _, others in held[1:]:
        step.fix(others, "merges it with another channel axis")
    at, tokens = held[0]
    view = tokens.reshape([-1 if k == at else 1 for k in range(len(axes))])
    return np.broadcast_to(view, shape).ravel()


def _split(step: Step, tokens: Tokens | None, shape: list[int]) -> list[Tokens | None]:
    """One axis laid out as several: the tokens go to one of them, tied across the others so that the cut stays rectangular.

    The longest axis carries them (the later of two) unless the ledger's `choices` say otherwise: attention is cut by whole heads.
    """
    out: list[Tokens | None] = [None] * len(shape)
    if tokens is None or not shape:
        step.fix(tokens, "removes its axis")
        return out
    if len([d for d in shape if d > 1]) == 0:
        return out
    block = tokens.reshape(shape)
    exact = [k for k in range(len(shape)) if shape[k] > 1 and bool((block == _first(block, k)).all())]
    order = sorted((k for k in range(len(shape)) if shape[k] > 1), key=lambda k: (-shape[k], -k))
    choice = min(step.book.choices.get(step.key, 0), len(order) - 1)
    carrier = exact[0] if exact else order[choice]
    first = _first(block, carrier)
    if not exact:
        step.book.tie(block, first)
        step.book.splits.append((step.key, first.ravel(), tuple(shape)))
    out[carrier] = first.ravel()
    return out


def _first(block: Tokens, axis: int) -> Tokens:
    """The tokens along `axis` at index 0 of every other axis, kept broadcastable."""
    return block[tuple(slice(None) if k == axis else slice(0, 1) for k in range(block.ndim))]
