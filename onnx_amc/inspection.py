"""What `inspect` shows, what the agent is told of each group, and which groups the user protects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from onnx_amc.errors import OptionError
from onnx_amc.graph import cost
from onnx_amc.graph.groups import Analysis, Group
from onnx_amc.graph.ledger import Reader
from onnx_amc.graph.proto import attributes
from onnx_amc.run.blocks import block_of
from onnx_amc.search.space import levels_of
from onnx_amc.search.state import LayerFacts


def summary(analysis: Analysis, min_keep: float, round_to: int | None) -> dict[str, Any]:
    """Everything `inspect` prints, as JSON."""
    groups = analysis.groups
    price, params = cost.macs(analysis), cost.params(analysis)
    block = block_of()
    least = np.array([levels_of(g.channels, round_to, min_keep, g.lanes, block)[0] for g in groups], dtype=np.int64)
    macs = price.terms(analysis.full)
    kinds = {t.node: t.op for t in analysis.ledger.terms}
    names, total = analysis.names, max(1, int(macs.sum()))
    reachable = np.zeros(len(macs), dtype=bool)
    for i in range(len(groups)):
        reachable |= price.of_group(i)
    of_node = dict(zip(price.names, macs.tolist(), strict=True))
    return {
        "model": analysis.model.source,
        "macs": int(macs.sum()),
        "params": params(analysis.full),
        "bytes": analysis.model.bytes,
        "smallest_macs": price(least),
        "smallest_ratio": price(least) / total if macs.sum() else 1.0,
        "reachable_ratio": int(macs[reachable].sum()) / total,
        "layers": [
            {"name": names.get(n, n), "op": kinds[n], "macs": int(m)} for n, m in zip(price.names, macs, strict=True)
        ],
        "groups": [_group(g, names, int(macs[price.of_group(i)].sum())) for i, g in enumerate(groups)],
        "fixed": [_group(g, names, sum(of_node.get(n, 0) for n in set(g.nodes))) for g in analysis.fixed],
    }


def _group(group: Group, names: dict[str, str], macs: int) -> dict[str, Any]:
    return {
        "name": group.name,
        "channels": group.channels,
        "prunable": group.prunable,
        "reason": group.reason,
        "approximate": group.doubt,
        "members": [names.get(n, n) for n in group.nodes],
        "macs": macs,
    }


def facts_of(analysis: Analysis) -> list[LayerFacts]:
    """What the agent is told of each group: the layer that reads most of it."""
    price = cost.macs(analysis)
    macs = dict(zip(price.names, price.terms(analysis.full).tolist(), strict=True))
    readers: list[list[Reader]] = [[] for _ in analysis.groups]
    for reader in analysis.ledger.readers:
        for g in [] if reader.whole else analysis.groups_at(reader.inputs):
            readers[g].append(reader)
    facts: list[LayerFacts] = []
    for group, found in zip(analysis.groups, readers, strict=True):
        total = int(sum(macs.get(r.node, 0) for r in found))
        if not found:
            facts.append(LayerFacts(1, group.channels, 1, 1, 1, 1, total))
            continue
        main = max(found, key=lambda r: macs.get(r.node, 0))
        facts.append(shape_facts(analysis, main.node, main.x, main.w, total))
    return facts


def shape_facts(analysis: Analysis, node: str, x: str, w: str, flops: int | None = None) -> LayerFacts:
    """The sizes of a layer.

    Args:
        analysis: Of the network.
        node: The layer's node, by its first output.
        x: The activation it reads.
        w: Its weight.
        flops: What it counts for; None for its own multiply-accumulates.

    """
    found = analysis.nodes[node]
    if flops is None:
        flops = sum(
            term.constant * int(np.prod([len(t) for t in term.factors], dtype=np.int64))
            for term in analysis.ledger.terms
            if term.node == node
        )
    read, made, weight = (analysis.model.shapes[n] for n in (x, node, w))
    attrs = attributes(found)
    spatial = found.op_type in {"Conv", "ConvTranspose"}
    stride = int(attrs.get("strides", [1])[0]) if spatial else 1
    axis = 1 if spatial else -2 if w == found.input[0] else -1
    height, width = (read[2], read[-1] if len(read) > 3 else 1) if spatial else (1, 1)
    return LayerFacts(
        outputs=made[axis],
        inputs=read[axis],
        height=height,
        width=width,
        stride=stride,
        kernel=weight[2] if spatial else 1,
        flops=flops,
    )


def protected(analysis: Analysis, patterns: Sequence[str]) -> list[bool]:
    """Whether each group is protected by one of the patterns.

    A pattern is the name of a node, tensor, weight or group, an operator type, a glob, or, where it is none of these for anything
    in the model, a regular expression (searched for).

    Raises:
        OptionError: A pattern that matches nothing in the model.

    """
    return matching(analysis, patterns, _labels(analysis))


def matching(analysis: Analysis, patterns: Sequence[str], labels: Sequence[set[str]]) -> list[bool]:
    """Whether any of the patterns matches any of the labels, for each set of them.

    Raises:
        OptionError: A pattern that matches nothing in the model.

    """
    everything = {
        name for node in analysis.model.original.graph.node for name in (node.name, node.op_type, *node.output)
    }
    everything |= set(analysis.model.weights) | {g.name for g in (*analysis.groups, *analysis.fixed)}.union(*labels)
    result = [False] * len(labels)
    for pattern in patterns:
        matches = next((m for m in (_named, _found) if any(m(pattern, name) for name in everything if name)), None)
        if matches is None:
            raise OptionError(
                f"pattern '{pattern}' matches no node, tensor, weight or operator type",
                where="--keep",
                fix="see `onnx-amc inspect MODEL` for the names",
            )
        hit = [any(matches(pattern, label) for label in mine) for mine in labels]
        result = [a or b for a, b in zip(result, hit, strict=True)]
    return result


def _labels(analysis: Analysis) -> list[set[str]]:
    """All that a group can be called by: its name, its weights, the nodes it passes, their operator types and outputs."""
    nodes = analysis.nodes
    found: list[set[str]] = []
    for group in analysis.groups:
        mine = {group.name, *(s.owner.tensor for s in group.slices)}
        for output in group.nodes:
            node = nodes[output]
            mine |= {node.name, node.op_type, *node.output}
        found.append(mine)
    for node in nodes.values():
        for i in {i for name in (*node.input, *node.output) for i in analysis.groups_of(name)}:
            found[i] |= {node.name, node.op_type, *node.output}
    return [mine - {""} for mine in found]


def _named(pattern: str, label: str) -> bool:
    return pattern == label or fnmatchcase(label, pattern)


def _found(pattern: str, label: str) -> bool:
    try:
        return re.search(pattern, label) is not None and re.search(r"[\^$*+?\[\]()|\\.]", pattern) is not None
    except re.error:
        return False
