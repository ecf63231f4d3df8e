"""The builders themselves: every model that the tests of graph/ use runs, and computes what its definition says."""

from __future__ import annotations

import numpy as np
import pytest

from tests.builders import layer_forms, one_node_forms, rms_forms, traps
from tests.builders.cases import FormCase
from tests.builders.execute import run
from tests.tolerances import relative_error

CASES = [*one_node_forms.FORMS, *rms_forms.FORMS, *layer_forms.FORMS]
# In pieces every operation rounds; and an epsilon in an attribute is a float32 even in a double model.
BOUND = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2, "double": 1e-9}


@pytest.mark.parametrize(
    ("case", "dtype"), [pytest.param(c, d, id=f"{c.id}-{d}", marks=c.marks(d)) for c in CASES for d in c.dtypes]
)
def test_form_is_what_it_says(case: FormCase, dtype: str) -> None:
    for opset in case.opsets(dtype):
        built = case.build(dtype, opset)
        output = run(built.model, built.feeds, reference=case.reference_only)[-1]
        assert output.shape == built.output.shape
        assert relative_error(output, built.output) < BOUND[dtype], f"opset {opset}"


@pytest.mark.parametrize(
    ("trap", "dtype"),
    [pytest.param(t, d, id=f"{t.id}-{d}", marks=t.case().marks(d)) for t in traps.TRAPS for d in t.dtypes],
)
def test_trap_runs(trap: traps.Trap, dtype: str) -> None:
    case = trap.case()
    for opset in case.opsets(dtype):
        built = case.build(dtype, opset)
        outputs = run(built.model, built.feeds)
        assert all(np.isfinite(np.asarray(output, np.float64)).all() for output in outputs)


def test_ids_are_unique() -> None:
    ids = [case.id for case in CASES] + [trap.id for trap in traps.TRAPS]
    assert len(ids) == len(set(ids))
