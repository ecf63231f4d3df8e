"""A file per exporter. Each gives the ONNX files of a Subject, or raises the exporter's own error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.zoo.subject import Subject

Export = Callable[[Subject, Path], list[Path]]
"""(subject, an empty folder to write to) -> the ONNX files, in the order in which they run."""
