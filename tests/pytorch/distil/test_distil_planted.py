"""Distillation of a model whose first token is massive: from a fit with coupled channels down to as many as asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynorm_onnx import convert_model
from tests.shipped import FOLDER, NORMS, TEXT

pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")


def test_training_begins_with_a_fit_of_all_channels_that_are_needed(planted: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    report = convert_model(
        planted, output=tmp_path / "distilled.onnx", method="distil", coupled=1, steps=4, data=TEXT, samples=16,
        tokenizer=FOLDER / "tokenizer.json", time=False, optimize="none", progress=lambda *told: steps.append(told),
    )  # fmt: skip
    assert ("calibrate", NORMS, NORMS) in steps, "norms alone: a reconstruction solves linear layers too"
    assert all(site.coupled <= 1 for site in report.sites)
    begun = [name for name, done, total in steps if (done, total) == (0, 0)]
    assert begun.index("distil") < begun.index("validate"), "what is trained is judged when it is trained"
    assert report.validation is not None
