"""A turned stream: the model computes the same, whatever orthogonal matrix it is turned by."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynorm_onnx.graph.streams.basis import find_bases
from dynorm_onnx.graph.streams.turn import Turned, turn, why_not
from tests.builders.convert import lowered
from tests.builders.execute import run_ort
from tests.graph.fold.models import CHANNELS, pre_norm, prepared
from tests.graph.fold.models import outputs_of as outputs_of_draft
from tests.graph.fold.test_fold_random_graphs import HARMLESS, stream
from tests.graph.streams import test_basis
from tests.tolerances import TOLERANCE, relative_error

FEEDS = {"ids": np.random.default_rng(5).integers(0, 7, (2, 3))}


def rotation(size: int, seed: int, *, keeps_mean: bool) -> np.ndarray:
    """A random orthogonal matrix; one that leaves the vector of ones where it is, if it must keep the mean."""
    rng = np.random.default_rng(seed)
    if not keeps_mean:
        return np.linalg.qr(rng.standard_normal((size, size)))[0]
    ones = np.full((size, 1), size**-0.5)
    others = np.linalg.qr(ones, mode="complete")[0][:, 1:]
    inside = np.linalg.qr(rng.standard_normal((size - 1, size - 1)))[0]
    return others @ inside @ others.T + ones @ ones.T


def held(name: str, array: np.ndarray) -> np.ndarray:
    return array


def turned(source: onnx.ModelProto, seed: int, *, keeps_mean: bool) -> tuple[ir.Model, Turned]:
    model, norms = lowered(source)
    (basis,) = find_bases(model.graph, norms)
    assert why_not(basis) is None
    return model, turn(model, norms, {basis: rotation(basis.channels, seed, keeps_mean=keeps_mean)}, held)


def of_rms(model: ir.Model) -> np.ndarray:
    return run_ort(ir.to_proto(model), FEEDS)[0]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999))
def test_root_mean_squares_stay(seed: int) -> None:
    model, after = turned(test_basis.model(), seed, keeps_mean=False)
    assert relative_error(of_rms(after.model), of_rms(model)) < TOLERANCE["float32"]


@pytest.mark.parametrize("end", test_basis.TIED)
def test_heads_that_share_the_embedding_share_it_still(end: str) -> None:
    model, after = turned(test_basis.model(test_basis.TIED[end]), 2, keeps_mean=False)
    assert relative_error(of_rms(after.model), of_rms(model)) < TOLERANCE["float32"]
    tables = [value for value in after.model.graph.initializers.values() if value.shape == [7, test_basis.CHANNELS]]
    assert [value.name for value in tables] == ["table"]
    assert len(after.model.graph) == len(model.graph) + (2 if end == "twice" else 1)


def test_behind_a_norm_without_a_weight_nothing_is_put_before_the_head() -> None:
    proto = test_basis.model(test_basis.TIED["transposed"])
    (gain,) = [tensor for tensor in proto.graph.initializer if tensor.name == "other_gain"]
    gain.CopyFrom(onnx.numpy_helper.from_array(np.ones(test_basis.CHANNELS, np.float32), "other_gain"))
    model, after = turned(proto, 2, keeps_mean=False)
    assert relative_error(of_rms(after.model), of_rms(model)) < TOLERANCE["float32"]
    assert len(after.model.graph) == len(model.graph)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(HARMLESS), max_size=6), st.integers(0, 99))
def test_layer_norms_of_random_streams_stay(steps: list[str], seed: int) -> None:
    model, norms = prepared(stream(steps, seed))
    bases = find_bases(model.graph, norms)
    assert len(bases) == 1
    matrix = rotation(CHANNELS, seed, keeps_mean=True)
    after = turn(model, norms, {bases[0]: matrix}, held)
    assert relative_error(outputs_of_draft(after.model)[0], outputs_of_draft(model)[0]) < 3 * TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_weights_keep_their_type(dtype: str) -> None:
    model, after = turned(pre_norm(dtype=np.dtype(dtype).type, gemm=True), 3, keeps_mean=True)
    for name, value in after.model.graph.initializers.items():
        if name in model.graph.initializers:
            assert value.dtype == model.graph.initializers[name].dtype
    before, now = (outputs_of_draft(one)[0] for one in (model, after.model))
    assert relative_error(now, before) < {"float64": 1e-12, **TOLERANCE}[dtype]


def test_what_a_norm_gives_is_turned_and_its_weight_is_gone() -> None:
    model, norms = lowered(test_basis.model())
    (basis,) = find_bases(model.graph, norms)
    matrix = rotation(CHANNELS_OF_RMS, 1, keeps_mean=False)
    after = turn(model, norms, {basis: matrix}, held)
    for norm, new in zip(norms, after.norms, strict=True):
        assert new.site_name == norm.site_name and new.node.graph is after.model.graph
        assert np.all(new.weight == 1)
        plain, moved = (_value(one, of) for one, of in ((model, norm.y.name), (after.model, new.y.name)))
        assert relative_error(moved, (plain / norm.weight) @ matrix) < TOLERANCE["float32"]


CHANNELS_OF_RMS = test_basis.CHANNELS


def _value(model: ir.Model, name: str | None) -> np.ndarray:
    proto = ir.to_proto(model)
    proto.graph.output.append(onnx.helper.make_tensor_value_info(str(name), onnx.TensorProto.FLOAT, None))
    return run_ort(proto, FEEDS)[-1]


def test_the_model_and_all_that_is_not_at_the_stream_stay() -> None:
    model, norms = lowered(test_basis.model())
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    (basis,) = find_bases(model.graph, norms)
    after = turn(model, norms, {basis: rotation(CHANNELS_OF_RMS, 2, keeps_mean=False)}, held)
    for name, array in before.items():
        assert np.array_equal(model.graph.initializers[name].const_value.numpy(), array)
        new = after.model.graph.initializers.get(name)
        if name not in after.changed and new is not None:
            assert np.array_equal(new.const_value.numpy(), array)
    assert {"table", "down", "offset", "up", "head"} <= set(after.changed)
    assert not {"gain", "other_gain"} & set(after.model.graph.initializers)


def test_a_bias_that_no_weight_can_be_divided_out_of() -> None:
    source = pre_norm()
    weight = next(tensor for tensor in source.graph.initializer if tensor.name == "block0_norm.weight")
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0] = 0
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    model, norms = lowered(source)
    (basis,) = find_bases(model.graph, norms)
    assert "block0_norm are too small to divide its bias by" in str(why_not(basis))
