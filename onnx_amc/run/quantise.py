"""Eight bits: a finished network handed to onnxruntime's static quantisation, with samples from which the ranges are taken."""

from __future__ import annotations

import io
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
import onnxruntime as ort
from onnx import version_converter

from onnx_amc.errors import ModelError
from onnx_amc.graph import light
from onnx_amc.graph.fold import QUANTISED
from onnx_amc.graph.load import densify
from onnx_amc.graph.proto import drop, names_read, opset_of
from onnx_amc.run.capture import batches
from onnx_amc.run.data import Dataset

BATCH = 25
"""Samples of one run of the calibration."""

OPSET = 13
"""From which on QuantizeLinear takes a scale per channel."""

SYMMETRIC = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"})
"""Providers for which onnxruntime advises signed activations around zero (docstring of `quantize_static`); others get unsigned."""

LOG_SEVERITY = 2
"""What onnxruntime begins with: warnings."""

INTEGER = QUANTISED | {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
"""Operators of a network that is quantised already."""


def quantised(
    model: onnx.ModelProto, data: Dataset, index: np.ndarray, *, provider: str = "CPUExecutionProvider", **how: Any
) -> onnx.ModelProto:
    """Return the network with int8 weights, a scale per output channel, and 8-bit activations in QDQ form.

    Args:
        model: A float network.
        data: Samples.
        index: Which of them the activations' ranges are taken from.
        provider: Execution provider that it is made for; the ranges come from the CPU in any case.
        how: Arguments of `quantize_static` in place of the usual ones.

    Raises:
        ModelError: onnxruntime cannot quantise it, or finds nothing in it that it could; the text says which.

    """
    if any(n.op_type in INTEGER for n in model.graph.node):
        raise _refused("it is quantised already")
    if light.size(model) > light.LARGEST:
        raise _refused("it is larger than 2 GB")
    try:
        with tempfile.TemporaryDirectory(prefix="onnx-amc-") as folder, _quiet():
            found = _quantise(_modern(model), data, index, _usual(provider) | how, Path(folder))
    except Exception as error:  # onnxruntime's tools raise whatever comes up
        first = next(iter(str(error).splitlines()), "")
        raise _refused(f"onnxruntime cannot quantise it: {type(error).__name__}: {first}") from error
    if not any(n.op_type == "DequantizeLinear" for n in found.graph.node):
        raise _refused("it has no operator that onnxruntime quantises")
    return _tidied(found, model)


def _usual(provider: str) -> dict[str, Any]:
    """What `quantize_static` is told; ranges by MinMax did best on a compressed ResNet-56 (`benchmarks/int8.md`)."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType  # noqa: PLC0415  a second to import
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry  # noqa: PLC0415

    signed = provider in SYMMETRIC
    return {
        "quant_format": QuantFormat.QDQ,
        "op_types_to_quantize": sorted({*QDQRegistry, *QLinearOpsRegistry}),  # the default has no fixed order
        "per_channel": True,
        "activation_type": QuantType.QInt8 if signed else QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "calibrate_method": CalibrationMethod.MinMax,
        "extra_options": {"ActivationSymmetric": signed},
    }


def _quantise(
    model: onnx.ModelProto, data: Dataset, index: np.ndarray, how: Mapping[str, Any], folder: Path
) -> onnx.ModelProto:
    """Fuse, infer shapes, take ranges, quantise; through files, since the tools change a model that they are given."""
    from onnxruntime.quantization import quantize_static  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    given, ready, made = (folder / f"{name}.onnx" for name in ("given", "ready", "made"))
    given.write_bytes(model.SerializeToString(deterministic=True))
    quant_pre_process(given, ready, skip_symbolic_shape=True)
    _flatten_biases(ready)
    quantize_static(ready, made, Reader(model, data, index), **how)
    return onnx.load(made)


class Reader:
    """Samples as onnxruntime's calibration asks for them, one batch after the other; None at the end.

    Args:
        model: What they are fed to; one of a fixed batch gets batches of that size.
        data: Samples.
        index: Which.

    """

    def __init__(self, model: onnx.ModelProto, data: Dataset, index: np.ndarray) -> None:
        self._data = data
        self._parts = [part for part, _ in batches(model, index, BATCH)]
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return len(self._parts)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with these batches."""
        self._left = iter(self._parts[start_index:end_index])

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return self._data.batch(next(self._left))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch by input name, None where there is none left."""
        return next(self, None)


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in a version in which weights have a scale per channel, as the tools take it.

    Its initializers are dense, and not listed as inputs: those could change.
    """
    found = deepcopy(model)
    densify(found)
    stored = {t.name for t in found.graph.initializer}
    drop(found.graph.input, lambda info: info.name in stored)
    found.ir_version = max(found.ir_version, 7)
    if opset_of(found) < OPSET:
        found = version_converter.convert_version(found, OPSET)
    return found


def _flatten_biases(path: Path) -> None:
    """Biases (1, N) of Gemm, which a fused MatMul and Add leave, become (N,): the tools fail on them (onnxruntime#24815)."""
    model = onnx.load(path)
    uses = Counter(name for node in model.graph.node for name in names_read(node))
    biases = {n.input[2] for n in model.graph.node if n.op_type == "Gemm" and len(n.input) == 3}
    for tensor in model.graph.initializer:
        if tensor.name in biases and uses[tensor.name] == 1 and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            del tensor.dims[0]
    onnx.save(model, path)


def _tidied(found: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """The same without what the tools leave in it: shapes of every tensor, marks, versions of domains that no node is of."""
    del found.graph.value_info[:]
    del found.metadata_props[:]
    found.metadata_props.extend(model.metadata_props)
    used = {node.domain for node in found.graph.node} | {"", "ai.onnx"}
    drop(found.opset_import, lambda opset: opset.domain not in used)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tools from printing and logging; what goes wrong in them comes as an exception."""
    before: Any = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    ort.set_default_logger_severity(4)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
        ort.set_default_logger_severity(LOG_SEVERITY)


def _refused(what: str) -> ModelError:
    return ModelError(what, where="--int8", fix="leave --int8 out; the float model is not concerned")
