"""The run directory: results that cost time, written down as they come, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnx_amc.errors import OptionError

FORMAT = 1
CHECKPOINT = "recovery-{}.npz"


def forget(folder: Path) -> None:
    """Remove the states of trainings that are done, or of another run."""
    for path in folder.glob(CHECKPOINT.format("*")):
        path.unlink(missing_ok=True)


class Memo:
    """Remembers numbers by key, in memory only."""

    def __init__(self) -> None:
        self._known: dict[str, list[float]] = {}

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

    Args:
        folder: The run directory; made where it does not exist.
        identity: What the run is a function of: model, data and settings.
        resume: Whether to go on with what is there; otherwise it is begun anew.

    Raises:
        OptionError: There is nothing to resume, or it belongs to another run.

    """

    def __init__(self, folder: str | os.PathLike[str], identity: Mapping[str, Any], *, resume: bool) -> None:
        super().__init__()
        self.folder = Path(folder)
        self._path = self.folder / "evaluations.jsonl"
        text = json.dumps(identity, sort_keys=True, default=str)
        self._print = hashlib.sha256(text.encode()).hexdigest()
        self._begun = resume
        if resume:
            self._load()
        else:
            forget(self.folder)

    def _load(self) -> None:
        where = f"--resume {self.folder}"
        if not self._path.is_file():
            raise OptionError("there is no run to resume", where=where, fix="leave --resume out, or name its --run-dir")
        whole = self._path.read_text(encoding="utf-8")
        complete = whole[: whole.rfind("\n") + 1]
        if len(complete) < len(whole):
            self._path.write_text(complete, encoding="utf-8")
        try:
            head, *lines = [json.loads(line) for line in complete.splitlines()]
            same = head["format"] == FORMAT and head["run"] == self._print
            self._known = {line["key"]: [float(v) for v in line["values"]] for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError("evaluations.jsonl is damaged", where=where, fix="run again without --resume") from error
        if not same:
            raise OptionError(
                "it was made with another model, other data or other options",
                where=where,
                fix="give the same command as before, or leave --resume out to begin anew",
            )

    def checkpoint(self, ratio: float) -> Path:
        """A file in the run directory, which from now on can be resumed."""
        self._append([])
        return self.folder / CHECKPOINT.format(ratio)

    def _write(self, key: str, values: list[float]) -> None:
        self._append([{"key": key, "values": values}])

    def _append(self, lines: list[dict[str, Any]]) -> None:
        if not self._begun:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines.insert(0, {"format": FORMAT, "run": self._print})
        with self._path.open("a" if self._begun else "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        self._begun = True
