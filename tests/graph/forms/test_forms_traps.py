"""E: what must be left alone is, with the reason; and replacing what is found never changes an output."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from dynorm_onnx.graph.lower import lower
from tests.builders import holders
from tests.builders.cases import FLOATS
from tests.builders.convert import found_in, lowered, reasons
from tests.builders.execute import Known, run
from tests.builders.graph import Graph
from tests.builders.installed import NEWEST
from tests.builders.one_node_forms import layer_node
from tests.builders.traps import TRAPS, Trap, negated
from tests.graph.forms.checks import UNCHANGED, same_outputs


@pytest.mark.parametrize(
    ("trap", "dtype"),
    [
        pytest.param(trap, dtype, id=f"{trap.id}-{dtype}", marks=trap.case().marks(dtype))
        for trap in TRAPS
        for dtype in trap.dtypes
    ],
)
def test_left_alone_with_the_reason_and_nothing_changed(trap: Trap, dtype: str) -> None:
    case, known = trap.case(), Known()
    for opset in case.opsets(dtype):
        built = case.build(dtype, opset)
        model, found = found_in(built.model)
        where = f"{trap.id} {dtype} opset {opset}"
        assert tuple(sorted(site.kind for site in found.sites)) == tuple(sorted(trap.sites)), f"{where}: {found}"
        if trap.words:
            assert any(word.lower() in reasons(found) for word in trap.words), f"{where}: {reasons(found)!r}"
        assert bool(found.refused) == trap.refused, f"{where}: {found.refused}"
        lower(model, found.sites)
        before, after = known.run(built.model, built.feeds), known.run(ir.to_proto(model), built.feeds)
        same_outputs(before, after, UNCHANGED[dtype], where)


def test_mean_outside_belongs_to_the_norm() -> None:
    trap = next(trap for trap in TRAPS if trap.id == "E1-mean-outside")
    _, found = found_in(trap.case().build("float32", 17).model)
    assert found.sites[0].x is not None and found.sites[0].x.name == "h"
    assert found.sites[0].bias is None


def test_weights_that_depend_on_x_are_not_taken() -> None:
    for trap in TRAPS:
        if trap.id in ("E2-chain", "E2-weight-of-x", "E2-weight-of-norm", "branches"):
            _, found = found_in(trap.case().build("float32", 17).model)
            assert [site.weight for site in found.sites] == [None] * len(trap.sites), trap.id


def test_residuals_are_no_bias() -> None:
    for trap in TRAPS:
        if trap.id in ("E2-residual-after", "sandwich-norm"):
            _, found = found_in(trap.case().build("float32", 17).model)
            assert found.sites[0].weight is not None and found.sites[0].bias is None, trap.id


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_other_sign(dtype: str) -> None:
    """mean - x: a LayerNorm of weight -w, or an RMSNorm behind the mean; the outputs stay."""
    built = Trap("negated", negated).case().build(dtype, 17)
    model, _ = lowered(built.model)
    after = run(ir.to_proto(model), built.feeds)
    same_outputs(run(built.model, built.feeds), after, UNCHANGED[dtype], "negated")


def test_weight_that_adds_an_axis_is_not_taken() -> None:
    trap = Trap("rank", _more_axes)
    built = trap.case().build("float32", 17)
    _, found = found_in(built.model)
    assert all(site.weight is None for site in found.sites)
    model, _ = lowered(built.model)
    same_outputs(run(built.model, built.feeds), run(ir.to_proto(model), built.feeds), 1e-5, "rank")


def _more_axes(g: Graph, x: str) -> str:
    normal = g.op("Div", x, _root(g, x))
    larger = g.op("Mul", normal, g.weight(2, 1, 1, 8))
    return g.reduce("ReduceSum", larger, [0], keepdims=0)


def _root(g: Graph, x: str) -> str:
    mean = g.reduce("ReduceMean", g.op("Mul", x, x), [-1])
    return g.op("Sqrt", g.op("Add", mean, g.scalar(1e-3)))


@pytest.mark.parametrize(
    ("build", "outside"),
    [(holders.in_if, 1), (holders.in_loop, 0), (holders.in_scan, 0)],
    ids=["If", "Loop", "Scan"],
)
def test_norms_in_bodies_are_found_after_the_others(build: Callable[[int], Graph], outside: int) -> None:
    for opset in range(11, NEWEST + 1):
        graph = build(opset)
        model = graph.model()
        prepared, found = found_in(model)
        assert not found.refused, f"opset {opset}: {found.refused}"
        assert [site.graph is prepared.graph for site in found.sites] == [True] * outside + [False]
        assert all(site.kind == "rms" for site in found.sites)
        converted, _ = lowered(model)
        same_outputs(run(model, graph.feeds), run(ir.to_proto(converted), graph.feeds), 1e-5, f"opset {opset}")


def test_fused_norm_in_a_body_is_found() -> None:
    _, found = found_in(holders.in_if(17, layer_node).model())
    assert [site.kind for site in found.sites] == ["rms", "layer"] and not found.refused


def test_norm_in_beam_search_is_refused() -> None:
    _, found = found_in(holders.in_beam_search(17).model())
    assert not found.sites
    assert [refusal.kind for refusal in found.refused] == ["layer"]
    assert "beamsearch" in found.refused[0].reason.lower().replace(" ", "")


def test_norm_read_by_a_body_keeps_its_name_there() -> None:
    graph = holders.norm_read_in_if(17)
    model, norms = lowered(graph.model())
    assert len(norms) == 1
    same_outputs(run(graph.model(), graph.feeds), run(ir.to_proto(model), graph.feeds), 1e-5, "If")


@pytest.mark.parametrize("op_type", holders.FUSED)
def test_norms_inside_other_operators_are_named(op_type: str) -> None:
    """A9."""
    _, found = found_in(holders.fused(op_type))
    assert not found.sites
    assert len(found.refused) == 1
    refusal = found.refused[0]
    assert refusal.form == "A9" and op_type.lower() in (refusal.reason + refusal.name).lower()
