"""Distillation: a short training of a converted model towards its original, in PyTorch or from the ONNX file."""

from __future__ import annotations

from dynorm_onnx.pytorch.distil.blocks import BlockProgress, BlockRun
from dynorm_onnx.pytorch.distil.onnx_file import Distilled, distil_model, run_once
from dynorm_onnx.pytorch.distil.trainer import Distillation, StepProgress, distil

__all__ = [
    "BlockProgress",
    "BlockRun",
    "Distillation",
    "Distilled",
    "StepProgress",
    "distil",
    "distil_model",
    "run_once",
]
