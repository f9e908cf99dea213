"""How many channels onnxruntime's convolutions on this machine take at a time."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_amc.run.kernels import CPU
from onnx_amc.run.session import open_session

USUAL = 8
"""Where onnxruntime does not tell: the block of AVX2, and what NVIDIA's tensor cores want."""


def block_of(provider: str = CPU) -> int:
    """Return the channels in a block: 8 with AVX2, 16 with AVX-512; a convolution computes whole blocks, whether needed or not."""
    return _asked() if provider == CPU else USUAL


@cache
def _asked() -> int:
    """Onnxruntime pads the weights of a convolution of one channel to a block."""
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1, 4, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "block", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with tempfile.TemporaryDirectory(prefix="onnx-amc-") as folder:
        kept = Path(folder) / "optimized.onnx"
        open_session(model, threads=1, optimized=str(kept))
        laid = onnx.load(kept).graph
    padded = [tensor.dims[0] for tensor in laid.initializer for node in laid.node if tensor.name in node.input]
    return max([n for n in padded if n % USUAL == 0], default=USUAL)
