"""What starts the command line: `python -m onnx_amc`, and the console script."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from onnx_amc.errors import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Callable

STOPS = (signal.SIGINT, signal.SIGTERM)
"""What stops a container stops a run as Ctrl-C does."""


def run() -> None:
    """Run the command that was typed, and exit.

    Until it is loaded an interruption ends the process at once: an extension that is interrupted while it is imported may crash.
    """
    at_once = _exit(INTERRUPTED, b"onnx-amc: interrupted\n")
    # What a shell has put into the background does not hear the keyboard, and stays so.
    heard = [s for s in STOPS if signal.getsignal(s) != signal.SIG_IGN]
    _hear(heard, at_once)
    from onnx_amc.cli import main  # noqa: PLC0415  once that holds

    try:
        code = main(loaded=lambda: _hear(heard, signal.default_int_handler))
    except KeyboardInterrupt:  # once more, while that was being told
        code = INTERRUPTED
    _hear(heard, _exit(code))
    # Python remembers an interruption of code that was compiled at run time, and would end by the signal, not with the code.
    exec("")  # noqa: S102
    sys.exit(code)


def _hear(signals: list[signal.Signals], handler: Callable[..., object]) -> None:
    for number in signals:
        signal.signal(number, handler)


def _exit(code: int, said: bytes = b"") -> Callable[..., object]:
    """A handler that ends the process, whatever it is at."""

    def exit_now(*_: object) -> None:
        with contextlib.suppress(OSError):  # closed
            os.write(2, said)
        os._exit(code)

    return exit_now


if __name__ == "__main__":
    run()
