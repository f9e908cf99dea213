"""The last steps: count, check and write what is delivered, each by a route of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_amc import files
from onnx_amc.granularity import Units
from onnx_amc.graph import cost, light
from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import Model, load, true_inputs
from onnx_amc.graph.shapes import sample_feed
from onnx_amc.prune.plan import Plan
from onnx_amc.prune.sparse import elements, in_nodes, nonzeros
from onnx_amc.run.capture import fixed_batch
from onnx_amc.run.samples import Dataset, InputSpec
from onnx_amc.run.session import open_session
from onnx_amc.search.journal import Journal, Tried
from onnx_amc.search.loop import CLOSED

WHOLE = frozenset(getattr(onnx.TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64))
"""Types of whole numbers."""


@dataclass(frozen=True)
class Result:
    """What a run delivers; it can be pickled.

    Args:
        model: The compressed model.
        plan: What was cut.
        record: Everything measured, as in `--json`.
        analysis: Of the original.
        trials: Every evaluated plan.
        details: What else a report shows, see `details`.
        int8: The compressed model quantised, where that was wanted and could be done.

    """

    model: onnx.ModelProto
    plan: Plan
    record: dict[str, Any]
    analysis: Analysis = field(repr=False)
    trials: list[Tried] = field(repr=False, default_factory=list)
    details: dict[str, Any] = field(repr=False, default_factory=dict)
    int8: onnx.ModelProto | None = field(repr=False, default=None)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: rewards stay what they were, without the functions that made them."""
        rules = {id(t.rule): t.rule.settled() for t in self.trials}
        return self.__dict__ | {"trials": [replace(t, rule=rules[id(t.rule)]) for t in self.trials]}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model: beside its place first, then renamed, so that a file there is replaced by a whole one only."""
        write_model(self.model, Path(path), external=self.analysis.model.external)

    def save_int8(self, path: str | os.PathLike[str]) -> bool:
        """Write the int8 model in the same way; return whether there is one."""
        if self.int8 is not None:
            write_model(self.int8, Path(path), external=self.analysis.model.external)
        return self.int8 is not None


def int8_beside(out: Path) -> Path:
    """Where the int8 model of a run goes: OUT with .int8.onnx in place of .onnx."""
    return out.with_suffix(".int8.onnx")


def figures(
    model: onnx.ModelProto, known: Analysis | None = None, sizes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Any]:
    """MACs, parameters, those of them that are not zero, and bytes of a model, counted on the model itself.

    Args:
        model: The model.
        known: Its analysis, where that is at hand.
        sizes: Shapes of its inputs for one sample, as for `load`.

    """
    analysis = known or analyse(load(model, sizes))
    beside = in_nodes(model, analysis)
    return {
        "macs": cost.macs(analysis)(analysis.full),
        "params": elements(model, beside),
        "nonzeros": nonzeros(model, beside),
        "bytes": analysis.model.bytes,
    }


def actual_cost(kind: str, granularity: str) -> Callable[[onnx.ModelProto], float] | None:
    """What counts in a finished model towards a budget; None where the price of a plan is that very number.

    The biases that a refit gives to layers that had none are priced, but it may leave a layer alone; and the file has more in it
    than weights.
    """
    if kind == "params":
        return elements if granularity == "channel" else nonzeros
    return light.size if kind == "size" else None


def outcome(journal: Journal, policy: str, units: Units, counts: np.ndarray) -> dict[str, Any]:
    """What a search found: the plan delivered and who proposed it, the rewards, and what the loss counted for in them."""
    trials = [] if policy in CLOSED else [t for t in journal.trials if t.source == policy]
    best = max(range(len(trials)), key=lambda i: trials[i].rank, default=None)
    first = next((t for t in journal.trials if np.array_equal(t.counts, counts)), None)
    return {
        "delivered": first.source if first else policy,
        "best_episode": best,
        "rewards": [t.reward for t in trials],
        "loss_weight": journal.rule.shaping,
        "groups": units.described(counts),
    }


def write_model(model: onnx.ModelProto, path: Path, *, external: bool = False) -> None:
    """Write beside the place, read back in onnxruntime, then rename: a file there is replaced by a whole one only.

    Args:
        model: The model.
        path: Where it goes.
        external: Whether the weights go to a file of their own beside it, `PATH.data`; above 2 GB they must.

    Raises:
        OptionError: The folder cannot be written.

    """
    beside = path.with_name(f"{path.name}.data")
    bare, data = files.temporary(path), files.temporary(beside)
    graph, weights = model, list[onnx.TensorProto]()
    if external or light.size(model) > light.LARGEST:
        graph, weights = light.externalise(model, data.name)  # none, where all that is large is stored sparse
    try:
        for place in (path, beside):
            files.sweep(place)
        if weights:
            with data.open("wb") as file:
                file.writelines(tensor.raw_data for tensor in weights)
        bare.write_bytes(graph.SerializeToString(deterministic=True))
        open_session(str(bare), where=str(path), once=True)
        if weights:
            graph, _ = light.externalise(model, beside.name)
            bare.write_bytes(graph.SerializeToString(deterministic=True))
            # Stopped between the two, there is no model rather than one with another's weights.
            path.unlink(missing_ok=True)
            files.settle(data, beside)
        files.settle(bare, path)
    except OSError as error:
        raise files.unwritable(error, str(path)) from error
    finally:
        for left in (bare, data):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)


def input_specs(model: onnx.ModelProto) -> list[InputSpec]:
    """What the model takes."""
    return [
        InputSpec(
            info.name,
            np.dtype(onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)),
            tuple(d.dim_value if d.dim_value > 0 else None for d in info.type.tensor_type.shape.dim),
        )
        for info in true_inputs(model)
    ]


def check_feed(model: Model, data: Dataset | None) -> dict[str, np.ndarray]:
    """Input of the self-check: two samples of the data, or noise."""
    if data is None:
        return sample_feed(model.proto, model.shapes)
    return data.batch(np.arange(fixed_batch(model.proto) or 2) % len(data))


def one_feed(model: Model, data: Dataset | None = None) -> dict[str, np.ndarray]:
    """Input of the latency measurement: one sample of the data, or noise, batch 1."""
    if data is not None:
        return data.batch(np.zeros(fixed_batch(model.proto) or 1, dtype=np.int64))
    return sample_feed(model.proto, model.shapes)


def class_count(model: Model) -> int | None:
    """The number of classes where the first output looks like a classifier's, (batch, classes), else None."""
    outputs = model.proto.graph.output
    shape = model.shapes.get(outputs[0].name, ()) if outputs else ()
    wide = [d for d in shape[1:] if d > 1]
    return wide[0] if len(wide) == 1 else None


def names_classes(model: Model) -> bool:
    """Whether the first output is one whole number per sample: the class's, where a network ends in an ArgMax."""
    outputs = model.proto.graph.output
    shape = model.shapes.get(outputs[0].name, ()) if outputs else ()
    kind = outputs[0].type.tensor_type.elem_type if outputs else 0
    return kind in WHOLE and len(shape) > 0 and all(d == 1 for d in shape[1:])
