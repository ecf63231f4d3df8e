"""Runs every model of a folder in the ONNX Runtime that Python finds: `python in_onnxruntime.py FOLDER RESULTS`."""

import onnxruntime
from exchange import run_all


def load(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(["logits"], feeds)[0]


run_all(load)
