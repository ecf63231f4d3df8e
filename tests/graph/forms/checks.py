"""What is asked of every form: found as it is, lowered without a change, replaced by a function that runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dynorm_onnx.graph.lower import LoweredNorm, lower
from dynorm_onnx.graph.norm_site import NormSite, SitesFound
from tests.builders.cases import Built, Expected, FormCase, eps_in
from tests.builders.convert import CANONICAL, found_in, is_checked, replaced
from tests.builders.execute import Known
from tests.tolerances import relative_error

#: --to rmsnorm against the original. An epsilon in an attribute is float32, in a double model too.
UNCHANGED = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-2, "double": 1e-7}


def every(cases: Iterable[FormCase]) -> pytest.MarkDecorator:
    """Parametrise over all cases in all their dtypes; the opsets are gone through within a test."""
    params = [
        pytest.param(case, dtype, id=f"{case.id}-{dtype}", marks=case.marks(dtype))
        for case in cases
        for dtype in case.dtypes
    ]
    return pytest.mark.parametrize(("case", "dtype"), params)


def check_form(case: FormCase, dtype: str) -> None:
    """At every opset: found as it is, the same by `--to rmsnorm`, runs after `--to dyisru`."""
    opsets, known = case.opsets(dtype), Known()
    for opset in opsets:
        built = case.build(dtype, opset)
        where = f"{case.id} {dtype} opset {opset}"
        model, found = found_in(built.model)
        _check_found(case, dtype, found, where)
        norms = lower(model, found.sites)
        _check_lowered(case, dtype, built, ir.to_proto(model), norms, where, known)
        _check_replaced(case, built, replaced(model, norms), where, known)
    for opset in (opsets[0], opsets[-1]):
        _, found = found_in(case.build(dtype, opset, named=False).model)
        _check_found(case, dtype, found, f"{case.id} {dtype} opset {opset}, nodes without names")


def _check_found(case: FormCase, dtype: str, found: SitesFound, where: str) -> None:
    """Exactly the expected sites, and each read right."""
    assert len(found.sites) == len(case.expected), f"{where}: {found}"
    assert not found.refused, f"{where}: {found.refused}"
    for site, expected in zip(found.sites, case.expected, strict=True):
        _check_site(site, expected, dtype, where)
    names = [site.name for site in found.sites]
    assert all(names) and len(set(names)) == len(names), f"{where}: names {names}"


def _check_site(site: NormSite, expected: Expected, dtype: str, where: str) -> None:
    assert site.kind == expected.kind, where
    assert site.form in expected.form.split("|"), f"{where}: form {site.form}"
    assert site.axes == expected.axes, f"{where}: axes {site.axes}"
    assert site.channels == expected.channels, f"{where}: channels {site.channels}"
    # a constant of the model's own type has rounded it; one in an attribute, or behind a Cast, has not
    asked = {eps_in(dtype, expected.eps), expected.eps}
    assert any(site.epsilon == pytest.approx(eps, rel=1e-6, abs=1e-15) for eps in asked), f"{where}: {site.epsilon}"
    assert site.part == expected.part, where
    if expected.weight is not None:
        assert (site.weight is not None) == expected.weight, f"{where}: weight {site.weight}"
    assert (site.bias is not None) == expected.bias, f"{where}: bias {site.bias}"
    if expected.x is not None:
        assert site.x is not None and site.x.name == expected.x, f"{where}: x {site.x}"
    assert site.nodes, where


def _check_lowered(
    case: FormCase,
    dtype: str,
    built: Built,
    proto: onnx.ModelProto,
    norms: Sequence[LoweredNorm],
    where: str,
    known: Known,
) -> None:
    """One canonical node per site, and no output changed."""
    assert len(norms) == len(case.expected), where
    for norm, expected in zip(norms, case.expected, strict=True):
        assert norm.node.op_type in CANONICAL and norm.node.graph is not None, where
        assert norm.kind == expected.kind, where
        assert norm.weight.shape == (norm.channels,) and norm.weight.dtype == np.float32, where
        _check_folded(case, built, expected, norm, where)
    before = known.run(built.model, built.feeds, reference=case.reference_only)
    after = known.run(proto, built.feeds, reference=_stays_on_reference(case))
    same_outputs(before, after, UNCHANGED[dtype], where)
    for field in ("input", "output"):
        names = [[value.name for value in getattr(m.graph, field)] for m in (built.model, proto)]
        assert names[0] == names[1], where
    if is_checked(built.model):
        assert is_checked(proto), where


def _check_folded(case: FormCase, built: Built, expected: Expected, norm: LoweredNorm, where: str) -> None:
    """A weight (of a LayerNorm, a bias too) that is one constant vector is the canonical node's own."""
    weight, bias = built.params.get("weight"), built.params.get("bias")
    if expected.weight and case.constant_weight and weight is not None and weight.size == norm.channels:
        wanted = weight.astype(np.float64).reshape(-1)
        if _is_vector(weight, expected):
            np.testing.assert_allclose(norm.weight, wanted, rtol=1e-2, err_msg=where)
            if expected.kind == "layer" and expected.bias and bias is not None:
                assert norm.bias is not None, where
                np.testing.assert_allclose(norm.bias, bias.astype(np.float64).reshape(-1), rtol=1e-2, err_msg=where)


def _is_vector(weight: np.ndarray, expected: Expected) -> bool:
    """Whether it spans the normalised axes alone."""
    return all(size == 1 for axis, size in enumerate(weight.shape) if axis - weight.ndim not in expected.axes)


def _check_replaced(case: FormCase, built: Built, proto: onnx.ModelProto, where: str, known: Known) -> None:
    """With a function in the place of every norm the model runs, and is valid if it was."""
    for output in known.run(proto, built.feeds, reference=_stays_on_reference(case)):
        assert np.isfinite(np.asarray(output, np.float64)).all(), where
    left = [node.op_type for node in proto.graph.node]
    assert not CANONICAL & set(left), f"{where}: {left}"
    assert sum(node.domain == "dynorm" for node in proto.graph.node) == len(case.expected), where
    if is_checked(built.model):
        assert is_checked(proto), where


def _stays_on_reference(case: FormCase) -> bool:
    """A7's node, once it has lost its norms, runs in ONNX Runtime; an RMSNormalization of two types never does."""
    return case.reference_only and case.expected[0].part is None


def same_outputs(before: Sequence[np.ndarray], after: Sequence[np.ndarray], bound: float, where: str) -> None:
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        assert old.shape == new.shape and old.dtype == new.dtype, f"{where}: output {index}"
        assert relative_error(new, old) <= bound, f"{where}: output {index}: {relative_error(new, old):.1e}"
