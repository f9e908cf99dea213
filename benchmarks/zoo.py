"""Every graph of the zoo, cut to half of its channels: time, groups, what is left, exactness, and what holds the rest.

    python benchmarks/zoo.py [--shared ../shared] [--only resnet] [--round-to 1] [--out FILE.md]

Weights are drawn, so this measures structure, exactness and time, not accuracy. `difference` is that of the masked original and
the cut model, rebuilt here from the plan's JSON with nothing but onnx and onnxruntime.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from onnx_amc.delivery import figures
from onnx_amc.errors import AmcError
from onnx_amc.graph.groups import Analysis, analyse
from onnx_amc.graph.load import load
from onnx_amc.graph.shapes import sample_feed
from onnx_amc.prune.plan import Plan
from onnx_amc.prune.surgery import cut, finish
from onnx_amc.search.space import levels_of

HEAD = (
    "| graph | nodes | groups | fixed | MACs left | analyse s | cut s | difference | what holds the rest |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def masked(original: onnx.ModelProto, document: dict[str, Any]) -> onnx.ModelProto:
    """The original with the plan's `mask` slices set to zero."""
    result = onnx.ModelProto()
    result.CopyFrom(original)
    holders = {t.name: t for t in result.graph.initializer}
    holders |= {n.output[0]: n.attribute[0].t for n in result.graph.node if n.op_type == "Constant"}
    for entry in (s for g in document["groups"] for s in g["slices"] if s["mask"]):
        holder = holders[entry["tensor"]]
        array = numpy_helper.to_array(holder).copy()
        array[(slice(None),) * entry["axis"] + (entry["removed"],)] = 0
        holder.CopyFrom(numpy_helper.from_array(array, holder.name))
    return result


def difference(a: onnx.ModelProto, b: onnx.ModelProto, feed: dict[str, np.ndarray]) -> float:
    """Largest |a - b| relative to the largest |a|, over all outputs."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    sessions = [
        ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"]) for m in (a, b)
    ]
    left, right = (s.run(None, feed) for s in sessions)
    gaps = [
        np.abs(x - y).max(initial=0) / max(np.abs(x).max(initial=0), 1e-12) for x, y in zip(left, right, strict=True)
    ]
    return float(max(gaps, default=0.0))


def holders_of_the_rest(analysis: Analysis) -> str:
    """The reasons that fix most channels."""
    reasons: Counter[str] = Counter()
    for group in analysis.fixed:
        reasons[str(group.reason)] += group.channels
    return "; ".join(reason for reason, _ in reasons.most_common(2))


def row(name: str, model: onnx.ModelProto, round_to: int | None) -> str:
    """Cut one graph and describe the result."""
    start = time.perf_counter()
    analysis = analyse(load(model))
    middle = time.perf_counter()
    rng = np.random.default_rng(0)
    kept = {}
    for group in analysis.groups:
        levels = levels_of(group.channels, round_to, 0.2, group.lanes)
        count = int(levels[np.argmin(np.abs(levels - 0.5 * group.channels))])
        if count < group.channels:
            kept[group.name] = tuple(sorted(rng.choice(group.channels, count, replace=False).tolist()))
    result = finish(analysis, cut(analysis, kept))
    end = time.perf_counter()
    onnx.checker.check_model(result)
    document = json.loads(json.dumps(Plan(kept).to_json(analysis)))
    gap = difference(masked(model, document), result, sample_feed(model, analysis.model.shapes))
    left = figures(result)["macs"] / max(figures(model, analysis.model)["macs"], 1)
    cells = [name, len(model.graph.node), len(analysis.groups), len(analysis.fixed), f"{left:.1%}"]
    cells += [f"{middle - start:.2f}", f"{end - middle:.2f}", f"{gap:.0e}", holders_of_the_rest(analysis)]
    return "| " + " | ".join(str(c) for c in cells) + " |"


def main() -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--round-to", default="1")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("hydrate", args.shared / "zoo" / "hydrate.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"no hydrate.py in {args.shared / 'zoo'}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    round_to = None if args.round_to == "auto" else int(args.round_to)
    lines, failures = [HEAD], 0
    print(HEAD, flush=True)
    for path in sorted([*(args.shared / "zoo").glob("*.onnx"), *(args.shared / "models").glob("*.onnx")]):
        if not any(part in path.name for part in args.only):
            continue
        try:
            lines.append(row(path.stem, module.hydrate(str(path)), round_to))
        except (AmcError, RuntimeError, ValueError) as error:
            failures += 1
            lines.append(f"| {path.stem} | failed: {str(error).splitlines()[0]} |")
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
