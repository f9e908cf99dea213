"""Eight bits after compression: what onnxruntime's static quantisation costs a compressed network, and how ranges are best taken.

    python benchmarks/int8.py [--shared ../shared] [--flops 0.5] [--compressed FILE] [--methods] [--out FILE.md]

Compresses as `compress --flops R --policy knapsack --no-recover` does, on the `search` data, or takes a network that was compressed
before. `--methods` holds ways to quantise against each other on the held-out part of the `search` data; without it the usual way
is scored on the `test` data, by which nothing was chosen. Latency is that of one thread, batch 1, relative to the compressed float
network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType

from onnx_amc import compress
from onnx_amc.delivery import class_count, input_specs
from onnx_amc.graph import light
from onnx_amc.graph.load import load
from onnx_amc.run import data as sources
from onnx_amc.run.latency import measure
from onnx_amc.run.metrics import find_metric
from onnx_amc.run.quantise import quantised
from onnx_amc.run.samples import Dataset
from onnx_amc.run.score import Scorer

CALIBRATION, JUDGED = 2_000, 3_000
"""Samples of the `search` data for the ranges, and for the comparison of the methods."""

FEW = 500
"""Samples for histograms, batch by batch: of more they take minutes."""

HISTOGRAM: dict[str, Any] = {"CalibStridedMinMax": 1, "CalibTensorRangeSymmetric": False}

METHODS: dict[str, tuple[int, dict[str, Any]]] = {
    "as `--int8` does: MinMax, uint8 activations, int8 weights per channel": (CALIBRATION, {}),
    "MinMax of 512 samples": (512, {}),
    "MinMax of 100 samples": (100, {}),
    "7-bit weights (`reduce_range`)": (CALIBRATION, {"reduce_range": True}),
    "int8 activations": (CALIBRATION, {"activation_type": QuantType.QInt8}),
    "int8 activations around zero": (
        CALIBRATION,
        {"activation_type": QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}},
    ),
    "one scale per tensor": (CALIBRATION, {"per_channel": False}),
    "moving average of MinMax": (CALIBRATION, {"extra_options": {"CalibMovingAverage": True}}),
    "Percentile 99.999": (FEW, {"calibrate_method": CalibrationMethod.Percentile, "extra_options": HISTOGRAM}),
    "Percentile 99.99": (
        FEW,
        {"calibrate_method": CalibrationMethod.Percentile, "extra_options": HISTOGRAM | {"CalibPercentile": 99.99}},
    ),
    "Entropy": (FEW, {"calibrate_method": CalibrationMethod.Entropy, "extra_options": {"CalibStridedMinMax": 1}}),
    "only Conv, Gemm and MatMul": (CALIBRATION, {"op_types_to_quantize": ["Conv", "Gemm", "MatMul"]}),
}
"""How many samples, and what differs from the usual way."""


def row(name: str, model: onnx.ModelProto, scorer: Scorer, small: onnx.ModelProto) -> str:
    """A line of the table."""
    found, feed = scorer(model), scorer.data.batch(np.zeros(1, np.int64))
    time = measure([small, model], feed, seconds=5, threads=1)[1].ratio
    return f"| {name} | {100 * found.value:.2f} | {found.loss:.4f} | {light.size(model) / 1e3:,.0f} kB | {time:.2f} |"


def table(scorer: Scorer, original: onnx.ModelProto, small: onnx.ModelProto, rows: dict[str, onnx.ModelProto]) -> str:
    """All of them, the float networks first."""
    networks = {"original": original, "compressed, float": small, **rows}
    head = f"| {scorer.name} on {len(scorer.index):,} samples | score | error of the outputs | file | latency |"
    return "\n".join([head, "|---" * 5 + "|", *(row(name, model, scorer, small) for name, model in networks.items())])


def read(path: Path, original: Path) -> Dataset:
    """Samples for a network."""
    model = load(original)
    return sources.load(path, input_specs(model.proto), classes=class_count(model))


def main() -> int:
    """Compress, quantise, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--model", default="resnet56_cifar10")
    parser.add_argument("--data", default="cifar10", help="folder below shared/data with search and test")
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--compressed", type=Path)
    parser.add_argument("--methods", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    path, folder = args.shared / "models" / f"{args.model}.onnx", args.shared / "data" / args.data
    search, test = (next(folder.glob(f"{part}*")) for part in ("search", "test"))
    data, model = read(search, path), load(path)
    calibration, judged = data.split(0, CALIBRATION, JUDGED)
    small = onnx.load(args.compressed) if args.compressed else None
    if small is None:
        small = compress(path, str(search), flops=args.flops, policy="knapsack", recover=False).model
    methods = METHODS if args.methods else dict(list(METHODS.items())[:1])
    rows = {
        name: quantised(small, data, calibration[:: max(1, len(calibration) // count)][:count], **how)
        for name, (count, how) in methods.items()
    }
    scored = data if args.methods else read(test, path)
    index = judged if args.methods else np.arange(len(scored))
    name, metric = find_metric(None, scored, class_count(model))
    found = table(Scorer(model.original, scored, index, metric, name), model.original, small, rows)
    print(found)
    if args.out:
        args.out.write_text(found + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
