"""The original beside a student: by ONNX Runtime and as a graph it says the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from dynorm_onnx.runtime.session import make_session
from tests.builders.convert import lowered
from tests.shipped import MODEL, TEXT
from tests.tolerances import relative_error

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install dynorm-onnx[torch]")

from dynorm_onnx.pytorch.distil import onnx_file  # noqa: E402
from dynorm_onnx.pytorch.distil.teacher import graph_teacher, session_teacher  # noqa: E402
from dynorm_onnx.pytorch.graph import GraphModule  # noqa: E402

IDS = torch.from_numpy(np.frombuffer(TEXT.read_bytes()[: 4 * 32], np.uint8).astype(np.int64).reshape(4, 32))


def test_a_graph_gives_what_a_session_gives() -> None:
    original, _ = lowered(onnx.load(MODEL))
    graph = graph_teacher(GraphModule(original, float_type=torch.float32), torch.device("cpu"))
    expected = session_teacher(make_session(original))(input_ids=IDS)["logits"].numpy()
    with torch.no_grad():
        assert relative_error(graph(input_ids=IDS)["logits"].numpy(), expected) < 1e-4
        with torch.autocast("cpu", torch.bfloat16):
            assert 1e-4 < relative_error(graph(input_ids=IDS)["logits"].float().numpy(), expected) < 5e-2


def test_inputs_that_only_the_student_takes_are_left_out() -> None:
    original, _ = lowered(onnx.load(MODEL))
    graph = graph_teacher(GraphModule(original, float_type=torch.float32), torch.device("cpu"))
    with torch.no_grad():
        assert graph(input_ids=IDS, other=IDS)["logits"].shape[:2] == IDS.shape


@pytest.mark.skipif(torch.cuda.is_available(), reason="on CUDA the original is always run as a graph")
@pytest.mark.parametrize(("large", "precision", "opened"), [
    (False, "float32", 1), (True, "float32", 1), (False, "bfloat16", 1), (True, "bfloat16", 0),
])  # fmt: skip
def test_a_session_is_opened_where_it_is_the_faster_one(large: bool, precision: str, opened: int) -> None:
    original, _ = lowered(onnx.load(MODEL))
    made = []

    def open_model(model: object) -> object:
        made.append(model)
        return make_session(model)

    teacher = onnx_file._teacher(original, open_model, large=large, precision=precision)
    assert teacher(input_ids=IDS)["logits"].shape[:2] == IDS.shape
    assert len(made) == opened
