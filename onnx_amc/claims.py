"""What a command reads and what it is to write: refused early where one would take the place of the other."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx_amc.errors import OptionError

STDOUT = "-"
RESULTS = ("plan.json", "record.json", "details.json")
"""What a run leaves for each budget."""

OWN = (*RESULTS, "evaluations.jsonl")
"""What a run keeps in its directory."""

DESCRIBES = frozenset({"preprocess.json", "classes.json", "dataset_info.json", "state.json", "dataset_dict.json"})
"""What folders of data say of themselves."""


def filled(args: argparse.Namespace) -> None:
    """Refuse options that name nothing: mostly a variable of a script that is not set.

    Raises:
        OptionError: One is an empty text.

    """
    for name, value in vars(args).items():
        if value == "" and name not in {"data", "model", "plan"}:  # of which it is said what they may be
            where = f"--{name.replace('_', '-')}"
            raise OptionError("is empty", where=where, fix="give it a value, or leave it out")


def read_from(args: argparse.Namespace) -> dict[str, str]:
    """What is read of data, metric and reward: files and folders, and the modules of functions."""
    found = {}
    for option in ("data", "metric", "reward"):
        name = getattr(args, option, None)
        if name:
            module = ":" in name and not Path(name).exists()
            found[f"--{option}"] = f"{name.partition(':')[0].replace('.', os.sep)}.py" if module else name
    return found


def claim(
    given: Mapping[str, str | None],
    wanted: Mapping[str, str | Path | None],
    model: str | None = None,
    own: Sequence[Path] = (),
) -> None:
    """Refuse early what could not be written late, or would take the place of what is given, or of another output.

    Args:
        given: What is read, by option; what is no file is left out.
        wanted: What is to be written, by option.
        model: What is read and may keep weights in files beside it, as then what is written will.
        own: Files of the run directory.

    """
    if model is not None:
        from onnx_amc.graph.outside import files_of  # noqa: PLC0415  keeps --help light

        models = {f"the weights of {n}": Path(f"{p}.data") for n, p in wanted.items() if n.startswith(("-o", "--int8"))}
        for option, path in models.items():
            _nameable(path, option.removeprefix("the weights of "))
        outside = files_of(Path(model))
        given = {**given, **{f"the weights of MODEL ({path})": str(path) for path in outside}}
        wanted = {**wanted, **(models if outside else {})}
    taken = {os.path.realpath(path): f"the run's {path.name}" for path in own}
    taken |= {os.path.realpath(path): name for name, path in given.items() if path and Path(path).is_file()}
    for option, place in wanted.items():
        if place is None or (place == STDOUT and option == "--json"):
            continue
        path = Path(place)
        if option == "--json" and path.exists() and not path.is_file() and not path.is_dir():
            continue  # a pipe or a device takes what comes
        writable(path, option)
        real = os.path.realpath(path)
        if real in taken:
            raise OptionError(f"is {taken[real]} itself", where=f"{option} {path}", fix="give another name")
        for source in (name for name, folder in given.items() if folder and _belongs(path, Path(folder))):
            raise OptionError(f"is part of {source}", where=f"{option} {path}", fix="give another name")
        taken[real] = option


def _belongs(path: Path, folder: Path) -> bool:
    """Whether a file is one of those that make a folder one of data."""
    if not (folder.is_dir() and path.is_file() and path.resolve().is_relative_to(folder.resolve())):
        return False
    from onnx_amc.run.images import SUFFIXES  # noqa: PLC0415  keeps --help light

    return path.suffix.lower() in SUFFIXES | {".arrow"} or path.name in DESCRIBES


def _nameable(path: Path, option: str) -> None:
    """Refuse early what onnxruntime could not open late."""
    shown = str(path).encode(errors="backslashreplace")
    if os.fsencode(path) != shown:
        what, fix = "its name is not UTF-8, which onnxruntime needs", "choose another name or folder"
        raise OptionError(what, where=f"{option} {shown.decode()}", fix=fix)


def writable(path: Path, option: str) -> None:
    """Refuse early what could not be written late."""
    parent = path.parent
    if path.exists() and not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file"
        raise OptionError(what, where=f"{option} {path}", fix="name a file in it" if path.is_dir() else "name a file")
    while not parent.exists() and option == "--run-dir":
        parent = parent.parent
    if parent.exists() and not parent.is_dir():
        raise OptionError(f"{parent} is no folder", where=f"{option} {path}", fix="name another place")
    if not parent.is_dir():
        raise OptionError("its folder does not exist", where=f"{option} {path}", fix=f"create {parent} first")
    if not os.access(parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OptionError("cannot be written", where=f"{option} {path}", fix="choose a folder you may write to")
