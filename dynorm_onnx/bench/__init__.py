"""The timing tables: `python -m dynorm_onnx.bench ops` and `python -m dynorm_onnx.bench model FILE`."""
