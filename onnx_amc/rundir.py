"""The run directory: results that cost time, written down as they come, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from onnx_amc.config import Settings
from onnx_amc.errors import OptionError
from onnx_amc.files import parse_json, unwritable
from onnx_amc.run.cluster import software
from onnx_amc.run.metrics import imported

FORMAT = 2
CHECKPOINT = "recovery-{}.npz"
JOURNAL, LOCK = "evaluations.jsonl", "lock"
ASIDE = frozenset({"workers", "ray", "save_agent", "tensorboard", "cache"})
"""Settings that no result depends on."""

BUSY = frozenset({errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK})
"""What the system says of a lock that another process holds; anything else means that the place knows no locks."""


def forget(folder: Path) -> None:
    """Remove the states of trainings that are done, or of another run."""
    for path in folder.glob(CHECKPOINT.format("*")):
        path.unlink(missing_ok=True)


# ---- one process at a time -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def held(folder: Path, *, resume: bool = False) -> Iterator[None]:
    """Keep other processes away from a run directory, which is made where it is not there, and unmade if it stays empty.

    The system lets go of the lock when the process ends, however it ends: nothing has to be cleaned up after a crash.

    Raises:
        OptionError: Another process works in it, it cannot be written, or there is nothing to go on with in it.

    """
    if resume and not folder.is_dir():
        raise _nothing(folder)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(folder / LOCK)
    except OSError as error:
        raise unwritable(error, f"--run-dir {folder}") from error
    if file is None:
        holder = (folder / LOCK).read_text(encoding="utf-8", errors="replace").strip()
        raise OptionError(
            f"another process is at work in it ({holder})",
            where=f"--run-dir {folder}",
            fix="wait until it has ended, or give this run a --run-dir of its own",
        )
    try:
        yield
    except KeyboardInterrupt:
        made = []  # to be gone on with
        raise
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
        file.close()
        with contextlib.suppress(OSError):  # not empty: something was written
            for place in made:
                place.rmdir()


def _locked(path: Path) -> BinaryIO | None:
    """The lock file, open and locked, with this process's number in it; None where another process has it."""
    while True:
        file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        try:
            _lock(file)
        except OSError as error:
            if error.errno in BUSY:
                file.close()
                return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.write(f"process {os.getpid()}\n".encode())
                return file
        file.close()  # who had it has removed it in between


if sys.platform == "win32":
    import msvcrt

    def _lock(file: BinaryIO) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---- what is remembered --------------------------------------------------------------------------------------------


def identity_of(settings: Settings, model: str, samples: str | None) -> dict[str, Any]:
    """What a run's results are a function of: what other software said, or another function or agent of the user's, does not hold.

    Args:
        settings: Of the run.
        model: SHA-256 of the model.
        samples: Digest of the samples; None without any.

    """
    named = {"--metric": settings.metric, "--reward": settings.reward}
    own = [(imported(name, option), name.partition(":")[0]) for option, name in named.items() if name and ":" in name]
    files = [getattr(sys.modules[module], "__file__", None) for _, module in own]
    if settings.agent and Path(settings.agent).is_file() and os.access(settings.agent, os.R_OK):
        files.append(settings.agent)  # otherwise the search says that it cannot be read
    return {
        "model": model,
        "settings": {name: value for name, value in asdict(settings).items() if name not in ASIDE},
        "data": samples,
        "software": software(),
        "code": [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if file],
    }


class Memo:
    """Remembers numbers by key, in memory only."""

    def __init__(self) -> None:
        self._known: dict[str, list[float]] = {}

    def known(self, key: str) -> list[float] | None:
        """Return what is known under the key."""
        return self._known.get(key)

    def get(self, key: str, compute: Callable[[], list[float]]) -> list[float]:
        """Return what is known under the key, or compute it and write it down."""
        if key not in self._known:
            self._known[key] = compute()
            self._write(key, self._known[key])
        return self._known[key]

    def later(self, key: str, begin: Callable[[], Callable[[], list[float]]]) -> Callable[[], list[float]]:
        """Return what waits for the result; it is begun unless it is known, and written down when it is waited for."""
        if key in self._known:
            return lambda: self._known[key]
        wait = begin()
        return lambda: self.get(key, wait)

    def checkpoint(self, ratio: float) -> Path | None:  # noqa: ARG002  this one keeps nothing
        """Where the training for a budget may keep its state from epoch to epoch; here: nowhere."""
        return None

    def _write(self, key: str, values: list[float]) -> None:
        """Keep a result beyond this process; here: not at all."""


