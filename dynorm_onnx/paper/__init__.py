"""The numerical experiment of arXiv 2503.21708, and the same comparison on the activations of any ONNX model.

    python -m dynorm_onnx.paper
    python -m dynorm_onnx.paper --model model.onnx --data text.txt

docs/derivation.md explains what is compared.
"""

from __future__ import annotations

from dynorm_onnx.paper.experiment import Experiment, OutlierFit, run_experiment
from dynorm_onnx.paper.real_model import ModelComparison, SiteComparison, SiteFit, compare_on_model

__all__ = [
    "Experiment",
    "ModelComparison",
    "OutlierFit",
    "SiteComparison",
    "SiteFit",
    "compare_on_model",
    "run_experiment",
]
