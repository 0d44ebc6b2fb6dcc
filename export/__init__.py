"""PyTorch models of SAM to ONNX: the only place that imports torch, and only inside functions."""