class RunDir(Memo):
    """Remembers in `evaluations.jsonl`; every search is deterministic, so a resumed one asks the same questions again.

    Each line carries a checksum of itself. The last one may be torn, by a process that was killed or a disk that was full: it is
    dropped, and that result computed again.

    Args:
        folder: The run directory; made where it does not exist.
        identity: What the run is a function of: model, data and settings.
        resume: Whether to go on with what is there; otherwise it is begun anew.

    Raises:
        OptionError: There is nothing to resume, it is damaged, or it belongs to another run.

    """

    def __init__(self, folder: str | os.PathLike[str], identity: Mapping[str, Any], *, resume: bool) -> None:
        super().__init__()
        self.folder = Path(folder)
        self._path = self.folder / JOURNAL
        text = json.dumps(identity, sort_keys=True, default=str)
        self._print = hashlib.sha256(text.encode()).hexdigest()
        self._begun = resume and self._load()
        if not self._begun:
            forget(self.folder)
            with contextlib.suppress(OSError):  # what cannot be written says so at the first result
                self._path.unlink(missing_ok=True)

    def _load(self) -> bool:
        """Read what is known; whether there was anything: a run may have been stopped before its first result."""
        where = f"--resume {self.folder}"
        if not self.folder.is_dir():
            raise _nothing(self.folder)
        try:
            content = self._path.read_bytes()
            lines = _lines(content, where)
            kept = sum(len(line) for line in content.splitlines(keepends=True)[: len(lines)])
            if lines and kept < len(content):
                os.truncate(self._path, kept)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise unwritable(error, str(self._path)) from error
        if not lines:
            return False
        head, *results = lines
        if head.get("format") != FORMAT or head.get("run") != self._print:
            raise OptionError(
                "it was made with another model, other data or other options",
                where=where,
                fix="give the same command as before, or leave --resume out to begin anew",
            )
        self._known = {line["key"]: [float(v) for v in line["values"]] for line in results}
        return True

    def checkpoint(self, ratio: float) -> Path:
        """A file in the run directory, which from now on can be resumed."""
        self._append([])
        return self.folder / CHECKPOINT.format(ratio)

    def _write(self, key: str, values: list[float]) -> None:
        self._append([{"key": key, "values": values}])

    def _append(self, lines: list[dict[str, Any]]) -> None:
        if not self._begun:
            lines.insert(0, {"format": FORMAT, "run": self._print})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab" if self._begun else "wb") as file:
                file.write(b"".join(_signed(line) for line in lines))
        except OSError as error:
            raise unwritable(error, str(self._path)) from error
        self._begun = True


def _signed(line: Mapping[str, Any]) -> bytes:
    """A line of the journal: JSON that ends with a checksum of what stands before it."""
    text = json.dumps(line)[:-1]
    return f'{text}, "crc32": {zlib.crc32(text.encode())}}}\n'.encode()


def _read(line: bytes) -> dict[str, Any] | None:
    """What a line says; None where it is not what was written."""
    text, comma, rest = line.rpartition(b', "crc32": ')
    if not comma or rest != f"{zlib.crc32(text)}}}\n".encode():
        return None
    found: dict[str, Any] = parse_json(f"{text.decode()}}}")
    return found


def _lines(content: bytes, where: str) -> list[dict[str, Any]]:
    """All lines of a journal but a damaged last one.

    Raises:
        OptionError: Another one is damaged.

    """
    found = [_read(line) for line in content.splitlines(keepends=True)]
    if found and found[-1] is None:
        found.pop()
    if None in found:
        raise OptionError(
            f"line {found.index(None) + 1} of {JOURNAL} is damaged, or written by another version",
            where=where,
            fix="run again without --resume",
        )
    return [line for line in found if line is not None]


def _nothing(folder: Path) -> OptionError:
    return OptionError(
        "there is no run to resume: none was begun there, or it was stopped before it had made its folder",
        where=f"--resume {folder}",
        fix="leave --resume out, or name its --run-dir",
    )
