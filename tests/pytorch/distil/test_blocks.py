"""Training a graph block by block: where it is cut, what is compared, and what is left of the error."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dynorm_onnx.calibration.norms.calibrate import calibrate_norms
from dynorm_onnx.calibration.norms.fit_rows import Leeway
from dynorm_onnx.errors import ModelError
from dynorm_onnx.functions import REGISTRY, Coupling
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.replace.rewrite import replace
from tests.builders.convert import lowered
from tests.shipped import MODEL, TEXT

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")

from dynorm_onnx.pytorch.distil.blocks import BlockProgress, Blockwise, stream_error, train_blocks  # noqa: E402
from dynorm_onnx.pytorch.distil.losses import total  # noqa: E402
from dynorm_onnx.pytorch.graph import GraphModule  # noqa: E402

IDS = np.frombuffer(TEXT.read_bytes()[: 60 * 40], np.uint8).astype(np.int64).reshape(60, 40)


@pytest.fixture(scope="module")
def models() -> tuple[ir.Model, ir.Model]:
    """The shipped model, and one of fitted functions with a weakly coupled channel each; most in the Skip form."""
    original, norms = lowered(onnx.load(MODEL))
    leeway = {norm.site_name: Leeway() for norm in norms}
    batches = [{"input_ids": IDS}]
    fits = calibrate_norms(original, norms, REGISTRY["dyisru"], batches, lambda done, count: None, leeway).fits
    converted = model_io.clone(original)
    coupling = Coupling(np.array([3]), np.array([1e-3]))
    for norm in norms:
        parameters = dataclasses.replace(fits[norm.site_name].parameters, coupling=coupling)
        replace(converted, norm, "dyisru", parameters)
    return original, converted


def test_a_converted_model_is_cut_behind_attention_and_behind_each_mlp(models: tuple[ir.Model, ir.Model]) -> None:
    original, converted = models
    student, teacher = GraphModule(converted), GraphModule(original)
    made = {name for step in teacher.program.steps for name in step.outputs if name}
    parts = student.blocks(made)
    assert len(parts) == 8, "the last norm and the logits are none: 4 layers, two halves each"
    assert all(before.stop == after.start for before, after in itertools.pairwise(parts))
    inside = [name for part in parts for name in part.weights]
    assert len(inside) == len(set(inside)) == len(student.learned()) - 6, "but embeddings, logits and the last norm"
    assert student.blocks(()) == ()


def test_running_the_blocks_one_by_one_is_running_the_graph(models: tuple[ir.Model, ir.Model]) -> None:
    student = GraphModule(models[1])
    ids = torch.from_numpy(IDS)
    values: dict = {"input_ids": ids}
    with torch.no_grad():
        expected = student(input_ids=ids)["logits"]
        end = 0
        for part in student.blocks({name for step in student.program.steps for name in step.outputs if name}):
            values = student.run_until(values, part.start, part.stop)
            end = part.stop
        border = values
        student.program.run(local := {**student.program.constants, **student._values(), **border}, end)
    assert torch.equal(local["logits"], expected)


def test_every_block_comes_closer_to_the_original(models: tuple[ir.Model, ir.Model]) -> None:
    original, converted = models
    student, teacher = GraphModule(converted, float_type=torch.float32), GraphModule(original)
    before = {name: parameter.detach().clone() for name, parameter in student.learned().items()}
    data = [{"input_ids": torch.from_numpy(rows)} for rows in np.split(IDS, 6)]
    told: list[BlockProgress] = []
    how = Blockwise(steps=12, learning_rate=0.003, norm_learning_rate=0.002, train="all", precision="float32", seed=0)
    runs = train_blocks(student, teacher, data, how, told.append)
    assert [progress.run for progress in told] == list(runs) and len(runs) == 8
    assert all(run.after < run.before for run in runs)
    assert sum(run.after for run in runs) < 0.95 * sum(run.before for run in runs)
    moved = {name for name, parameter in student.learned().items() if not torch.equal(parameter, before[name])}
    assert moved == set().union(*(part.weights for part in student.blocks({run.border for run in runs})))
    assert all(parameter.grad is None for parameter in student.parameters())


def test_a_massive_token_counts_as_any_other_and_padding_for_nothing() -> None:
    target = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    target[0, 0] *= 1e4
    y = target.clone()
    y[0, 0] *= 1.5
    y[1, 2] = 9.0
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert float(total([stream_error(y, target, mask)])) == pytest.approx(0.25 / 5)


def test_a_loss_that_is_not_finite_is_named(models: tuple[ir.Model, ir.Model]) -> None:
    student, teacher = GraphModule(models[1], float_type=torch.float32), GraphModule(models[0])
    with torch.no_grad():
        next(iter(student.learned().values())).fill_(torch.nan)
    how = Blockwise(steps=1, learning_rate=0.003, norm_learning_rate=0.002, train="all", precision="float32", seed=0)
    with pytest.raises(ModelError, match=r"the loss of the block before '.*' is nan at step 1: try a smaller"):
        train_blocks(student, teacher, [{"input_ids": torch.from_numpy(IDS[:2])}], how, lambda told: None)
