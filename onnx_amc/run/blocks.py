"""How many channels onnxruntime's convolutions on this machine take at a time."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_amc.errors import OptionError
from onnx_amc.run.kernels import CPU
from onnx_amc.run.session import open_session

USUAL = 8
"""Where onnxruntime does not tell: the block of AVX2, and what NVIDIA's tensor cores want."""


ROUNDINGS = {"avx2": 8, "avx512": 16, "cuda": 8, "tensorrt": 8, "tensorrt-int8": 32}
"""Multiples of the kept channels by target: channels in a block of onnxruntime's CPU convolutions (`MlasNchwcGetBlockSize`),
elements of 16 bits that NVIDIA's tensor cores want (Deep Learning Performance Guide), channels in a block of TensorRT's int8
format (`kCHW32`)."""


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


def parse_round_to(text: str) -> int | None:
    """`auto` (None), a whole number, or a target of `ROUNDINGS`."""
    if text == "auto" or text in ROUNDINGS:
        return ROUNDINGS.get(text)
    try:
        return int(text)
    except ValueError as error:
        raise OptionError(
            f"'{text}' is neither auto nor a whole number nor a target",
            where="--round-to",
            fix=f"give auto, 1, 4, 8 ..., or {', '.join(ROUNDINGS)}",
        ) from error
