"""Exact folds: what a norm does that weights beside it can do as well.

- centring: the mean that a LayerNorm subtracts moves into the layers that write what it reads;
- weight: the weight and bias behind a replacement move into the linear layers that read it.
"""

from __future__ import annotations

from dynorm_onnx.graph.fold.centring import fold_centring
from dynorm_onnx.graph.fold.outcome import NO_FOLDS, Fold, Folds, Unfolded
from dynorm_onnx.graph.fold.parity import Parity
from dynorm_onnx.graph.fold.weight import fold_weights

__all__ = ["NO_FOLDS", "Fold", "Folds", "Parity", "Unfolded", "fold_centring", "fold_weights"]
