"""Which rotation of a stream makes functions of single channels fit its norms, and what it brings."""

from __future__ import annotations

from dynorm_onnx.calibration.rotation.choose import Chosen, choose_rotation
from dynorm_onnx.calibration.rotation.length_tokens import length_tokens_of
from dynorm_onnx.calibration.rotation.lengths import ChosenDirections, choose_directions
from dynorm_onnx.calibration.rotation.tokens import tokens_of_streams

__all__ = [
    "Chosen",
    "ChosenDirections",
    "choose_directions",
    "choose_rotation",
    "length_tokens_of",
    "tokens_of_streams",
]
