"""Files that appear whole or not at all, and what is read from files that anybody may have written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from onnx_amc.errors import OptionError

FULL = "choose another place, or make room there; nothing that was there before is lost"


@contextlib.contextmanager
def whole(path: Path, where: str | None = None) -> Iterator[Path]:
    """Give the name of a file beside `path` to write to; it takes the place of `path` once the block has ended well.

    Args:
        path: Where the file goes.
        where: What to call it in messages; the path unless given.

    Raises:
        OptionError: It cannot be written: no folder, no right, no room.

    """
    beside = temporary(path)
    try:
        sweep(path)
        yield beside
        settle(beside, path)
    except OSError as error:
        raise unwritable(error, where or str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; into what is no file, a pipe or a device, as it comes.

    Raises:
        OptionError: It cannot be written.

    """
    if path.exists() and not path.is_file():
        try:
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise unwritable(error, str(path)) from error
        return
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def temporary(path: Path) -> Path:
    """The name beside `path` that this process may write to until all is there."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def settle(beside: Path, path: Path) -> None:
    """Rename a finished file to its place, once it is on the disk: else a power failure could leave an empty one there."""
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)


def sweep(path: Path) -> None:
    """Remove what processes that were killed have left beside `path`."""
    for left in path.parent.glob(f".{_plain(path.name)}.*.tmp"):
        number = left.name.split(".")[-2]
        if number.isdecimal() and not _alive(int(number)):
            left.unlink(missing_ok=True)


def unwritable(error: OSError, where: str) -> OptionError:
    """What to tell the user of a file that cannot be written."""
    return OptionError(f"cannot be written: {error.strerror or error}", where=where, fix=FULL)


def json_text(found: Any) -> str:
    """JSON as all files have it: indented, with a line's end; null for what is no finite number, which JSON does not have."""
    return json.dumps(_finite(found), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The same JSON without the numbers that JSON does not have: None in their place."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def parse_json(text: str) -> Any:
    """Read JSON that anybody may have written.

    Raises:
        ValueError: It is none, or nested too deeply.

    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _plain(name: str) -> str:
    """A name in which no character stands for others in a glob."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is there, but another user's
        return True
    return True
