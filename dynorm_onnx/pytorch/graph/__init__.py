"""An ONNX graph in PyTorch: run with autograd, its weights as parameters, to be trained and written back.

module = GraphModule(model_io.load("model.onnx"))
logits = module(input_ids=ids)["logits"]
"""

from __future__ import annotations

from dynorm_onnx.pytorch.graph.module import GraphModule

__all__ = ["GraphModule"]
