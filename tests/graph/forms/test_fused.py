"""A: norms that are one node, or hide in one: every spelling, dtype and opset."""

from __future__ import annotations

from tests.builders.cases import FormCase
from tests.builders.one_node_forms import FORMS
from tests.graph.forms.checks import check_form, every


@every(FORMS)
def test_form(case: FormCase, dtype: str) -> None:
    check_form(case, dtype)
