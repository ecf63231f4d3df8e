"""The shipped model and its text, for tests that want something real."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "models" / "byte_llama"
MODEL = FOLDER / "byte_llama.onnx"
TEXT = FOLDER / "held_out.txt"
NORMS = 9
