"""What an operator's torch function gets, and the table it stands in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Result = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Call:
    """One node, about to be computed.

    Args:
        kind: Operator type.
        attrs: Attributes by name, as onnx gives them: strings as bytes, tensors as protos.
        args: Inputs; None for those left out.
        outputs: How many outputs the node has.
        opset: Version of the operator set.

    """

    kind: str
    attrs: Mapping[str, Any]
    args: tuple[Tensor | None, ...]
    outputs: int
    opset: int

    @property
    def x(self) -> Tensor:
        """The first input."""
        return self.need(0)

    def need(self, i: int) -> Tensor:
        """An input that must be there."""
        found = self.optional(i)
        if found is None:
            raise ValueError(f"{self.kind} without input {i}")
        return found

    def optional(self, i: int) -> Tensor | None:
        """An input that may be left out."""
        return self.args[i] if i < len(self.args) else None

    def ints(self, i: int, name: str = "") -> list[int] | None:
        """Whole numbers from input `i`, or from an attribute; None where neither is given."""
        given = self.optional(i)
        if given is not None:
            return [int(v) for v in given.reshape(-1).tolist()]
        return None if name not in self.attrs else [int(v) for v in self.attrs[name]]

    def int(self, name: str, default: int) -> int:
        """A whole number among the attributes."""
        return int(self.attrs.get(name, default))

    def float(self, name: str, default: float) -> float:
        """A number among the attributes."""
        return float(self.attrs.get(name, default))

    def text(self, name: str, default: str) -> str:
        """A word among the attributes."""
        found = self.attrs.get(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)


Function = Callable[[Call], Result]

TABLE: dict[str, Function] = {}
"""Operator type -> what computes it, filled by `operator`."""


def operator(*kinds: str) -> Callable[[Function], Function]:
    """Enter a function into the table under these operator types."""

    def enter(function: Function) -> Function:
        TABLE.update(dict.fromkeys(kinds, function))
        return function

    return enter


class UnreadableError(ValueError):
    """An operator, or a use of one, that has no torch function."""


def as_index(x: Tensor, like: Tensor) -> Tensor:
    """Return integers on the device of what they index."""
    return x.to(device=like.device, dtype=torch.int64)
