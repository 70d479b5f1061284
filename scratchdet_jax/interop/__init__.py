"""Formats of other libraries: PyTorch weights read, ONNX files written."""
