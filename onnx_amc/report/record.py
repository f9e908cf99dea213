"""A finished run as it lies in its directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_amc.errors import OptionError
from onnx_amc.files import parse_json

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """What a run has left for one budget.

    Args:
        folder: Where it lies.
        record: What `--json` gives.
        details: What was tried, what it ran with, what was measured layer by layer.

    """

    folder: Path
    record: Mapping[str, Any]
    details: Mapping[str, Any]

    @property
    def ratio(self) -> float:
        """The fraction that was to be left."""
        return float(self.record["budget"]["ratio"])


def read_all(folder: Path) -> list[Run]:
    """Every result in a run directory: one, or one for each of several budgets.

    Raises:
        OptionError: There is no finished run in it, or what is there cannot be read.

    """
    whole = _json(folder, folder / "record.json")
    if "budgets" not in whole:
        return [_run(folder, whole)]
    try:
        places = [folder / f"{part['budget']['ratio']:g}" for part in whole["budgets"]]
    except (TypeError, KeyError, ValueError) as error:
        raise _unreadable(folder, f"record.json is damaged: {error!r}") from error
    return [_run(place, _json(place, place / "record.json")) for place in places]


def _run(folder: Path, record: Mapping[str, Any]) -> Run:
    details = _json(folder, folder / "details.json")
    if details.get("format") != FORMAT or "compressed" not in record:
        raise _unreadable(folder, f"format {details.get('format')!r}, not {FORMAT}")
    return Run(folder, record, details)


def _json(folder: Path, path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _unfinished(folder, path) from None
    except (OSError, ValueError) as error:
        raise _unreadable(folder, f"{path.name} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise _unreadable(folder, f"{path.name} holds a JSON {type(found).__name__}")
    return found


def _unfinished(folder: Path, path: Path) -> OptionError:
    where = f"RUN_DIR {folder}"
    if not folder.is_dir():
        return OptionError(
            "there is no such folder", where=where, fix="give the --run-dir of a run, OUT.run by default"
        )
    if (folder / "evaluations.jsonl").is_file() and not (folder / "record.json").is_file():
        fix = "finish it: the same `onnx-amc compress` command with --resume"
        return OptionError("the run in it has not finished", where=where, fix=fix)
    fix = "give the --run-dir of a finished run, OUT.run by default"
    return OptionError(f"it holds no {path.name}, so no finished run", where=where, fix=fix)


def _unreadable(folder: Path, what: str) -> OptionError:
    return OptionError(what, where=f"RUN_DIR {folder}", fix="run `onnx-amc compress` again with this version")
