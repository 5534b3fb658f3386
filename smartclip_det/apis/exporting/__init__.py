"""Image towers and detectors as ONNX files: graphs, their metadata, and the check against PyTorch."""
