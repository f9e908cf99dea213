"""What a run leaves for its report, beside record and plan: every plan tried, what each step does, what it was made with."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_amc.config import Settings
from onnx_amc.delivery import one_feed
from onnx_amc.errors import DataError, ModelError
from onnx_amc.granularity import most_of, thinnable, untouched
from onnx_amc.graph import cost
from onnx_amc.graph.groups import Analysis
from onnx_amc.graph.outside import files_of
from onnx_amc.inspection import protected
from onnx_amc.prune.layers import find_layers
from onnx_amc.run.cluster import version_of
from onnx_amc.run.layerwise import layer_errors, layer_times, tensors_behind
from onnx_amc.run.metrics import confusion
from onnx_amc.run.score import Scorer
from onnx_amc.search.journal import Tried
from onnx_amc.searching import Search

FORMAT = 1
PACKAGES = ("onnx-amc", "onnx", "onnxruntime", "numpy", "scipy", "torch", "stable-baselines3")

CHEAP = 2**30
"""Bytes of a data file up to which it is hashed."""


def details_of(search: Search, counts: np.ndarray) -> dict[str, Any]:
    """What was tried, and what the delivered plan does to each step of the walk."""
    analysis, settings = search.builder.analysis, search.settings
    return {
        "format": FORMAT,
        "unit": search.space.unit,
        "approximate": settings.approximate,
        "granularity": settings.granularity,
        "steps": _steps(search, analysis, settings, counts),
        "trials": tried_json(search, search.journal.trials),
        "baselines": {n: tried_json(search, [t])[0] for n, t in search.baselines.items()},
        "finals": tried_json(search, search.finals),
    }


def tried_json(search: Search, trials: Sequence[Tried]) -> list[dict[str, Any]]:
    """Evaluated plans, their prices relative to the original's; what was stopped early is an estimate, and has no parts."""
    parted = search.scorers is not None and search.scorers[1].parts > 0
    return [
        {
            "source": t.source,
            "ratio": search.space.ratio(t.counts),
            "score": t.score,
            "loss": t.loss,
            "reward": t.reward,
            "estimate": parted and not t.parts,
        }
        for t in trials
    ]


def _steps(search: Search, analysis: Analysis, settings: Settings, counts: np.ndarray) -> list[dict[str, Any]]:
    """Every group of channels, or every weight, in the order of the graph: what stays, what goes, what cannot and why."""
    uniform = search.baselines.get("uniform")
    even = [None] * len(counts) if uniform is None else uniform.counts.tolist()
    weights = settings.granularity == "weight"
    about = _of_weights(analysis, settings) if weights else _of_groups(analysis, settings)
    found = []
    for i, step in enumerate(about):
        if step["why"] is None and len(search.units.levels[i]) == 1:
            step["why"] = "no smaller number fits the rounding or the pattern"
        found.append(step | {"kept": int(counts[i]), "uniform": even[i]} if i < len(counts) else step)
    return sorted(found, key=lambda step: step.pop("place"))


def _of_groups(analysis: Analysis, settings: Settings) -> list[dict[str, Any]]:
    """The groups that could be cut, then the others."""
    price = cost.macs(analysis)
    macs = price.terms(analysis.full)
    total, of_node = max(int(macs.sum()), 1), dict(zip(price.names, macs.tolist(), strict=True))
    places = {node: i for i, node in enumerate(analysis.nodes)}
    kept = [*protected(analysis, settings.keep), *[False] * len(analysis.fixed)]
    found = []
    for i, group in enumerate([*analysis.groups, *analysis.fixed]):
        mine = macs[price.of_group(i)].sum() if i < len(analysis.groups) else 0
        mine = mine or sum(of_node.get(n, 0) for n in set(group.nodes))
        found.append(
            {
                "place": min((places.get(n, len(places)) for n in group.nodes), default=len(places)),
                "name": group.name,
                "members": [name for n in group.nodes if (name := analysis.names.get(n, n)) != group.name],
                "whole": group.channels,
                "kept": group.channels,
                "macs": int(mine) / total,
                "why": group.reason or ("protected by --keep" if kept[i] else None),
                "approximate": group.doubt,
            }
        )
    return found


