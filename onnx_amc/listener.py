"""Who hears how a run goes."""

from __future__ import annotations


class Listener:
    """Hears how a run goes; the command line draws it. Every method may be overridden, none must be."""

    def stage(self, name: str, total: int | None) -> None:
        """Say that a stage begins, of so many steps (None: unknown)."""

    def advance(self, done: int, note: str = "", total: int | None = None) -> None:
        """Say how many steps of the stage are done, and of how many where that has changed."""

    def note(self, text: str) -> None:
        """Say something the user should know."""
