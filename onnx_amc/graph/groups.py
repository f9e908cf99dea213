"""Walk the graph with the operator table and gather the channels into groups.

A class of tied tokens is one removable *channel*. Channels with the same footprint (the same axes of the same weights, equally
often) form a *group*, which is one step of the agent's walk.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import onnx

from onnx_amc.graph.fold import settles
from onnx_amc.graph.ledger import ROLES, Axes, Keep, Ledger, Owner, Tokens
from onnx_amc.graph.load import FLOATS, Model, refolded
from onnx_amc.graph.proto import key_of, subgraphs
from onnx_amc.graph.walk import known_lengths, rule_of, walked
from onnx_amc.graph.zeros import Zeros


@dataclass(frozen=True)
class Slice:
    """One axis of one initializer that a group's channels occupy.

    Args:
        owner: The initializer (by its name in the normalised model) and its axis.
        role: `produces`, `reads` or `carries`.
        mask: Whether zeros here stand for the cut.
        index: Positions on the axis.
        channel: The group's channel at each position.

    """

    owner: Owner
    role: str
    mask: bool
    index: np.ndarray
    channel: np.ndarray


class Lanes(NamedTuple):
    """How a group's channels lie on its axes.

    Args:
        together: Whether they go through a pool that slides, or with others through a grouped convolution or a Concat.
        repeat: Places that each channel takes on an axis, at least: 64 for an attention head of width 64.
        partial: Whether they share an axis of a multiple of 4 with other groups.
        fewest: 2 where a Squeeze would take an axis with a single channel.

    """

    together: bool = False
    repeat: int = 1
    partial: bool = False
    fewest: int = 1


ALONE = Lanes()
"""A group that has its axes to itself."""


@dataclass(frozen=True)
class Group:
    """Channels that are interchangeable in price: one decision of the search.

    Args:
        name: The node that produces the channels first; unique.
        channels: How many there are.
        slices: Where they live.
        nodes: Every node (by first output) that takes one of those weights.
        reason: Why the group cannot be cut; None where it can.
        doubt: Why a cut of it is not exact; None where masking equals cutting.
        lanes: How its channels lie on the axes that onnxruntime's blocked kernels take.

    """

    name: str
    channels: int
    slices: tuple[Slice, ...]
    nodes: tuple[str, ...]
    reason: str | None
    doubt: str | None = None
    lanes: Lanes = ALONE

    @property
    def prunable(self) -> bool:
        """Whether channels of this group may be removed."""
        return self.reason is None


@dataclass(frozen=True)
class Analysis:
    """What can be cut, what cannot, and why.

    Args:
        model: The analysed model.
        ledger: What the rules wrote down.
        labels: int (tokens,), the channel class of each token.
        groups: The prunable groups, in the order of the graph.
        fixed: Groups that cannot be cut, with their reasons.
        home: int (classes,), position in `groups` of the group a class belongs to; -1 where it cannot be cut.
        place: int (classes,), the class's channel within its group.
        axes: Tokens of every tensor's axes.

    """

    model: Model
    ledger: Ledger
    labels: np.ndarray
    groups: tuple[Group, ...]
    fixed: tuple[Group, ...]
    home: np.ndarray
    place: np.ndarray
    axes: Mapping[str, Axes | None]

    @cached_property
    def names(self) -> dict[str, str]:
        """What the user knows each node by, from its first output."""
        return {key_of(n): n.name or key_of(n) for n in self.model.proto.graph.node}

    @cached_property
    def nodes(self) -> dict[str, onnx.NodeProto]:
        """Nodes by their first output."""
        return {key_of(n): n for n in self.model.proto.graph.node}

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each group by name."""
        return {g.name: i for i, g in enumerate(self.groups)}

    @cached_property
    def full(self) -> np.ndarray:
        """Int (groups,): the plan that keeps everything."""
        return np.array([g.channels for g in self.groups], dtype=np.int64)

    def groups_of(self, tensor: str) -> set[int]:
        """Positions in `groups` of the groups whose channels a tensor carries."""
        return {g for t in self.axes.get(tensor) or () for g in self.groups_at(t)}

    def groups_at(self, tokens: Tokens | None) -> list[int]:
        """Positions in `groups` of the groups that tokens belong to, ascending; none of what cannot be cut."""
        home = np.zeros(0, np.int64) if tokens is None else self.home[self.labels[tokens]]
        return [int(g) for g in np.unique(home[home >= 0])]

    def keeper(self, kept: Mapping[str, Sequence[int]]) -> Keep:
        """Which tokens survive when each named group keeps these channels; groups not named keep all."""
        alive = np.ones(len(self.home), dtype=bool)
        by_group = [np.ones(g.channels, dtype=bool) for g in self.groups]
        for name, channels in kept.items():
            mask = np.zeros(self.groups[self.index[name]].channels, dtype=bool)
            mask[list(channels)] = True
            by_group[self.index[name]] = mask
        ours = np.flatnonzero(self.home >= 0)
        if len(ours):
            offsets = np.cumsum([0, *self.full])
            alive[ours] = np.concatenate(by_group)[offsets[self.home[ours]] + self.place[ours]]
        labels = self.labels
        return lambda tokens: alive[labels[tokens]]


