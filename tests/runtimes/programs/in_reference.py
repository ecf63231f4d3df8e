"""The same in onnx's reference evaluator."""

import onnx
from exchange import run_all
from onnx.reference import ReferenceEvaluator


def load(path):
    evaluator = ReferenceEvaluator(onnx.load(path))
    return lambda feeds: evaluator.run(["logits"], feeds)[0]


run_all(load)
