"""Tests of the custom-op library: its kernels, its operators in ONNX Runtime, its build."""
