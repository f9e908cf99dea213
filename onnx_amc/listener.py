"""Who hears how a run goes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx_amc.search.journal import Tried


class Listener:
    """Hears how a run goes; the command line draws it. Every method may be overridden, none must be."""

    def stage(self, name: str, total: int | None) -> None:
        """Say that a stage begins, of so many steps (None: unknown)."""

    def advance(self, done: int, note: str = "", total: int | None = None) -> None:
        """Say how many steps of the stage are done, and of how many where that has changed."""

    def tried(self, tried: Tried) -> None:
        """Say that a plan was evaluated: its `counts`, `score`, `loss`, `reward`, and in `source` who proposed it."""

    def note(self, text: str) -> None:
        """Say something the user should know."""

    def warn(self, text: str) -> None:
        """Say what makes the result doubtful."""
        self.note(f"warning: {text}")


class Warner(Listener):
    """Hands on what is doubtful as Python's warnings, to whoever has called the package."""

    def warn(self, text: str) -> None:
        """Say it as a warning of the caller's."""
        warnings.warn(text, stacklevel=2)
