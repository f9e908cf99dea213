"""The operator table, continued: operators that join, split, select, repeat or measure axes."""

from __future__ import annotations

import itertools
from functools import reduce

import numpy as np

from onnx_amc.graph.ledger import Axes, Keep, Owner, Tokens, numbers
from onnx_amc.graph.rules import Step, mark_params, normal, rule

ENDLESS = 2**31 - 1
"""An end of a Slice that no axis reaches."""


@rule("Concat")
def concat(step: Step) -> list[Axes]:
    """Channels stand one after the other; every other axis is tied."""
    mark_params(step)
    inputs = [i for i in range(len(step.node.input)) if step.has(i) and int(np.prod(step.shape(i)))]
    rank = len(step.out_shape())
    axis = step.axis(1, rank)
    out: list[Tokens | None] = []
    for k in range(rank):
        parts = [step.x(i)[k] for i in inputs]
        if k != axis:
            out.append(reduce(step.join, parts))
        elif all(p is None for p in parts):
            out.append(None)
        else:
            filled = [_filled(step, i, k) for i in inputs]
            if any(step.again(i, k) not in {None, step.shape(i)[k]} for i in inputs):
                for part in parts:  # what share of the axis they are is another in every run
                    step.fix(part, "joins it to an axis of any length")
            step.book.blocked += [p for p in filled if rank > 2 and k == 1 and len(p) % 8 == 0]
            out.append(np.concatenate(filled))
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
    axis = step.axis(0, len(x))
    tokens = x[axis]
    if tokens is None:
        return [x for _ in step.node.output]
    sizes = [step.model.shapes[o][axis] for o in step.node.output]
    bounds = np.cumsum([0, *sizes])
    parts = [tokens[a:b] for a, b in itertools.pairwise(bounds)]
    step.book.pieces += parts
    slot: int | str = 1 if step.model.opset >= 13 else "split"
    if step.has(1) and step.const(1) is None:
        step.fix(tokens, "splits by sizes known at run time only")
    elif not (step.has(1) or "split" in step.attrs or step.settled(0, axis)):
        step.fix(tokens, "splits an axis of any length")
    step.edit(slot, tokens, lambda keep: np.array([int(keep(p).sum()) for p in parts], dtype=np.int64))
    return [(*x[:axis], part, *x[axis + 1 :]) for part in parts]


@rule("Slice")
def slice_(step: Step) -> list[Axes]:
    """A run of the channels, whose bounds move with the cut, all of them backwards, or one of each few, which go together."""
    x, shape = step.x(0), step.shape(0)
    starts, ends = step.setting("starts", 1), step.setting("ends", 2)
    axes, steps = step.setting("axes", 3), step.setting("steps", 4)
    if starts is None or ends is None or (step.has(3) and axes is None) or (step.has(4) and steps is None):
        gone = set(
            range(len(x)) if step.has(3) and axes is None else normal(axes or list(range(step.shape(1)[0])), len(x))
        )
        return [step.without(gone, "slices by bounds known at run time only")]
    axes = normal(axes if axes is not None else list(range(len(starts))), len(shape))
    steps = steps or [1] * len(axes)
    out: list[Tokens | None] = list(x)
    moves: list[tuple[int, Tokens, int, int]] = []
    for at, axis in enumerate(axes):
        tokens = x[axis]
        if tokens is None:
            continue
        low, high, stride = slice(starts[at], ends[at], steps[at]).indices(shape[axis])
        whole = starts[at] == 0 and ends[at] >= ENDLESS
        if stride == -1 and low >= shape[axis] - 1 and high < 0 and (starts[at] == -1 or step.settled(0, axis)):
            out[axis] = tokens[::-1]  # from end to end, whatever is left
            continue
        if _combs(step, axis, (starts[at], low, high, stride)):
            blocks = tokens.reshape(-1, stride)
            step.book.tie(blocks, blocks[:, :1])
            out[axis] = blocks[:, low]  # the bounds still hold: whole blocks go, and an end beyond the axis is its end
            continue
        if stride != 1 or not (whole or step.settled(0, axis)):
            step.fix(tokens, "takes every other channel" if stride != 1 else "slices an axis of any length")
            out[axis] = None
            continue
        out[axis] = tokens[low:high] if high - low > 1 else None
        if out[axis] is None:
            step.fix(tokens[low:high] if high > low else tokens, "takes one channel of it")
        if (low, high) != (0, shape[axis]):
            step.book.pieces.append(tokens[low:high])
            moves.append((at, tokens, low, high))
    if moves:
        _slice_edits(step, starts, ends, moves)
    return [tuple(out)]


