"""A model above protobuf's 2 GB through the command line: seconds, memory, exactness.

    python benchmarks/big.py [--width 14000] [--layers 3]

Makes a chain of square MatMuls in a temporary folder (14,000 wide, 3 layers: 2.35 GB), cuts half of the channels with
`compress --channels 0.5 --policy uniform --no-refit`, and holds the result against the original with the plan's mask slices zeroed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper


def make(width: int, layers: int) -> onnx.ModelProto:
    """MatMul and Relu in turn, the same width throughout."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        weight = rng.standard_normal((width, width), dtype=np.float32) / np.float32(np.sqrt(width / 2))
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"h{i}"]))
        nodes.append(helper.make_node("Relu", [f"h{i}"], [f"r{i}"]))
        last = f"r{i}"
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", width]) for n in ("x", last))
    graph = helper.make_graph(nodes, "big", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(path: Path, x: np.ndarray) -> np.ndarray:
    """Output in plain onnxruntime."""
    found: np.ndarray = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return found


def main() -> int:
    """Print one line of figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=14_000)
    parser.add_argument("--layers", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "big.onnx", Path(folder) / "small.onnx"
        onnx.save(make(args.width, args.layers), source, save_as_external_data=True, location="big.bin")
        size = (Path(folder) / "big.bin").stat().st_size
        command = [
            sys.executable,
            "-m",
            "onnx_amc",
            "compress",
            str(source),
            "--channels",
            "0.5",
            "--policy",
            "uniform",
        ]
        start = time.perf_counter()
        subprocess.run([*command, "--no-refit", "--quiet", "-o", str(out)], check=True)
        seconds = time.perf_counter() - start
        record = json.loads((out.with_suffix(".run") / "record.json").read_text())
        plan = json.loads((out.with_suffix(".run") / "plan.json").read_text())
        x = np.random.default_rng(1).standard_normal((1, args.width)).astype(np.float32)
        small, masked = run(out, x), x
        for i in range(args.layers):
            weight = np.fromfile(Path(folder) / "big.bin", np.float32, args.width**2, offset=i * args.width**2 * 4)
            weight = weight.reshape(args.width, args.width)
            for entry in (s for g in plan["groups"] for s in g["slices"] if s["mask"] and s["tensor"] == f"w{i}"):
                weight[(slice(None),) * entry["axis"] + (entry["removed"],)] = 0
            masked = np.maximum(masked @ weight, 0)
        gap = float(np.abs(masked - small).max() / np.abs(masked).max())
        left = out.with_name("small.onnx.data").stat().st_size
        print(
            f"{size / 1e9:.2f} GB -> {left / 1e9:.2f} GB external, {seconds:.0f} s, "
            f"{record['peak_rss_mb'] / 1e3:.1f} GB of memory, "
            f"masked equals cut to {gap:.0e}, latency {record['compressed']['latency_ratio']:.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
