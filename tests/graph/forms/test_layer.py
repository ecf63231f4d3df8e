"""C: LayerNorm in pieces: every form, dtype and opset."""

from __future__ import annotations

from tests.builders.cases import FormCase
from tests.builders.layer_forms import FORMS
from tests.graph.forms.checks import check_converted, check_found, every


@every(FORMS)
def test_found(case: FormCase, dtype: str) -> None:
    check_found(case, dtype)


@every(FORMS)
def test_converted(case: FormCase, dtype: str) -> None:
    check_converted(case, dtype)
