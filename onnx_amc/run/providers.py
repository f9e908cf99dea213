"""Execution providers by the names that people use."""

from __future__ import annotations

NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "trt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
    "directml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "cann": "CANNExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
}
"""Short names, in lower case, and what onnxruntime says."""

BROUGHT_BY = {
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "DmlExecutionProvider": "onnxruntime-directml",
    "QNNExecutionProvider": "onnxruntime-qnn",
}
"""Packages that have a provider in them, in place of the package onnxruntime."""


def provider_of(name: str) -> str:
    """Return onnxruntime's name of a provider given by that or by a short one; what is not known stays as it is."""
    bare = name.lower().removesuffix("executionprovider")
    return NAMES.get(bare, name)


def remedy(provider: str, known: list[str]) -> str:
    """What to do where a provider is not there."""
    package = BROUGHT_BY.get(provider)
    install = f", or install {package} in place of onnxruntime" if package else ""
    return f"choose one of {', '.join(known)}{install}"