def _combs(step: Step, axis: int, bounds: tuple[int, int, int, int]) -> bool:
    """Whether a stride takes one of each few channels: given the start as it is written, then all bounds as they are meant."""
    start, low, high, stride = bounds
    length = step.shape(0)[axis]
    whole = stride > 1 and length % stride == 0 and len(range(low, high, stride)) == length // stride > 1
    return whole and step.settled(0, axis) and (start >= 0 or low == 0)


def _slice_edits(step: Step, starts: list[int], ends: list[int], moves: list[tuple[int, Tokens, int, int]]) -> None:
    everything = np.concatenate([t for _, t, _, _ in moves])
    attribute, given = "starts" in step.attrs, step.const(1)
    low, high = (np.array(v, dtype=np.int64 if given is None else given.dtype) for v in (starts, ends))
    step.edit("starts" if attribute else 1, everything, numbers(low, [(at, t[:start]) for at, t, start, _ in moves]))
    step.edit("ends" if attribute else 2, everything, numbers(high, [(at, t[:end]) for at, t, _, end in moves]))


@rule("Gather")
def gather(step: Step) -> list[Axes]:
    """Channels picked by constant indices; the indices are renumbered with the cut."""
    mark_params(step, "produces")
    x, axis = step.x(0), step.axis(0, len(step.shape(0)))
    step.fix_each(step.x(1), "is indexed by it")
    return [(*x[:axis], *_picked(step, axis), *x[axis + 1 :])]


@rule("GatherND")
def gather_nd(step: Step) -> list[Axes]:
    """Axes that are indexed stay whole, unless constant indices pick from the first alone; those behind them pass."""
    x, batch = step.x(0), int(step.attrs.get("batch_dims", 0))
    last = batch + step.shape(1)[-1]
    step.fix_each(step.x(1), "is indexed by it")
    if last == 1 and not batch:
        return [_picked(step, 0)[:-1] + x[1:]]
    step.fix_each(x[:last], "picks from it")
    return [(None,) * (len(step.shape(1)) - 1) + x[last:]]


def _picked(step: Step, axis: int) -> Axes:
    """Tokens for each axis of the indices: those of a list of several follow the cut, what others pick stays."""
    tokens, indices = step.x(0)[axis], step.const(1)
    picked: list[Tokens | None] = [None] * len(step.shape(1))
    if tokens is None or indices is None or not indices.size or not step.settled(0, axis):
        settled = indices is None or step.settled(0, axis)
        step.fix(tokens, "picks from it at run time" if settled else "picks from an axis of any length")
        return tuple(picked)
    order = indices % len(tokens)
    listed = 1 < len(indices) == indices.size if indices.ndim else False
    if listed:
        step.book.pieces.append(tokens[order.ravel()])
        picked[0] = step.book.pieces[-1]
    else:
        step.fix(tokens[np.unique(order)], "picks from it")

    def value(keep: Keep) -> np.ndarray:
        place = np.cumsum(keep(tokens)) - 1
        return np.asarray(place[order[keep(tokens[order.ravel()])] if listed else order].astype(indices.dtype))

    step.edit(1, tokens, value)
    return tuple(picked)


@rule("ScatterND")
def scatter_nd(step: Step) -> list[Axes]:
    """Axes that are indexed stay whole; those behind them pass, with those of the updates."""
    mark_params(step)
    x, last = step.x(0), step.shape(1)[-1]
    rows = len(step.shape(1)) - 1
    step.fix_each((*x[:last], *step.x(1), *step.x(2)[:rows]), "writes into it by place")
    behind = (step.join(a, b) for a, b in zip(x[last:], step.x(2)[rows:], strict=True))
    return [((None,) * last + tuple(behind))]


