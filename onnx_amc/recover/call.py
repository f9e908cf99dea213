"""What an operator's torch function gets, and the table it stands in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

Result = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Call:
    """One node, about to be computed.

    Shapes, axes and other constants of whole numbers are in the host's memory, whatever device computes, so that reading them
    waits for nothing; where such a tensor meets one on another device, both are had on that device.

    Args:
        kind: Operator type.
        attrs: Attributes by name, as onnx gives them: strings as bytes, tensors as protos.
        given: Inputs, each on its device; None for those left out.
        outputs: How many outputs the node has.
        opset: Version of the operator set.

    """

    kind: str
    attrs: Mapping[str, Any]
    given: tuple[Tensor | None, ...]
    outputs: int
    opset: int

    @cached_property
    def args(self) -> tuple[Tensor | None, ...]:
        """Inputs, all on one device; None for those left out."""
        devices = {a.device for a in self.given if a is not None}
        if len(devices) < 2:
            return self.given
        device = next(d for d in devices if d.type != "cpu")
        return tuple(None if a is None else a.to(device) for a in self.given)

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
        found = self.numbers(i)
        if found is not None:
            return [int(v) for v in found]
        return None if name not in self.attrs else [int(v) for v in self.attrs[name]]

    def numbers(self, i: int) -> list[float] | None:
        """What is in input `i`; None where it is left out."""
        found = self.given[i] if i < len(self.given) else None
        return None if found is None else found.reshape(-1).tolist()

    def number(self, i: int, name: str) -> float | None:
        """A number from input `i`, or from an attribute; None where neither is given."""
        found = self.numbers(i)
        return found[0] if found else self.attrs.get(name)

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
