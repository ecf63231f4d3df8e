"""Conversions of a model with a massive channel, and of one without: channels are coupled where they must be."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from dynorm_onnx import convert_model
from dynorm_onnx.functions import OPERATORS
from dynorm_onnx.report import Report
from models.planted.build import MASSIVE
from tests.shipped import FOLDER, MODEL, NORMS, TEXT

SAMPLES = 16
TOKENIZER = FOLDER / "tokenizer.json"


def converted(model: Path, output: Path, **knobs: object) -> Report:
    return convert_model(
        model,
        output=output,
        data=TEXT,
        tokenizer=TOKENIZER,
        samples=SAMPLES,
        method="fit",
        time=False,
        rotate=False,
        optimize="none",
        **knobs,
    )


def kl(report: Report) -> float:
    assert report.validation is not None and report.validation.quality is not None
    return report.validation.quality.kl_mean


def first_token_kl(report: Report) -> float:
    assert report.validation is not None and report.validation.quality is not None
    return report.validation.as_dict()["by_position"]["first"]["kl"]["mean"]


def test_one_channel_makes_up_for_the_massive_one(planted: Path, tmp_path: Path) -> None:
    pure, one = (converted(planted, tmp_path / f"{most}.onnx", coupled=most) for most in (0, 1))
    assert all(site.coupled == 0 for site in pure.sites)
    behind = one.sites[2:]
    assert all(site.coupled == 1 and site.as_dict()["coupled"]["channels"] == [MASSIVE] for site in behind)
    assert kl(one) < 0.6 * kl(pure)


@pytest.mark.parametrize("to", ["dyisru", "dyt", "derf"])
def test_by_default_as_many_are_coupled_as_it_takes(planted: Path, tmp_path: Path, to: str) -> None:
    output = tmp_path / "auto.onnx"
    report = converted(planted, output, to=to)
    assert all(1 <= site.coupled <= 32 for site in report.sites)
    assert report.verdict is not None and report.verdict.usable
    assert kl(report) < 0.1
    for site in report.sites:
        errors = site.as_dict()["coupled"]["length_errors"]
        assert len(errors) == site.coupled + 1 and errors[-1] < errors[0]
    nodes = [node for node in onnx.load(output).graph.node if node.domain == "dynorm"]
    assert len(nodes) == NORMS
    assert all(OPERATORS[node.op_type][1].coupled for node in nodes)


def test_a_model_without_massive_tokens_stays_one_of_single_channels(tmp_path: Path) -> None:
    report = converted(MODEL, tmp_path / "pure.onnx")
    assert all(site.coupled == 0 for site in report.sites)
    assert not any(OPERATORS[n.op_type][1].coupled for n in onnx.load(tmp_path / "pure.onnx").graph.node if n.domain)
