"""Weights of replacements folded into the linear layers that read them: outputs stay; and when they do not move."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from dynorm_onnx.functions import DOMAIN, REGISTRY, NormParameters
from dynorm_onnx.graph.fold import Folds, Parity, fold_weights
from dynorm_onnx.graph.replace.rewrite import replace
from tests.builders.convert import is_checked
from tests.graph.fold.models import CHANNELS, PARITY, outputs_of, post_norm, pre_norm, prepared
from tests.tolerances import TOLERANCE, relative_error


def replaced(source, function: str = "dyisru", least: float = 0.5):
    """(the model with every norm replaced at random, its norms)."""
    rng = np.random.default_rng(5)
    model, norms = prepared(source)
    for norm in norms:
        scalars = {name: rng.uniform(0.5, 1.5, 1) for name in REGISTRY[function].parameter_names}
        weight = rng.uniform(least, 1.5, CHANNELS)
        weight[0] = least
        replace(model, norm, function, NormParameters(weight, rng.uniform(-1, 1, CHANNELS), scalars))
    return model, norms


def parameters(model: ir.Model, site: str) -> tuple[np.ndarray, np.ndarray]:
    """weight and bias of a site's node."""
    arrays = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    (stem,) = {name.rsplit(".", 1)[0] for name in arrays if name.startswith(f"{site}.d")}
    return arrays[f"{stem}.weight"], arrays[f"{stem}.bias"]


def reason(folds: Folds, site: str) -> str:
    return next(left.reason for left in folds.left if left.site == site)


@pytest.mark.parametrize("function", sorted(REGISTRY))
@pytest.mark.parametrize("gemm", [False, True])
def test_weight_and_bias_move_on(function: str, gemm: bool) -> None:
    model, norms = replaced(pre_norm(gemm=gemm), function)
    before = outputs_of(model)[0]
    folds = fold_weights(model, norms, PARITY)
    assert [fold.sites for fold in folds.done] == [(norm.site_name,) for norm in norms]
    assert folds.done[0].into == ("block0_up.W", "block0_up.b")
    assert relative_error(outputs_of(model)[0], before) < TOLERANCE["float32"]
    for norm in norms:
        weight, bias = parameters(model, norm.site_name)
        assert np.all(weight == 1) and np.all(bias == 0) and weight.dtype == np.float32
    assert is_checked(ir.to_proto(model))


def test_the_function_itself_is_left_alone() -> None:
    """Nothing moves across it: its own parameters and the layers in front of it stay as they are."""
    model, norms = replaced(pre_norm())
    arrays = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    folds = fold_weights(model, norms, PARITY)
    for name, value in model.graph.initializers.items():
        own = name.endswith((".weight", ".bias")) and ".dyisru." in name
        assert np.array_equal(arrays[name], value.const_value.numpy()) != (own or name in folds.changed_initializers)


def test_half_precision_is_rounded_once_more() -> None:
    model, norms = replaced(pre_norm(dtype=np.float16))
    exact, _ = replaced(pre_norm(dtype=np.float64))
    truth, before = outputs_of(exact)[0], outputs_of(model)[0]
    assert fold_weights(model, norms, PARITY).done
    own = relative_error(before, truth)
    assert relative_error(outputs_of(model)[0], truth) < max(3 * own, 10 * TOLERANCE["float16"])


def test_a_layer_without_a_bias_leaves_the_bias_in_the_node() -> None:
    source = pre_norm()
    add = next(node for node in source.graph.node if node.output[0] == "block0_up_y")
    add.op_type = "Mul"  # the vector scales the outputs now
    model, norms = replaced(source)
    before = outputs_of(model)[0]
    old = parameters(model, "block0_norm")
    folds = fold_weights(model, norms, PARITY)
    weight, bias = parameters(model, "block0_norm")
    assert np.all(weight == 1)
    np.testing.assert_allclose(bias, old[1] / old[0], rtol=1e-6)
    assert folds.done[0].into == ("block0_up.W",)
    assert relative_error(outputs_of(model)[0], before) < TOLERANCE["float32"]


def test_a_bias_is_not_divided_by_next_to_nothing() -> None:
    source = pre_norm()
    next(node for node in source.graph.node if node.output[0] == "block0_up_y").op_type = "Mul"
    model, norms = replaced(source, least=1e-4)
    folds = fold_weights(model, norms, PARITY)
    assert "too small to divide" in reason(folds, "block0_norm")
    assert [fold.sites for fold in folds.done] == [("block1_norm",), ("final",)]


def test_what_something_else_reads_stays() -> None:
    """Of a post-norm model the outputs of norms go on in the stream."""
    model, norms = replaced(post_norm())
    folds = fold_weights(model, norms, PARITY)
    assert "SkipDyISRU" in reason(folds, "embed") and "no linear layer" in reason(folds, "embed")
    assert [fold.sites for fold in folds.done] == [("norm1",)]  # which the head alone reads


def test_an_output_of_the_graph_stays() -> None:
    source = pre_norm()
    model, norms = replaced(source)
    node = next(node for node in model.graph if node.domain == DOMAIN)
    model.graph.outputs.append(node.outputs[0])
    assert "is an output of the graph" in reason(fold_weights(model, norms, PARITY), norms[0].site_name)


def test_a_fold_that_moves_the_outputs_is_not_done() -> None:
    noise = iter(range(1, 9))
    model, norms = replaced(pre_norm())
    before = outputs_of(model)[0]
    folds = fold_weights(model, norms, Parity(lambda m: [array * next(noise) for array in outputs_of(m)]))
    assert not folds.done and len(folds.left) == len(norms)
    assert np.array_equal(outputs_of(model)[0], before)
