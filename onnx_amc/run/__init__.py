"""The door to onnxruntime: sessions, data, captured activations, scores and latency."""
