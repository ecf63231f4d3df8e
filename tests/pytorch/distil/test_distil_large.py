"""What is done for models that are too large for the plain way, on a small one: the same training, less at a time."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dynorm_onnx.calibration.norms.calibrate import calibrate_norms
from dynorm_onnx.calibration.norms.fit_rows import Leeway
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.graph.replace.rewrite import replace
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.pieces import open_model
from dynorm_onnx.runtime.session import make_session
from tests.builders.convert import lowered
from tests.shipped import MODEL, TEXT

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")

from dynorm_onnx.pytorch.distil import distil_model, onnx_file  # noqa: E402
from dynorm_onnx.pytorch.distil.hidden import POSITIONS, sampled, with_hidden_outputs  # noqa: E402
from dynorm_onnx.pytorch.graph import GraphModule  # noqa: E402

IDS = np.frombuffer(TEXT.read_bytes()[: 32 * 48], np.uint8).astype(np.int64).reshape(32, 48)
Models = tuple[ir.Model, ir.Model, tuple[LoweredNorm, ...]]


@pytest.fixture(scope="module")
def models() -> Models:
    original, norms = lowered(onnx.load(MODEL))
    leeway = {norm.site_name: Leeway() for norm in norms}
    batches = [{"input_ids": IDS}]
    fits = calibrate_norms(original, norms, REGISTRY["dyisru"], batches, lambda done, count: None, leeway).fits
    converted = model_io.clone(original)
    for norm in norms:
        replace(converted, norm, "dyisru", fits[norm.site_name].parameters)
    return original, converted, norms


def test_hidden_values_of_some_tokens_are_those_values_of_all(models: Models) -> None:
    whole, part = (with_hidden_outputs(*models[:2]) for _ in range(2))
    part = sampled(part, "input_ids")
    positions = np.random.default_rng(0).integers(0, 48, (32, 5))
    assert len(part.names) == len(whole.names) == 28
    for complete, few in ((whole.original, part.original), (whole.converted, part.converted)):
        expected = run(make_session(complete), {"input_ids": IDS})
        found = run(make_session(few), {"input_ids": IDS, POSITIONS: positions})
        assert set(found) == {"logits", *part.names}
        for name, short in zip(whole.names, part.names, strict=True):
            assert np.array_equal(found[short], np.take_along_axis(expected[name], positions[..., None], 1))


def test_segments_are_found_where_hidden_values_are_given_out_and_sums_are_in_one_node(models: Models) -> None:
    """A value that is given out, or a Skip form, must not keep checkpointing from its cuts."""
    plain = GraphModule(models[0])
    student = GraphModule(sampled(with_hidden_outputs(*models[:2]), "input_ids").converted)
    assert len(student._segments) >= len(plain._segments) - 1 > 8


def distilled(models: Models) -> list[float]:
    original, converted, norms = models

    def frugal(model: ir.Model) -> object:
        return open_model(model, arena=False)

    done = distil_model(
        original, converted, norms, [{"input_ids": IDS}], open_model=frugal, steps=6, learning_rate=0.003, train="all",
        logits="logits", checkpoint=None, seed=0, progress=lambda told: None, precision="float32",
    )  # fmt: skip
    return [loss for _, loss in done.run.losses]


def test_logits_in_parts_lead_where_whole_logits_lead(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = distilled(models)
    monkeypatch.setattr(onnx_file, "LOGITS_LIMIT", 0)
    monkeypatch.setattr(onnx_file, "CHECKPOINTING_ABOVE", 0)
    np.testing.assert_allclose(distilled(models), whole, rtol=1e-3)
    monkeypatch.setattr(onnx_file, "HIDDEN_LIMIT", 0)
    monkeypatch.setattr(onnx_file, "SAMPLED_TOKENS", 200)
    at_few = distilled(models)
    assert at_few[0] == pytest.approx(whole[0], rel=1e-4) and at_few[-1] < 0.9 * at_few[0]


def test_positions_are_no_padding_and_as_many_in_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "SAMPLED_TOKENS", 12)
    mask = (torch.arange(20)[None] < torch.tensor([[20], [3], [0]])).long()
    feeds = {"input_ids": torch.zeros(3, 20, dtype=torch.int64), "attention_mask": mask}
    positions = onnx_file._positions(feeds, np.random.default_rng(0))
    assert positions.shape == (3, 4) and positions[1].max() < 3