def analyse(model: Model, *, approximate: bool = False) -> Analysis:
    """Find the groups of a model. Cost: linear in nodes plus weights' axis lengths.

    Args:
        model: The model.
        approximate: Whether channels under a norm or a reduction may go too, where cutting is not quite masking.

    """
    ledger, labels, axes = walked(model, {}, approximate)
    for _ in range(REFOLDS):
        lengths = known_lengths(model, ledger, axes)
        if not settles(model.proto, lengths):
            break
        model = refolded(model, lengths)
        ledger, labels, axes = walked(model, {}, approximate)
    choices: dict[str, int] = {}
    for attempt in range(1, CARRIERS):
        unlucky = _unlucky(ledger, labels)
        if not unlucky:
            break
        choices |= dict.fromkeys(unlucky, attempt)
        ledger, labels, axes = walked(model, choices, approximate)
    lost = _unlucky(ledger, labels)
    if lost:
        ledger, labels, axes = walked(model, {k: v for k, v in choices.items() if k not in lost}, approximate)
    return _gather(model, ledger, labels, axes)


CARRIERS = 4
"""Axes of a split that are tried as the carrier of its channels: head width, heads, q/k/v."""

REFOLDS = 4
"""How often sizes are made constants: a Slice whose bounds are known lets channels through, whose number is known then."""


def _demanded(
    model: Model, ledger: Ledger, labels: np.ndarray, axes: dict[str, Axes | None]
) -> dict[int, frozenset[Owner]]:
    """For each channel that is masked at its source, the owners that are set to zero; fixes those that cannot be masked."""
    zeros = Zeros(model, axes, labels)
    fixed = ledger.reasons(labels)
    found: dict[int, frozenset[Owner]] = {}
    for demand in ledger.demands:
        channels = np.unique(labels[demand.tokens])
        channels = channels[[c not in fixed for c in channels.tolist()]]
        if not len(channels):
            continue
        sources = next(
            (s for t in demand.tensors if (s := zeros.sources(t, channels)) is not None and _named(model, s)), None
        )
        if sources is None or zeros.divides(channels, sources):
            ledger.fix(
                demand.tokens,
                demand.reason if sources is None else "is divided by, which a mask at its source makes zero",
            )
            continue
        for channel in channels.tolist():
            found[channel] = found.get(channel, frozenset()) | sources
    return found


def _named(model: Model, sources: frozenset[Owner]) -> bool:
    """Whether a plan can name all of these to somebody who has the original file alone."""
    return all(o.tensor not in model.made for o in sources)


