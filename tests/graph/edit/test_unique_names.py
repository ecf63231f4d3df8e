"""Names that are given once."""

from __future__ import annotations

import onnx_ir as ir

from dynorm_onnx.graph.edit.unique_names import Names
from tests.graph.test_lower import model_of


def test_taken_names_get_numbers() -> None:
    names = Names(["a", "a_1"])
    assert [names.unique(stem) for stem in ("a", "b", "b", "a")] == ["a_2", "b", "b_1", "a_3"]


def test_numbers_begin_where_asked() -> None:
    names = Names(first=2)
    assert [names.unique("norm") for _ in range(3)] == ["norm", "norm_2", "norm_3"]


def test_of_a_model_bodies_included() -> None:
    source = model_of(
        """y = If (flag) <then_branch = t () => (float[2] inner) { inner = Neg(x) },
        else_branch = e () => (float[2] other) { other = Abs(x) }>""",
        signature="(float[2] x, bool flag) => (float[2] y)",
    )
    names = Names.of(ir.from_proto(source))
    assert [names.unique(name) for name in ("x", "y", "inner", "other", "z")] == [
        "x_1", "y_1", "inner_1", "other_1", "z",
    ]  # fmt: skip
