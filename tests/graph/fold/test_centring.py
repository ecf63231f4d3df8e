"""LayerNorms whose centring moves into the weights upstream: outputs stay, the means go; and when they do not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.fold import Folds, Parity, fold_centring
from dynorm_onnx.graph.lower import LoweredNorm, lower
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.runtime.session import make_session, runnable
from tests.builders.convert import is_checked
from tests.builders.execute import run_ort
from tests.graph.fold.models import CHANNELS, IDS, PARITY, Draft, outputs_of, post_norm, pre_norm, prepared
from tests.tolerances import TOLERANCE, relative_error

LARGE = 3000  # rows of an embedding table that is too large for a copy
MEANS = {"LayerNormalization", "ReduceMean"}


def folded(
    source: onnx.ModelProto, *, reductions: bool = True, parity: Parity = PARITY
) -> tuple[ir.Model, tuple[LoweredNorm, ...], Folds]:
    model, norms = prepared(source)
    after, folds = fold_centring(model, norms, parity, reductions=reductions)
    assert is_checked(ir.to_proto(model))
    return model, after, folds


def moved(source: onnx.ModelProto, model: ir.Model) -> float:
    return relative_error(outputs_of(model)[0], outputs_of(ir.from_proto(source))[0])


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def reason(folds: Folds, site: str) -> str:
    return next(left.reason for left in folds.left if left.site == site)


class TestPreNorm:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("gemm", [False, True])
    def test_every_norm_becomes_an_rms_norm(self, seed: int, gemm: bool) -> None:
        source = pre_norm(blocks=1 + seed % 3, seed=seed, gemm=gemm)
        model, norms, folds = folded(source)
        assert not MEANS & set(operators(model))
        assert operators(model)["SimplifiedLayerNormalization"] == len(norms) == len(folds.done[0].sites)
        assert {norm.kind for norm in norms} == {"rms"} and all(norm.bias is None for norm in norms)
        assert not folds.left and folds.done[0].nodes == ()
        assert moved(source, model) < TOLERANCE["float32"]
        assert folds.error is not None and folds.error < TOLERANCE["float32"]

    def test_what_the_norms_are_of_is_in_the_model(self) -> None:
        model, norms, _ = folded(pre_norm())
        for norm in norms:
            assert norm.node.graph is model.graph
            assert (norm.node.inputs[0], norm.node.outputs[0]) == (norm.x, norm.y)
            assert norm.skip is None or all(value.graph is model.graph for value in norm.skip)

    def test_the_standard_operator_where_the_opset_has_it(self) -> None:
        model, _, _ = folded(pre_norm(opset=23))
        assert operators(model)["RMSNormalization"] == 3 and not model.functions

    def test_what_is_named_is_what_changed(self) -> None:
        source = pre_norm()
        before = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
        model, _, folds = folded(source)
        after = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
        differ = {name for name in after if name in before and not np.array_equal(before[name], after[name])}
        assert differ == set(folds.changed_initializers)
        assert {"words", "places", "block0_down.W", "block0_down.b", "block0_up.b", "head.b"} <= differ
        assert not {"block0_up.W", "head.W"} & differ

    @pytest.mark.parametrize(("dtype", "bound"), [(np.float16, 10 * TOLERANCE["float16"]), (np.float64, 1e-12)])
    def test_types(self, dtype: type, bound: float) -> None:
        source = pre_norm(dtype=dtype)
        model, _, folds = folded(source)
        assert folds.done
        exact = outputs_of(ir.from_proto(pre_norm(dtype=np.float64)))[0]
        if dtype is np.float64:
            assert moved(source, model) < bound
        else:  # as far from the truth as the rounded original is, give or take
            own = relative_error(outputs_of(ir.from_proto(source))[0], exact)
            assert relative_error(outputs_of(model)[0], exact) < max(2 * own, bound)

    def test_norms_that_are_to_be_replaced_stay_and_read_what_is_centred(self) -> None:
        source = pre_norm()
        model, norms, folds = folded(source, reductions=False)
        assert operators(model)["LayerNormalization"] == len(norms) == len(folds.done[0].sites)
        assert moved(source, model) < TOLERANCE["float32"]
        model.graph.outputs.extend(norm.x for norm in norms)
        for x in outputs_of(model)[1:]:
            assert np.abs(x.mean(-1)).max() < 1e-5 * np.abs(x).max()


class TestSharedWeights:
    def test_a_small_tied_embedding_is_copied(self) -> None:
        source = pre_norm(tied=True)
        model, _, folds = folded(source, reductions=False)
        assert "words.centred" in folds.done[0].into and "words" not in folds.done[0].into
        assert moved(source, model) < TOLERANCE["float32"]

    @pytest.mark.parametrize("reductions", [False, True])
    def test_a_large_tied_embedding_is_centred_once_behind_the_gather(self, reductions: bool) -> None:
        source = pre_norm(blocks=3, tied=True, vocabulary=LARGE)
        model, _, folds = folded(source, reductions=reductions)
        assert folds.done[0].nodes == ("word.mean", "word.centred")
        assert "ReduceMean" not in operators(model)
        table = model.graph.initializers["words"].const_value.numpy()
        assert np.array_equal(table, onnx.numpy_helper.to_array(source.graph.initializer[0]))
        assert moved(source, model) < TOLERANCE["float32"]

    def test_not_where_as_much_would_stay(self) -> None:
        _, _, folds = folded(pre_norm(blocks=0, tied=True, vocabulary=LARGE), reductions=False)
        assert not folds.done and "'words' is read elsewhere too" in reason(folds, "final")

    def test_the_head_of_a_tied_model_has_no_bias(self) -> None:
        model, norms, folds = folded(pre_norm(tied=True))
        assert "bias cannot move on" in reason(folds, "final")
        assert operators(model)["LayerNormalization"] == 1 and norms[-1].kind == "layer"
        assert len(folds.done[0].sites) == len(norms) - 1

    def test_a_large_weight_that_is_read_elsewhere(self) -> None:
        draft = Draft(np.random.default_rng(0))
        x = draft.embedding()
        draft.weight("wide.W", LARGE, CHANNELS)
        draft.weight("probe", LARGE, 1)
        draft.weight("others", 31, LARGE)
        draft.lines += ["h = Gather(others, ids)", 'made = MatMul(h, "wide.W")', f"total = Add({x}, made)"]
        draft.lines.append('other = Mul("wide.W", probe)')
        draft.norm("norm", "total", bias=False)
        draft.lines.append("y = Identity(norm_y)")
        source = draft.model(f"[2, 5, {CHANNELS}] y; [{LARGE}, {CHANNELS}] other")
        assert "'wide.W' is read elsewhere too" in reason(folded(source)[2], "norm")


class TestRefusals:
    def test_post_norm(self) -> None:
        """Only the norm of the embeddings, whose input is made by constants alone."""
        source = post_norm()
        model, _, folds = folded(source, reductions=False)
        assert [fold.sites for fold in folds.done] == [("embed",)]
        for site in ("norm0", "norm1"):
            assert "which no weights can centre" in reason(folds, site)
        assert moved(source, model) < TOLERANCE["float32"]

    def test_a_stream_that_is_an_output(self) -> None:
        source = pre_norm()
        source.graph.output.append(onnx.helper.make_tensor_value_info("block0_x", 1, [2, 5, CHANNELS]))
        model, _, folds = folded(source)
        assert not folds.done and "'block0_x' is an output of the graph" in reason(folds, "block1_norm")
        assert operators(model)["LayerNormalization"] == 3

    def test_a_reader_to_which_the_mean_matters(self) -> None:
        source = pre_norm()
        source.graph.node.append(onnx.helper.make_node("Tanh", ["block0_x"], ["probe"], name="prober"))
        source.graph.output.append(onnx.helper.make_tensor_value_info("probe", 1, [2, 5, CHANNELS]))
        assert "Tanh 'prober' reads it" in reason(folded(source)[2], "block0_norm")

    def test_an_addend_of_one_channel(self) -> None:
        draft = Draft(np.random.default_rng(0))
        draft.weight("one", 1)
        draft.lines.append(f"total = Add({draft.embedding()}, one)")
        draft.norm("norm", "total", bias=False)
        draft.lines.append("y = Identity(norm_y)")
        assert "'one' is added to it" in reason(folded(draft.model(f"[2, 5, {CHANNELS}] y"))[2], "norm")

    def test_a_fold_that_moves_the_outputs_is_not_done(self) -> None:
        """What the proof is for: were the reasoning wrong, the model would stay as it is."""
        noise = iter(range(1, 9))
        parity = Parity(lambda model: [array * next(noise) for array in outputs_of(model)])
        source = pre_norm()
        model, norms, folds = folded(source, parity=parity)
        assert not folds.done and "would move the outputs by 1" in reason(folds, "final")
        assert {norm.kind for norm in norms} == {"layer"}
        assert moved(source, model) == 0

    def test_a_model_that_cannot_be_run(self) -> None:
        def fail(model: ir.Model) -> list[np.ndarray]:
            raise RuntimeError("no such kernel")

        _, _, folds = folded(pre_norm(), parity=Parity(fail))
        assert "could not be run to prove it: no such kernel" in reason(folds, "final")

    def test_norms_that_are_kept_do_not_mind(self) -> None:
        source = pre_norm()
        model, norms = prepared(source)
        kept, chosen = norms[0], norms[1:]
        after, folds = fold_centring(model, chosen, PARITY, invariant=[kept.node])
        assert len(folds.done[0].sites) == len(after) == len(chosen)
        assert moved(source, model) < TOLERANCE["float32"]
        model, norms = prepared(source)
        _, without = fold_centring(model, norms[1:], PARITY)
        assert "LayerNormalization" in reason(without, "final")


def test_a_part_that_no_constant_makes_is_centred_once_where_that_pays() -> None:
    """An input of embeddings: one mean over it for the norms of all blocks."""
    source = pre_norm(blocks=3)
    source.graph.node.remove(next(node for node in source.graph.node if node.output[0] == "word"))
    source.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("word", 1, [2, 5, CHANNELS]))
    feeds = {"word": np.random.default_rng(2).standard_normal((2, 5, CHANNELS)).astype(np.float32) + 1}

    def run(model: ir.Model) -> list[np.ndarray]:
        return run_ort(ir.to_proto(model), feeds)

    model, _, folds = folded(source, parity=Parity(run))
    assert operators(model)["ReduceMean"] == 1 and operators(model)["LayerNormalization"] == 0
    assert relative_error(run(model)[0], run(ir.from_proto(source))[0]) < TOLERANCE["float32"]
    assert folds.done[0].nodes == ("word.mean", "word.centred")
    _, _, folds = folded(source, reductions=False, parity=Parity(run))
    assert "a mean over the channels would have to stay" in reason(folds, "final")


def test_weights_in_a_file_are_centred_when_they_are_read(tmp_path: Path) -> None:
    """None of them is held in memory; what is saved and what runs is the centred model."""
    source, path, output = pre_norm(), tmp_path / "model.onnx", tmp_path / "out.onnx"
    before = outputs_of(ir.from_proto(source))[0]
    onnx.save(source, path, save_as_external_data=True, location="weights", size_threshold=0)
    model = model_io.prepare(model_io.load(path))
    parity = Parity(lambda one: make_session(one).run(None, {"ids": IDS}))
    _, folds = fold_centring(model, lower(model, find_sites(model, load=runnable).sites), parity)
    assert len(folds.done[0].sites) == 3
    assert isinstance(model.graph.initializers["words"].const_value, ir.LazyTensor)
    model_io.save(model, output)
    assert relative_error(make_session(output).run(None, {"ids": IDS})[0], before) < TOLERANCE["float32"]
    words = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(output).graph.initializer}["words"]
    assert np.abs(words.mean(-1)).max() < 1e-6