@rule("GatherElements", "ScatterElements")
def by_element(step: Step) -> list[Axes]:
    """The axis that is indexed stays whole; the others pass where the indices are as long, and are cut with them."""
    mark_params(step)
    x, others = step.x(0), range(1, len(step.node.input))
    axis = step.axis(0, len(x))
    indices = step.const(1)
    out: list[Tokens | None] = list(x)
    cut: list[tuple[int, Tokens]] = []
    for i, tokens in enumerate(x):
        named = [step.x(k)[i] for k in others]
        if i == axis or tokens is None or step.shape(1)[i] != len(tokens):
            step.fix_each((tokens, *named), "takes or writes its elements by their place")
            out[i] = None
            continue
        if named[0] is None and indices is not None:
            cut.append((i, tokens))
            named = named[1:]
        for t in named:
            out[i] = step.join(out[i], t)
    if cut:

        def value(keep: Keep) -> np.ndarray:
            new = np.asarray(indices)
            for i, tokens in cut:
                new = np.compress(keep(tokens), new, axis=i)
            return new

        step.edit(1, np.concatenate([t for _, t in cut]), value)
    return [tuple(out)]


@rule("Trilu")
def triangle(step: Step) -> list[Axes]:
    """What an element is depends on its place along the last two axes; the others pass."""
    rank = len(step.x(0))
    return [step.without({rank - 2, rank - 1}, "takes its elements by their place")]


@rule("Tile")
def tile(step: Step) -> list[Axes]:
    """Channels stand once more behind all of them; an axis of length 1 that is repeated gets channels of its own, all alike."""
    shape, repeats = step.shape(0), step.const(1)
    out: list[Tokens | None] = []
    made: list[tuple[int, Tokens]] = []
    for i, tokens in enumerate(step.x(0)):
        times = step.out_shape()[i] // max(shape[i], 1)
        out.append(tokens)
        if times != 1 and repeats is None:
            step.fix(tokens, "repeats it as often as the run says")
            out[i] = None
        elif tokens is not None:
            out[i] = np.tile(tokens, times)
        elif times > 1 and shape[i] == 1 and step.settled(0, i):
            made.append((i, step.book.fresh(Owner(step.key, -1 - i), times)))
            out[i] = made[-1][1]
    if made:
        step.edit(1, np.concatenate([t for _, t in made]), numbers(np.array(repeats, dtype=np.int64), made))
    return [tuple(out)]


@rule("Expand")
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
    _expanded(step, out)
    return [tuple(out)]


def _expanded(step: Step, out: list[Tokens | None]) -> None:
    """The target of an Expand follows the cut; an axis that it makes gets channels of its own, all alike."""
    target, rank = step.const(1), step.shape(1)[0]
    at = len(out) - rank
    for i, tokens in enumerate(_made(step, 1)):
        if out[at + i] is None and not step.spans(0, at + i - len(out), step.out_shape()[at + i]):
            out[at + i] = tokens
    named = [1] * rank if target is None else [int(v) for v in target]
    live = [(i - at, t) for i, t in enumerate(out) if t is not None and i >= at]
    step.follow(1, [(i, t) for i, t in live if target is None or named[i] > 1], target, rank)


@rule("ConstantOfShape")
def constant_of_shape(step: Step) -> list[Axes]:
    """A constant fill: each axis has channels of its own, all alike, or those of the tensor that it was measured on."""
    made = _made(step, 0)
    step.follow(0, [(i, t) for i, t in enumerate(made) if t is not None], step.const(0), len(made))
    return [tuple(made)]


def _made(step: Step, slot: int) -> list[Tokens | None]:
    """Tokens for the axes of a fill: those that its sizes were measured on, or new ones."""
    lengths = step.out_shape()[len(step.out_shape()) - step.shape(slot)[0] :]
    measured = step.book.sizes.get(step.node.input[slot], [None] * len(lengths))
    found: list[Tokens | None] = []
    for i, (tokens, length) in enumerate(zip(measured, lengths, strict=True)):
        if tokens is not None and len(tokens) != length:
            step.fix(tokens, "fills as many as a number calculated from its channels")
            tokens = None  # noqa: PLW2901
        elif tokens is None and length > 1:
            tokens = step.book.fresh(Owner(step.key, -1 - i), length)  # noqa: PLW2901
        found.append(tokens)
    return found


@rule("Shape", "Size")
def measure(step: Step) -> list[Axes]:
    """Sizes are computed at run time, from what is left; see `sizes`."""
    return [step.plain()]
