"""The plan: which channels each group keeps. A value that can be checked, priced, saved, compared and replayed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnx_amc.errors import PlanError
from onnx_amc.files import json_text, parse_json, write_text
from onnx_amc.graph.groups import Analysis, Group

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """Kept channels by group; a group that is not named keeps everything.

    Args:
        kept: For each group the sorted indices of the channels it keeps; where single weights go, for each weight how many stay.
        settings: What is needed to replay it: granularity, budget, rounding, seed, refit, training, the digest of the samples.
        model: SHA-256 of the model that it was made for; None for any.

    """

    kept: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None

    @property
    def key(self) -> tuple[tuple[str, Any], ...]:
        """Equal for plans that cut the same."""
        return tuple(sorted(self.kept.items()))

    def to_json(self, analysis: Analysis) -> dict[str, Any]:
        """Return the plan as the file format of the interface, slices of the *original* initializers included."""
        head = {"format": FORMAT, "model_sha256": analysis.model.sha256, **self.settings}
        if self.settings.get("granularity") == "weight":
            return {**head, "weights": [_weight_json(analysis, n, self.kept[n]) for n in self.kept]}
        groups = [_group_json(analysis, g, self.kept[g.name]) for g in analysis.groups if g.name in self.kept]
        return {**head, "groups": groups}

    def save(self, path: str | Path, analysis: Analysis) -> None:
        """Write the plan as JSON."""
        write_text(Path(path), json_text(self.to_json(analysis)))


def read_plan(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a plan's JSON; `parse_plan` holds it against the model.

    Raises:
        PlanError: No such file, or no JSON object.

    """
    where = str(path)
    try:
        document = parse_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PlanError("no such file", where=where, fix="give the plan.json of a run") from error
    except (ValueError, OSError) as error:
        raise PlanError(f"not a JSON file: {error}", where=where, fix="give the plan.json of a run") from error
    if not isinstance(document, dict):
        raise PlanError(f"holds a JSON {type(document).__name__}", where=where, fix="give the plan.json of a run")
    return document


def parse_plan(document: Any, analysis: Analysis, where: str) -> Plan:
    """Check a plan read from JSON against the model.

    Raises:
        PlanError: Another format, another model, unknown groups or impossible channels.

    """
    fine = isinstance(document, dict) and document.get("granularity") == "weight"
    entries = "weights" if fine else "groups"
    if (
        not isinstance(document, dict)
        or document.get("format") != FORMAT
        or not isinstance(document.get(entries), list)
    ):
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise PlanError(f"format is {found!r}, not {FORMAT}", where=where, fix="give a plan.json written by onnx-amc")
    check_model(document.get("model_sha256"), analysis, where)
    read = _weight_entry if fine else _entry
    found = [read(entry, analysis, where) for entry in document[entries]]
    kept: dict[str, Any] = dict(found)
    if len(kept) < len(found):
        named = [name for name, _ in found]
        twice = next(name for name in named if named.count(name) > 1)
        raise PlanError(f"{twice!r} is named twice", where=where, fix="give the plan.json of a run, as it was written")
    rest = {k: v for k, v in document.items() if k not in {"format", "model_sha256", entries}}
    return Plan(kept, rest, analysis.model.sha256)


def check_model(sha: object, analysis: Analysis, where: str) -> None:
    """Hold the digest of a plan's model against that of this one.

    Raises:
        PlanError: They differ.

    """
    if sha != analysis.model.sha256:
        raise PlanError(
            f"made for a model with sha256 {str(sha)[:12]}..., this one has {analysis.model.sha256[:12]}...",
            where=where,
            fix="give the very model file that the plan was made from",
        )


def _weight_entry(entry: Any, analysis: Analysis, where: str) -> tuple[str, int]:
    name: Any = entry.get("tensor") if isinstance(entry, dict) else None
    count: Any = entry.get("kept") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name not in analysis.model.weights:
        raise PlanError(f"unknown weight {name!r}", where=where, fix="give the plan.json of a run on this model")
    total = math.prod(analysis.model.weights[name].dims)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= total:
        raise PlanError(
            f"weight {name!r} has {total} elements, but the plan keeps {str(count)[:60]}",
            where=where,
            fix=f"'kept' must be a whole number from 1 to {total}",
        )
    return str(name), count


def _entry(entry: Any, analysis: Analysis, where: str) -> tuple[str, tuple[int, ...]]:
    name: Any = entry.get("name") if isinstance(entry, dict) else None
    channels: Any = entry.get("kept") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name not in analysis.index:
        raise PlanError(f"unknown group {name!r}", where=where, fix="see `onnx-amc inspect` for the model's groups")
    total = analysis.groups[analysis.index[name]].channels
    fits = (
        isinstance(channels, list)
        and len(channels) > 0
        and all(isinstance(c, int) and not isinstance(c, bool) and 0 <= c < total for c in channels)
        and len(set(channels)) == len(channels)
    )
    if not fits:
        raise PlanError(
            f"group {name!r} has {total} channels, but the plan keeps {str(channels)[:60]}",
            where=where,
            fix=f"'kept' must be a non-empty list of distinct indices from 0 to {total - 1}",
        )
    return str(name), tuple(sorted(channels))


def _weight_json(analysis: Analysis, name: str, kept: int) -> dict[str, Any]:
    total = math.prod(analysis.model.weights[name].dims)
    return {"tensor": name, "elements": total, "kept": kept, "ratio": kept / total}


def _group_json(analysis: Analysis, group: Group, kept: tuple[int, ...]) -> dict[str, Any]:
    return {
        "name": group.name,
        "channels": group.channels,
        "kept": list(kept),
        "ratio": len(kept) / group.channels,
        **({} if group.doubt is None else {"approximate": group.doubt}),
        "slices": slices_json(analysis, group, kept),
    }


def slices_json(analysis: Analysis, group: Group, kept: tuple[int, ...]) -> list[dict[str, Any]]:
    """Every original initializer that the cut of one group shortens, by its original name."""
    gone = np.ones(group.channels, dtype=bool)
    gone[list(kept)] = False
    found: list[dict[str, Any]] = []
    for piece in group.slices:
        removed = piece.index[gone[piece.channel]].tolist()
        if not removed or piece.owner.tensor in analysis.model.made:
            continue
        name, user = analysis.model.origin.get(piece.owner.tensor, (piece.owner.tensor, None))
        entry: dict[str, Any] = {"tensor": name, "axis": piece.owner.axis, "removed": removed, "role": piece.role}
        entry["mask"] = piece.mask
        if user is not None:
            entry["node"] = user
        found.append(entry)
    return found