def _unlucky(ledger: Ledger, labels: np.ndarray) -> set[str]:
    """Splits whose carrier cannot be cut, or is what two activations are contracted over; with the latter all of their shape.

    Where a carrier is split once more (q/k/v first, then heads), only the second split can be what is unlucky.
    """
    fixed, bare = ledger.reasons(labels).keys(), set(np.unique(labels[ledger.bare()]).tolist())
    found: set[str] = set()
    shapes: set[tuple[int, ...]] = set()
    for key, tokens, shape in ledger.splits:
        classes = np.unique(labels[tokens]).tolist()
        if not bare.isdisjoint(classes):
            shapes.add(shape)
        if not bare.isdisjoint(classes) or not fixed.isdisjoint(classes):
            found.add(key)
    tried = [(key, labels[tokens], shape) for key, tokens, shape in ledger.splits if key in found or shape in shapes]
    inner = {(math.prod(shape), c) for _, classes, shape in tried for c in np.unique(classes).tolist()}
    return {key for key, classes, _ in tried if inner.isdisjoint((len(classes), c) for c in classes.tolist())}


def _gather(model: Model, ledger: Ledger, labels: np.ndarray, axes: dict[str, Axes | None]) -> Analysis:
    """Classes with the same footprint and the same fate become one group."""
    masks = _demanded(model, ledger, labels, axes)
    count = int(labels.max()) + 1 if len(labels) else 0
    reasons = ledger.reasons(labels)
    roles = _roles(ledger, labels, count)
    first = np.full(count, ledger.size, dtype=np.int64)
    np.minimum.at(first, labels, np.arange(ledger.size))
    prints = _footprints(ledger, labels, count)
    doubts = ledger.doubts(labels)
    blocked, vanishing = np.zeros((2, count), dtype=bool)
    for marks, said in ((blocked, ledger.blocked), (vanishing, ledger.vanishing)):
        for tokens in said:
            marks[labels[tokens]] = True
    buckets: dict[tuple[bytes, str | None, str | None, frozenset[Owner]], list[int]] = {}
    for label in np.argsort(first, kind="stable").tolist():
        unread = label in reasons and not (roles["reads"][label] or roles["carries"][label])
        if not roles["produces"][label] and not unread:
            continue
        read = roles["reads"][label] or label in masks
        reason = reasons.get(label) or (None if read else "no weight reads it")
        buckets.setdefault((prints[label], reason, doubts.get(label), masks.get(label, frozenset())), []).append(label)
    home, place = np.full(count, -1), np.zeros(count, dtype=np.int64)
    groups: list[Group] = []
    fixed: list[Group] = []
    taken: dict[str, int] = {}
    members = _Members(ledger, labels)
    for (_, reason, doubt, masked), classes in buckets.items():
        if reason is None:
            home[classes], place[classes] = len(groups), np.arange(len(classes))
        slices, nodes, name = members.of(classes, masked)
        if reason is not None and not slices:
            continue
        maker = model.producer.get(name)
        name = name if maker is None else maker.name or name
        taken[name] = taken.get(name, 0) + 1
        unique = name if taken[name] == 1 else f"{name}#{taken[name]}"
        marked = {"blocked": bool(blocked[classes].any()), "vanishing": bool(vanishing[classes].any())}
        lanes = _lanes(model, slices, len(classes), **marked)
        group = Group(unique, len(classes), slices, nodes, reason, doubt if reason is None else None, lanes)
        (groups if reason is None else fixed).append(group)
    fixed += [g for node in model.proto.graph.node for g in (_enclosed(node), _opaque(model, node)) if g is not None]
    return Analysis(model, ledger, labels, tuple(groups), tuple(fixed), home, place, axes)


