"""Linear algebra: patches, moments, elimination and least squares. Numpy in, numpy out; it has never heard of ONNX."""
