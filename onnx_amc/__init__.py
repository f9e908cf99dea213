"""Compress any trained network given as an ONNX graph."""
