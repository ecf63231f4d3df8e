"""The proof of a site: it accepts the norm, and sees every small mistake in how it was read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from dynorm_onnx.graph.forms import decomposed
from dynorm_onnx.graph.norm_site import NearMiss, NormSite
from dynorm_onnx.graph.sites import proof
from dynorm_onnx.graph.values.index import GraphIndex

EPSILON = 1e-5
RMS = """
    <ir_version: 9, opset_import: ["": 18]>
    g (TYPE[b,6,8] x) => (TYPE[b,6,8] y) <TYPE[8] w = {1,2,3,4,5,6,7,8}> {
        wide = Cast <to = 1> (x)
        axes = Constant <value_ints = [-1]> ()
        square = Mul (wide, wide)
        mean = ReduceMean (square, axes)
        eps = Constant <value_float = 1e-5> ()
        above = Add (mean, eps)
        root = Sqrt (above)
        inverse = Reciprocal (root)
        normal = Mul (wide, inverse)
        back = CastLike (normal, x)
        y = Mul (back, w)
    }"""


def found(dtype: str = "float") -> tuple[GraphIndex, NormSite]:
    model = ir.from_proto(onnx.parser.parse_model(RMS.replace("TYPE", dtype)))
    index = GraphIndex(model.graph, model.opset_imports)
    (site,) = decomposed.find(index)
    assert isinstance(site, NormSite)
    return index, site


@pytest.mark.parametrize("dtype", ["float", "float16", "bfloat16"])
def test_a_norm_is_proved_in_every_type(dtype: str) -> None:
    index, site = found(dtype)
    assert site.epsilon == pytest.approx(EPSILON) and site.weight is not None
    assert proof.Prover(index).judge(site) is site


MISREADINGS: dict[str, Callable[[NormSite], NormSite]] = {
    "epsilon": lambda site: dataclasses.replace(site, epsilon=2 * EPSILON),
    "no epsilon": lambda site: dataclasses.replace(site, epsilon=0.0),
    "kind": lambda site: dataclasses.replace(site, kind="layer"),
    "axes": lambda site: dataclasses.replace(site, axes=(-2,)),
    "more axes": lambda site: dataclasses.replace(site, axes=(-2, -1)),
    "no weight": lambda site: dataclasses.replace(site, weight=None),
    "weight as bias": lambda site: dataclasses.replace(site, weight=None, bias=site.weight),
}


@pytest.mark.parametrize("name", MISREADINGS)
def test_a_misread_norm_is_a_near_miss(name: str) -> None:
    index, site = found()
    verdict = proof.Prover(index).judge(MISREADINGS[name](site))
    assert isinstance(verdict, NearMiss)
    assert "computes something else" in verdict.reason and verdict.name == site.name


def test_equal_sites_are_run_once() -> None:
    index, site = found()
    loads, runs = [], []

    def load(model: onnx.ModelProto) -> proof.Run:
        loads.append(model)
        evaluator = proof.load_reference(model)

        def run(feeds: proof.Feeds) -> list[np.ndarray]:
            runs.append({name: feed.shape for name, feed in feeds.items()})
            return evaluator(feeds)

        return run

    prover = proof.Prover(index, load)
    assert prover.judge(site) is site
    first = len(runs)
    assert first >= 2  # two sizes of x at least
    assert prover.judge(site) is site
    assert len(runs) == first and len(loads) == 1


def test_nodes_that_do_not_run_prove_nothing() -> None:
    index, site = found()

    def load(model: onnx.ModelProto) -> proof.Run:
        raise RuntimeError("no kernel for Sqrt")

    verdict = proof.Prover(index, load).judge(site)
    assert isinstance(verdict, NearMiss) and "no kernel for Sqrt" in verdict.reason


def test_the_definition_is_the_textbook_one() -> None:
    _, site = found()
    x = np.random.default_rng(0).normal(3.0, 2.0, (4, 8))
    weight, bias = np.linspace(1, 2, 8), np.linspace(-1, 1, 8)
    rms = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + site.epsilon) * weight + bias
    np.testing.assert_allclose(proof.definition(site, x, weight, bias), rms, rtol=1e-14)
    layer = dataclasses.replace(site, kind="layer")
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt(x.var(-1, keepdims=True) + site.epsilon)
    np.testing.assert_allclose(proof.definition(layer, x, None, None), expected, rtol=1e-13)
