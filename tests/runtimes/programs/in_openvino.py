"""The same in OpenVINO, on the CPU and in float32, which it leaves by itself where a processor has bfloat16."""

import openvino
from exchange import run_all

core = openvino.Core()


def load(path):
    compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    return lambda feeds: compiled(feeds)[compiled.output("logits")]


run_all(load)