def _lanes(model: Model, slices: Sequence[Slice], channels: int, *, blocked: bool, vanishing: bool) -> Lanes:
    lengths = [(len(s.index), model.weights[s.owner.tensor].dims[s.owner.axis]) for s in slices]
    repeat = math.gcd(*(taken // channels for taken, _ in lengths)) or 1
    partial = any(taken < whole and whole % 4 == 0 for taken, whole in lengths)
    return Lanes(blocked, repeat, partial, 2 if vanishing else 1)


def _enclosed(node: onnx.NodeProto) -> Group | None:
    """The weights inside a control-flow operator, as one group that stays."""
    weights = [dims for graph in subgraphs(node) for dims in _matrices(graph)]
    name, reason = node.name or key_of(node), "is a control-flow operator: the weights inside it are not cut"
    if not weights:
        return None
    return Group(name, sum(dims[0] for dims in weights), (), (key_of(node),), f"{node.op_type} '{name}' {reason}")


def _opaque(model: Model, node: onnx.NodeProto) -> Group | None:
    """The integer weights of an operator without a rule, as one group that stays: they carry no tokens to fix."""
    held = [model.weights[n] for n in node.input if n in model.weights and rule_of(node) is None]
    rows = [t.dims[0] for t in held if len(t.dims) > 1 and t.data_type not in FLOATS]
    name = node.name or key_of(node)
    if not rows:
        return None
    return Group(name, sum(rows), (), (key_of(node),), f"{node.op_type} '{name}' has no rule yet")


def _matrices(graph: onnx.GraphProto) -> list[tuple[int, ...]]:
    """Shapes of the float weights of two axes and more in a graph and those inside it."""
    tensors = [*graph.initializer, *(a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute)]
    found = [tuple(t.dims) for t in tensors if t.data_type in FLOATS and len(t.dims) > 1]
    return found + [dims for n in graph.node for inner in subgraphs(n) for dims in _matrices(inner)]


def _roles(ledger: Ledger, labels: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """For each role, bool (classes,): whether one of the class's owners plays it."""
    found = {role: np.zeros(count, dtype=bool) for role in ROLES}
    for owner, start, end in ledger.spans():
        for role in ledger.roles.get(owner, ()):
            found[role][labels[start:end]] = True
    return found


def _footprints(ledger: Ledger, labels: np.ndarray, count: int) -> list[bytes]:
    """For each class, how often it occurs in each owner, selected piece and factor of the price, as bytes to compare."""
    arrays = [np.arange(a, b) for _, a, b in ledger.spans()]
    arrays += [factor for term in ledger.terms for factor in term.factors] + ledger.pieces
    if not arrays:
        return [b""] * count
    where = np.concatenate([np.full(len(a), i, dtype=np.int64) for i, a in enumerate(arrays)])
    label = labels[np.concatenate(arrays)]
    pairs, times = np.unique(label * len(arrays) + where, return_counts=True)
    content = np.stack([pairs % len(arrays), times], axis=1)
    bounds = np.searchsorted(pairs // len(arrays), np.arange(count + 1))
    return [content[a:b].tobytes() for a, b in itertools.pairwise(bounds)]


class _Members:
    """Finds the slices of a group: where each of its classes lives."""

    def __init__(self, ledger: Ledger, labels: np.ndarray) -> None:
        self.ledger = ledger
        self.order = np.argsort(labels, kind="stable")
        self.bounds = np.searchsorted(labels[self.order], np.arange(labels.max() + 2 if len(labels) else 1))

    def tokens(self, label: int) -> Tokens:
        """All tokens of a class."""
        found: Tokens = self.order[self.bounds[label] : self.bounds[label + 1]]
        return found

    def of(self, classes: Sequence[int], masked: frozenset[Owner]) -> tuple[tuple[Slice, ...], tuple[str, ...], str]:
        """Slices, nodes and the first producing node of a group; `masked` are owners that mask it besides its readers."""
        ledger = self.ledger
        tokens = [self.tokens(c) for c in classes]
        order = np.argsort(np.concatenate(tokens), kind="stable")
        everything = np.concatenate(tokens)[order]
        channel = np.repeat(np.arange(len(classes)), [len(t) for t in tokens])[order]
        found, starts = np.unique(ledger.owner_of(everything), return_index=True)
        slices: list[Slice] = []
        nodes: dict[str, None] = {}
        first = ""
        for i, here in zip(found.tolist(), np.split(np.arange(len(everything)), starts[1:]), strict=True):
            owner = ledger.owners[i]
            users = ledger.users.get(owner, [])
            nodes.update(dict.fromkeys(users))
            roles = ledger.roles.get(owner, set())
            if owner.axis < 0:
                continue
            if not first and "produces" in roles and users:
                first = users[0]
            role = next((r for r in ROLES if r in roles), "carries")
            mask = "reads" in roles or owner in masked
            slices.append(Slice(owner, role, mask, everything[here] - ledger.starts[i], channel[here]))
        return tuple(slices), tuple(nodes), first or (next(iter(nodes)) if nodes else "?")
