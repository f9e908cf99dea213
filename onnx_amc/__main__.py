"""`python -m onnx_amc`."""

from onnx_amc.cli import run

run()
