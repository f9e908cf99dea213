"""The second half of the operator table: operators that move, join, split, pool or pad axes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from onnx_amc.graph.ledger import Axes, Keep, Owner, Tokens
from onnx_amc.graph.rules import Step, mark_params, rule

LAST = np.iinfo(np.int64).max


def _normal(axes: list[int], rank: int) -> list[int]:
    return [a + rank if a < 0 else a for a in axes]


# ---- space --------------------------------------------------------------------------------------------------------


@rule("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def pool(step: Step) -> list[Axes]:
    """Each channel is pooled by itself."""
    for tokens in step.x(0)[2:]:
        step.fix(tokens, "pools over it")
    out = (*step.x(0)[:2], *((None,) * (len(step.shape(0)) - 2)))
    return [out for _ in step.node.output]


@rule("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSumSquare",
      "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin")  # fmt: skip
def reduce(step: Step) -> list[Axes]:
    """A channel that is reduced over is read without a weight, and stays; all others pass."""
    rank = len(step.shape(0))
    if step.node.op_type.startswith("Arg"):
        axes: list[int] | None = [int(step.attrs.get("axis", 0))]
    else:
        axes = step.setting("axes", 1)
        if axes is None and step.has(1):
            step.fix_all("reduces over axes known at run time only")
            return [step.plain()]
        if not axes:
            axes = [] if step.attrs.get("noop_with_empty_axes") else list(range(rank))
    gone = set(_normal(axes or [], rank))
    for axis in gone:
        step.fix(step.x(0)[axis], "reduces over it")
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
        mixed = set(range(rank)) if at is None else set(_normal([int(at.reshape(-1)[0])], rank))
    elif kind == "MeanVarianceNormalization":
        mixed = set(_normal([int(a) for a in step.attrs.get("axes", [0, 2, 3])], rank))
    else:
        old = step.opset < 13 and kind != "LpNormalization"
        axis = _normal([int(step.attrs.get("axis", 1 if old else -1))], rank)[0]
        mixed = set(range(axis, rank)) if old else {axis}
    for i in mixed:
        step.fix(x[i], "mixes its channels")
    return [x for _ in step.node.output]


@rule("Resize", "Upsample")
def resize(step: Step) -> list[Axes]:
    """Space is resampled; the channel axis must keep its length."""
    out: list[Tokens | None] = []
    before, after = step.shape(0), step.out_shape()
    axes = [int(a) for a in step.attrs.get("axes", range(len(before)))]
    sizes = step.const(3) if step.node.op_type == "Resize" else None
    moving: list[tuple[int, Tokens]] = []
    for i, tokens in enumerate(step.x(0)):
        if tokens is not None and before[i] != after[i]:
            step.fix(tokens, "resamples it")
            out.append(None)
            continue
        if tokens is not None and i in axes:
            moving.append((axes.index(i), tokens))
        out.append(tokens)
    if sizes is not None and moving:

        def value(keep: Keep) -> np.ndarray:
            new = sizes.copy()
            for at, tokens in moving:
                new[at] = keep(tokens).sum()
            return new

        step.edit(3, np.concatenate([t for _, t in moving]), value)
    return [tuple(out)]


@rule("Pad")
def pad(step: Step) -> list[Axes]:
    """Padding along the channel axis makes constant channels: fresh tokens, cut by lowering the pad."""
    x, rank = step.x(0), len(step.shape(0))
    pads = step.setting("pads", 1) or step.setting("paddings", 1)
    listed = step.setting("axes", 3)
    if pads is None or (step.has(3) and listed is None):
        step.fix_all("pads by amounts known at run time only")
        return [step.plain()]
    axes = _normal(listed, rank) if listed is not None else list(range(rank))
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

        def value(keep: Keep) -> np.ndarray:
            new = np.array(pads, dtype=np.int64)
            for at, tokens in added:
                new[at] = keep(tokens).sum()
            return new

        slot: int | str = "pads" if "pads" in step.attrs else 1
        step.edit(slot, np.concatenate([t for _, t in added]), value)
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
    target = step.const(1) if step.node.op_type == "Reshape" else None
    if target is not None:
        _follow(step, target, out)
    elif "shape" in step.attrs:
        step.fix_all("uses the reshape of opsets before 5")
    return [tuple(out)]


def _follow(step: Step, target: np.ndarray, out: list[Tokens | None]) -> None:
    """A target shape that names a channel count follows the cut."""
    named = [(i, t) for i, t in enumerate(out) if t is not None and target[i] > 0]
    if not named:
        return

    def value(keep: Keep) -> np.ndarray:
        new = target.copy()
        for i, tokens in named:
            new[i] = keep(tokens).sum()
        return new

    step.edit(1, np.concatenate([t for _, t in named]), value)


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
    live = [k for k, i in enumerate(axes) if step.x(0)[i] is not None]
    if not live:
        return None
    for k in live[1:]:
        step.fix(step.x(0)[axes[k]], "merges it with another channel axis")
    tokens = step.x(0)[axes[live[0]]]
    view = np.asarray(tokens).reshape([-1 if k == live[0] else 1 for k in range(len(axes))])
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
        step.book.splits.append((step.key, first.ravel()))
    out[carrier] = first.ravel()
    return out


def _first(block: Tokens, axis: int) -> Tokens:
    """The tokens along `axis` at index 0 of every other axis, kept broadcastable."""
    return block[tuple(slice(None) if k == axis else slice(0, 1) for k in range(block.ndim))]


# ---- joining and selecting --------------------------------------------------------------------------------------------


@rule("Concat")
def concat(step: Step) -> list[Axes]:
    """Channels stand one after the other; every other axis is tied."""
    mark_params(step)
    inputs = [i for i in range(len(step.node.input)) if step.has(i) and int(np.prod(step.shape(i)))]
    rank = len(step.out_shape())
    axis = _normal([int(step.attrs.get("axis", 1))], rank)[0]
    out: list[Tokens | None] = []
    for k in range(rank):
        parts = [step.x(i)[k] for i in inputs]
        if k != axis:
            joined = parts[0]
            for part in parts[1:]:
                joined = step.join(joined, part)
            out.append(joined)
        elif all(p is None for p in parts):
            out.append(None)
        else:
            out.append(np.concatenate([_filled(step, i, k) for i in inputs]))
    return [tuple(out)]


def _filled(step: Step, i: int, axis: int) -> Tokens:
    """Tokens of input i; where it has none, new ones that cannot be cut."""
    tokens = step.x(i)[axis]
    if tokens is None:
        tokens = step.book.fresh(Owner(f"{step.key}/{i}", -1), step.shape(i)[axis])
        step.fix(tokens, "joins it to channels that cannot be cut")
    return tokens


@rule("Split")
def split(step: Step) -> list[Axes]:
    """Each output takes its run of the channels; the sizes are written out where the cut makes them unequal."""
    x = step.x(0)
    axis = _normal([int(step.attrs.get("axis", 0))], len(x))[0]
    tokens = x[axis]
    if tokens is None:
        return [x for _ in step.node.output]
    sizes = [step.shapes[o][axis] for o in step.node.output]
    bounds = np.cumsum([0, *sizes])
    parts = [tokens[a:b] for a, b in itertools.pairwise(bounds)]
    slot: int | str = 1 if step.opset >= 13 else "split"
    if step.has(1) and step.const(1) is None:
        step.fix(tokens, "splits by sizes known at run time only")
    step.edit(slot, tokens, lambda keep: np.array([int(keep(p).sum()) for p in parts], dtype=np.int64))
    return [(*x[:axis], part, *x[axis + 1 :]) for part in parts]


@rule("Slice")
def slice_(step: Step) -> list[Axes]:
    """A run of the channels; its bounds move with the cut. A stride over channels fixes them."""
    x, shape = step.x(0), step.shape(0)
    starts, ends = step.setting("starts", 1), step.setting("ends", 2)
    axes, steps = step.setting("axes", 3), step.setting("steps", 4)
    if starts is None or ends is None or (step.has(3) and axes is None) or (step.has(4) and steps is None):
        step.fix_all("slices by bounds known at run time only")
        return [step.plain()]
    axes = _normal(axes if axes is not None else list(range(len(starts))), len(shape))
    steps = steps or [1] * len(axes)
    out: list[Tokens | None] = list(x)
    moves: list[tuple[int, Tokens, int, int]] = []
    for at, axis in enumerate(axes):
        tokens = x[axis]
        if tokens is None:
            continue
        low, high, stride = slice(starts[at], ends[at], steps[at]).indices(shape[axis])
        if stride != 1:
            step.fix(tokens, "takes every other channel")
            out[axis] = None
            continue
        out[axis] = tokens[low:high] if high - low > 1 else None
        if out[axis] is None:
            step.fix(tokens, "takes one channel of it")
        elif (low, high) != (0, shape[axis]):
            moves.append((at, tokens, low, high))
    if moves:
        _slice_edits(step, starts, ends, moves)
    return [tuple(out)]


def _slice_edits(step: Step, starts: list[int], ends: list[int], moves: list[tuple[int, Tokens, int, int]]) -> None:
    everything = np.concatenate([t for _, t, _, _ in moves])

    def bound(values: list[int], which: int) -> Callable[[Keep], np.ndarray]:
        def value(keep: Keep) -> np.ndarray:
            new = np.array(values, dtype=np.int64)
            for move in moves:
                new[move[0]] = keep(move[1][: move[which]]).sum()
            return new

        return value

    attribute = "starts" in step.attrs
    step.edit("starts" if attribute else 1, everything, bound(starts, 2))
    step.edit("ends" if attribute else 2, everything, bound(ends, 3))


@rule("Gather")
def gather(step: Step) -> list[Axes]:
    """Channels picked by constant indices; the indices are renumbered with the cut."""
    mark_params(step, "produces")
    x, axis = step.x(0), _normal([int(step.attrs.get("axis", 0))], len(step.shape(0)))[0]
    tokens, indices = x[axis], step.const(1)
    rank = len(step.shape(1))
    if tokens is None:
        picked: Axes = (None,) * rank
    elif indices is None or rank != 1 or indices.size < 2:
        step.fix(tokens, "picks from it" if indices is not None else "picks from it at run time")
        picked = (None,) * rank
    else:
        source, order = tokens, indices % len(tokens)
        picked = (source[order],)

        def value(keep: Keep) -> np.ndarray:
            place = np.cumsum(keep(source)) - 1
            renumbered: np.ndarray = place[order[keep(source[order])]].astype(indices.dtype)
            return renumbered

        step.edit(1, tokens, value)
    return [(*x[:axis], *picked, *x[axis + 1 :])]


@rule("Expand", "Tile")
def stretch(step: Step) -> list[Axes]:
    """Copies along axes of length 1; an axis with channels must keep its length."""
    before, after = step.shape(0), step.out_shape()
    aligned = (None,) * (len(after) - len(before)) + step.x(0)
    sizes = (1,) * (len(after) - len(before)) + before
    out: list[Tokens | None] = []
    for tokens, old, new in zip(aligned, sizes, after, strict=True):
        if tokens is not None and old != new:
            step.fix(tokens, "repeats it")
        out.append(tokens if old == new else None)
    target = step.const(1)
    if step.node.op_type == "Expand" and target is not None:
        named = (1,) * (len(after) - len(target)) + tuple(int(v) for v in target)
        live = [(i, t) for i, t in enumerate(out) if t is not None and named[i] > 1]
        if live:

            def value(keep: Keep) -> np.ndarray:
                new = np.array(named, dtype=np.int64)
                for i, tokens in live:
                    new[i] = keep(tokens).sum()
                return new

            step.edit(1, np.concatenate([t for _, t in live]), value)
    return [tuple(out)]


@rule("Shape", "Size")
def measure(step: Step) -> list[Axes]:
    """Sizes are computed at run time, from what is left."""
    return [step.plain()]
