"""The errors a user can meet: each says what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

INTERRUPTED = 130
"""Exit code of what Ctrl-C or SIGTERM has ended."""


class AmcError(Exception):
    """Something the user can understand and mend.

    Args:
        what: What is wrong, with the offending value in it.
        where: The file, node, tensor or option it was found at.
        fix: What the user can do about it.

    """

    exit_code = 2

    def __init__(self, what: str, *, where: str, fix: str) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(f"{where}: {what}\n  -> {fix}")

    def __reduce__(self) -> tuple[partial[AmcError], tuple[str]]:
        """From process to process."""
        return partial(type(self), where=self.where, fix=self.fix), (self.what,)


class OptionError(AmcError):
    """An option, or a combination of options, that makes no sense."""


class ModelError(AmcError):
    """A model that cannot be read, run or compressed."""


class DataError(AmcError):
    """Data that cannot be read or does not fit the model."""


class ClusterError(AmcError):
    """A cluster that is not there, is not equipped for this, or was lost."""


class PlanError(AmcError):
    """A plan that cannot be read or does not fit the model."""


class BudgetError(AmcError):
    """A budget below what the network's structure can reach."""

    exit_code = 3


class SelfCheckError(AmcError):
    """The cut network does not compute what the masked original computes: a fault of ours, nothing was written."""

    exit_code = 1


@contextmanager
def kept_aside() -> Iterator[None]:
    """Tell of temporary files that cannot be written where they lie; the system names no file then.

    Raises:
        OptionError: They cannot be written: no folder, no right, no room.

    """
    try:
        yield
    except OSError as error:
        import tempfile  # noqa: PLC0415  keeps --help light

        what = f"temporary files cannot be written: {error.strerror or error}"
        fix = "make room there, or let TMPDIR name a folder with more"
        raise OptionError(what, where=tempfile.tempdir or "TMPDIR", fix=fix) from error
