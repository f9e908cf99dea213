"""One walk over the graph with the operator table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from onnx_amc.graph import (  # noqa: F401  they enter their rules into the table
    rules_attention,
    rules_norm,
    rules_product,
    rules_select,
    rules_shape,
    sizes,
)
from onnx_amc.graph.fold import QUANTISED, Dims
from onnx_amc.graph.ledger import Axes, Ledger, Owner, Tokens
from onnx_amc.graph.load import FLOATS, Model
from onnx_amc.graph.proto import attributes, names_read
from onnx_amc.graph.rules import RULES, Rule, Step, without_rule
from onnx_amc.graph.rules_contrib import CONTRIB


def rule_of(node: onnx.NodeProto) -> Rule | None:
    """The operator table's rule for a node."""
    if node.domain == "com.microsoft":
        return CONTRIB.get(node.op_type)
    return RULES.get(node.op_type) if node.domain in {"", "ai.onnx"} else None


def walked(
    model: Model, choices: dict[str, int], approximate: bool
) -> tuple[Ledger, np.ndarray, dict[str, Axes | None]]:
    """One walk over the graph, with the carriers of some splits chosen."""
    ledger = Ledger(choices=choices, approximate=approximate)
    axes: dict[str, Axes | None] = {}
    walk = _Walk(model, ledger, axes)
    for node in model.proto.graph.node:
        walk.visit(node)
    for output in model.proto.graph.output:
        for tokens in (*(axes.get(output.name) or ()), *ledger.sizes.get(output.name, ())):
            ledger.fix(tokens, f"it is the model's output '{output.name}'")
    return ledger, ledger.classes(), axes


def known_lengths(model: Model, ledger: Ledger, axes: Mapping[str, Axes | None]) -> dict[str, Dims]:
    """Lengths of what the graph measures, where an axis holds channels of a weight, each once: it has as many in every run.

    Inference often does not know them: below opset 13 it does not follow the sizes that a Reshape takes.
    """

    def length(name: str, axis: int, tokens: Tokens | None) -> int | None:
        alone = tokens is not None and len(np.unique(tokens)) == len(tokens) and ledger.weighted(tokens)
        return model.length(name, axis) if alone else None

    measured = {n.input[0] for n in model.proto.graph.node if n.op_type == "Shape"}
    return {n: [length(n, i, t) for i, t in enumerate(mine)] for n in sorted(measured) if (mine := axes.get(n))}


class _Walk:
    """The walk's state: axes of each tensor seen so far, and which tensors descend from weights alone."""

    def __init__(self, model: Model, ledger: Ledger, axes: dict[str, Axes | None]) -> None:
        self.model, self.ledger, self.axes = model, ledger, axes
        self.params = set(model.weights)
        nodes = model.proto.graph.node
        self.quantised = {name for n in nodes if n.op_type in QUANTISED for name in n.input}

    def visit(self, node: onnx.NodeProto) -> None:
        """Apply the node's rule and store the axes of its outputs."""
        inputs = [self._axes(name) for name in node.input]
        step = Step(node, inputs, self.model, self.params, self.ledger, attributes(node))
        outputs = self._apply(step)
        sizes.follow(step)
        names = names_read(node) - {""}
        if names and self.params.issuperset(names):
            self.params.update(o for o in node.output if o)
        for name, axes in zip(node.output, outputs, strict=False):
            if name:
                self.axes[name] = axes

    def _apply(self, step: Step) -> list[Axes]:
        node = step.node
        inner = names_read(node) - set(node.input)
        if inner or any(a.HasField("g") for a in node.attribute):
            for name in inner:
                step.fix_each(self._axes(name) or (), "reads it inside a subgraph")
            return step.fix_all("is a control-flow operator")
        names = [n for n in [*node.input, *node.output] if n]
        chosen = rule_of(node)
        if chosen is None:
            return without_rule(step)
        if any(n not in self.model.shapes for n in names):
            return step.fix_all("has a shape known at run time only")
        try:
            return [_without_singles(step, axes) for axes in chosen(step)]
        except (IndexError, ValueError, KeyError, TypeError) as error:  # costs the node's channels, not the run
            return step.fix_all(f"is used in a way that its rule does not follow ({str(error).splitlines()[0]})")

    def _axes(self, name: str) -> Axes | None:
        if name and name not in self.axes and name in self.model.weights:
            self.axes[name] = self._weight_axes(name)
        return self.axes.get(name)

    def _weight_axes(self, name: str) -> Axes:
        tensor = self.model.weights[name]
        if tensor.data_type not in FLOATS and name not in self.quantised:
            return (None,) * len(tensor.dims)
        return tuple(self.ledger.fresh(Owner(name, i), d) if d > 1 else None for i, d in enumerate(tensor.dims))


def _without_singles(step: Step, axes: Axes) -> Axes:
    """An axis of length 1 has no tokens: it stretches and vanishes too easily. Whatever is left alone on one stays."""
    for tokens in axes:
        if tokens is not None and len(tokens) == 1:
            step.fix(tokens, "leaves it alone on its axis")
    return tuple(None if t is None or len(t) == 1 else t for t in axes)
