"""Every graph of the zoo and every real model through `compress --channels 0.5 --policy uniform --no-refit`.

    python benchmarks/zoo.py [--shared ../shared] [--only resnet] [--round-to auto] [--out FILE.md]

The zoo's weights are drawn, so this measures structure, exactness, time and speed, not accuracy. `difference` is that of the masked
original and the cut model, relative, rebuilt here from the plan's JSON with nothing but onnx and onnxruntime; `latency` is the
median of paired runs, batch 1. `what holds the rest` names, for what is above a quarter of the MACs, the nodes and the reasons.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from onnx_amc import compress, inspect
from onnx_amc.errors import AmcError
from onnx_amc.graph.shapes import sample_feed
from onnx_amc.prune.surgery import cut, finish

HEAD = (
    "| graph | nodes | groups | MACs left | analysis s | surgery s | difference | latency | what holds the rest |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def weights_of(shared: Path) -> Callable[[Path], onnx.ModelProto]:
    """What draws the weights of a graph of the zoo."""
    spec = importlib.util.spec_from_file_location("hydrate", shared / "zoo" / "hydrate.py")
    if spec is None or spec.loader is None or not (shared / "zoo").is_dir():
        raise SystemExit(f"no hydrate.py in {shared / 'zoo'}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda path: module.hydrate(str(path))


def masked(original: onnx.ModelProto, document: dict[str, Any]) -> onnx.ModelProto:
    """The original with the plan's `mask` slices set to zero, for the one user that they name where they name one."""
    result = onnx.ModelProto()
    result.CopyFrom(original)
    values = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    values |= {
        n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in result.graph.node if n.op_type == "Constant"
    }
    copies: dict[tuple[str, str], np.ndarray] = {}
    for entry in (s for g in document["groups"] for s in g["slices"] if s["mask"]):
        key = (entry["tensor"], entry.get("node", ""))
        array = copies.setdefault(key, values[key[0]].copy())
        array[(slice(None),) * entry["axis"] + (entry["removed"],)] = 0
    for (name, user), array in copies.items():
        new = numpy_helper.from_array(array, f"{name}, masked for {user or 'all'}")
        result.graph.initializer.append(new)
        for node in result.graph.node:
            if name in node.input and (not user or user in node.output):
                node.input[:] = [new.name if i == name else i for i in node.input]
    return result


def difference(a: onnx.ModelProto, b: onnx.ModelProto, feed: dict[str, np.ndarray]) -> float:
    """Largest |a - b| relative to the largest |a|, over all outputs; both must have the same inputs and outputs."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    left, right = (
        ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"]) for m in (a, b)
    )
    for one, other in ((left.get_inputs(), right.get_inputs()), (left.get_outputs(), right.get_outputs())):
        if [(i.name, i.shape, i.type) for i in one] != [(i.name, i.shape, i.type) for i in other]:
            raise ValueError("inputs or outputs have changed")
    pairs = zip(left.run(None, feed), right.run(None, feed), strict=True)
    return float(max(np.abs(x - y).max(initial=0) / max(np.abs(x).max(initial=0), 1e-12) for x, y in pairs))


def holders(found: dict[str, Any], cut_macs: dict[str, int]) -> str:
    """The nodes that keep most MACs above the quarter that half of all channels would leave, and what fixes them."""
    reasons: dict[str, str] = {}
    for group in found["fixed"]:
        reasons |= dict.fromkeys(group["members"], group["reason"])
    whole = max(found["macs"], 1)
    excess: Counter[str] = Counter()
    for layer in found["layers"]:
        above = cut_macs.get(layer["name"], 0) - layer["macs"] / 4
        if above / whole > 0.005:
            excess[reasons.get(layer["name"], f"{layer['op']} '{layer['name']}' of one cut axis")] += above / whole
    if not found["groups"]:
        return "; ".join(dict.fromkeys(reasons.values()))
    return "; ".join(f"{share:.1%}: {reason}" for reason, share in excess.most_common(3))


def row(name: str, model: onnx.ModelProto, round_to: int | None) -> str:
    """Cut one graph and describe the result."""
    result = compress(model, channels=0.5, policy="uniform", refit=False, round_to=round_to)
    record, analysis = result.record, result.analysis
    document = json.loads(json.dumps(result.plan.to_json(analysis)))
    start = time.perf_counter()
    finish(analysis, cut(analysis, result.plan.kept))
    surgery = time.perf_counter() - start
    onnx.checker.check_model(result.model)
    gap = difference(masked(model, document), result.model, sample_feed(model, analysis.model.shapes))
    after = {entry["name"]: entry["macs"] for entry in inspect(result.model)["layers"]}
    before = record["original"]["macs"]
    left = f"{record['compressed']['macs'] / before:.1%}" if before else "-"
    cells = [name, str(len(model.graph.node)), str(len(analysis.groups)), left]
    cells += [f"{record['seconds']['analyse']:.2f}", f"{surgery:.2f}", f"{gap:.0e}"]
    cells += [f"{record['compressed']['latency_ratio']:.2f}", holders(inspect(model), after)]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--round-to", default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    hydrate = weights_of(args.shared)
    round_to = None if args.round_to == "auto" else int(args.round_to)
    lines, failures = [HEAD], 0
    print(HEAD, flush=True)
    for path in sorted([*(args.shared / "zoo").glob("*.onnx"), *(args.shared / "models").glob("*.onnx")]):
        if not any(part in path.name for part in args.only):
            continue
        try:
            drawn = hydrate(path) if path.parent.name == "zoo" else onnx.load(path)
            lines.append(row(path.stem, drawn, round_to))
        except (AmcError, RuntimeError, ValueError) as error:
            failures += 1
            lines.append(f"| {path.stem} | failed: {str(error).splitlines()[0]} |")
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