def _of_weights(analysis: Analysis, settings: Settings) -> list[dict[str, Any]]:
    """The weights of which single elements could go, then those of the layers that are left whole."""
    layers, refused = thinnable(analysis)
    places = {node: i for i, node in enumerate(analysis.nodes)}
    dims = {t.name: int(np.prod(t.dims)) for t in analysis.model.proto.graph.initializer}
    kept = untouched(analysis, settings, layers)
    found = [
        (layer.node, layer.weight.name, most_of(analysis, layer, settings), "protected by --keep" if keep else None)
        for layer, keep in zip(layers, kept, strict=True)
    ]
    for node, why in refused.items():
        stored = max((dims.get(name, 0) for name in analysis.nodes[node].input), default=0)
        found.append((node, analysis.names.get(node, node), stored, why))
    return [
        {"place": places[node], "name": name, "members": [analysis.names.get(node, node)], "whole": whole, "kept": whole,
         "macs": None, "why": why, "approximate": None}
        for node, name, whole, why in found
    ]  # fmt: skip


# ---- what is measured on the delivered network -----------------------------------------------------------------------


def errors_json(
    search: Search, kept: Mapping[str, Any], model: onnx.ModelProto, scorer: Scorer
) -> list[dict[str, Any]]:
    """Error of each layer on held-out samples; empty where nothing was refitted, or the activations cannot be had."""
    builder = search.builder
    keep = builder.analysis.keeper({} if search.settings.granularity == "weight" else kept)
    try:
        found = layer_errors(builder.analysis, builder.layers, model, keep, scorer.data, scorer.index)
    except (ModelError, DataError):
        return []
    return [_named(builder.analysis, node) | {"error": error} for node, error in found.items()]


def times_json(analysis: Analysis, model: onnx.ModelProto, settings: Settings) -> list[dict[str, Any]]:
    """Microseconds of each layer before and after; what is added and activated behind one alone counts for it."""
    found = layer_times(analysis, model, one_feed(analysis.model), threads=settings.threads, provider=settings.provider)
    served = _served(analysis)
    sums: dict[str, np.ndarray] = {}
    for tensor, times in found.items():
        node = served.get(tensor, tensor)
        sums[node] = sums.get(node, 0.0) + np.array(times)
    return [
        _named(analysis, node) | {"before": float(before), "after": float(after)}
        for node, (before, after) in sums.items()
    ]


def _served(analysis: Analysis) -> dict[str, str]:
    """Layers by the tensors behind them, biased, added to, activated: kernels may be named after any of these."""
    layers = find_layers(analysis)[0]
    makers = analysis.model.producer
    found = {layer.output: layer.node for layer in layers}
    for node, tensor in tensors_behind(analysis, layers).items():
        found[tensor] = node
        if makers[tensor].op_type in {"Relu", "Clip"}:
            found[makers[tensor].input[0]] = node
    return found | {layer.node: layer.node for layer in layers}


def _named(analysis: Analysis, tensor: str) -> dict[str, str]:
    node = analysis.nodes.get(tensor)
    return {"name": analysis.names.get(tensor, tensor), "op": "" if node is None else node.op_type}


def confusion_json(scorer: Scorer, outputs: list[np.ndarray]) -> dict[str, Any] | None:
    """Which classes are taken for which, by the original and by the delivered network; None without class numbers."""
    if scorer.data.class_numbers is None or scorer.labels is None or scorer.name not in {"top1", "top5"}:
        return None
    original, delivered = (confusion(z, scorer.labels) for z in (scorer.reference, outputs))
    seen = sorted({int(c) for row in (*original, *delivered) for c in row[:2]})
    names = {str(c): scorer.data.classes[c] for c in seen if c in scorer.data.classes}
    return {"names": names, "original": original, "delivered": delivered}


# ---- where it came from ----------------------------------------------------------------------------------------------


def provenance(command: str, record: Mapping[str, Any], model_sha256: str, out: Path) -> dict[str, Any]:
    """The command, versions, machine and hashes of a run whose model has been written."""
    files = {"model": model_sha256, "delivered": _hashed(out)}
    if beside := record.get("int8", {}).get("out"):
        files["int8"] = _hashed(Path(beside))
    files |= {weights.name: _hashed(weights) for weights in files_of(out)}
    data = Path(record["data"] or "")
    if data.is_file() and data.stat().st_size <= CHEAP:
        files["data"] = _hashed(data)
    return {
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in PACKAGES if (found := version_of(name))},
        },
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "sha256": files,
    }


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
