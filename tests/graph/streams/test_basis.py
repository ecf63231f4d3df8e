"""Which streams have a basis that can be chosen, and which weights lie at them."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from dynorm_onnx.graph.streams.basis import StreamBasis, find_bases
from tests.builders.convert import lowered

QWEN3 = Path(__file__).parents[3] / "models" / "byte_qwen3" / "byte_qwen3.onnx"
CHANNELS = 6
MODEL = """
<ir_version: 10, opset_import: ["": 23]>
model (int64[batch, sequence] ids) => (float[batch, sequence, words] logits) {{
    start = Gather(table, ids)
    first = RMSNormalization<epsilon = 0.00001>(start, gain)
    inner = MatMul(first, up)
    bent = Tanh(inner)
    bent_rows = Reshape(bent, rows)
    back = Gemm<transB = 1>(bent_rows, down, offset)
    written = Reshape(back, like)
    sum = Add(start, written)
    last = RMSNormalization<epsilon = 0.00001>(sum, other_gain)
    {logits}
    {more}
}}
"""


TIED = {
    "transposed": "turned = Transpose<perm = [1, 0]>(table) logits = MatMul(last, turned)",
    "of the last rows": "some = Slice(last, one, size, one) turned = Transpose(table) logits = MatMul(some, turned)",
    "behind a cast": "same = Cast<to = 1>(last) turned = Transpose<perm = [1, 0]>(table) logits = MatMul(same, turned)",
    "twice": "turned = Transpose<perm = [1, 0]>(table) a = MatMul(last, turned)\n"
    "other = Transpose<perm = [1, 0]>(table) b = MatMul(last, other) logits = Add(a, b)",
    "beside another": "turned = Transpose<perm = [1, 0]>(table) a = MatMul(last, turned) b = MatMul(last, head)\n"
    "logits = Concat<axis = -1>(a, b)",
}
"""The ends of models whose head is the embedding."""


def model(logits: str = "logits = MatMul(last, head)", more: str = "") -> onnx.ModelProto:
    """A table, one layer up and down, and a head, with two norms."""
    proto = onnx.parser.parse_model(MODEL.format(logits=logits, more=more))
    rng = np.random.default_rng(0)
    shapes = {"table": (7, CHANNELS), "up": (CHANNELS, 9), "down": (CHANNELS, 9), "offset": (CHANNELS,),
              "head": (CHANNELS, 5), "gain": (CHANNELS,), "other_gain": (CHANNELS,)}  # fmt: skip
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {name: np.array([value]) for name, value in (("size", 3), ("one", 1))}
    arrays |= {"rows": np.array([-1, 9]), "like": np.array([2, 3, CHANNELS])}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return onnx.shape_inference.infer_shapes(proto)


def bases(proto: onnx.ModelProto, *, kept: int = 0) -> tuple[StreamBasis, ...]:
    prepared, norms = lowered(proto)
    assert len(norms) == 2
    return find_bases(prepared.graph, norms[: len(norms) - kept])


def test_all_that_writes_and_all_that_reads_is_found_with_its_axis() -> None:
    (basis,) = bases(model())
    assert basis.channels == CHANNELS
    assert basis.writers == {"table": 1, "down": 0, "offset": 0}
    assert basis.readers == {"up": 0, "head": 0}
    assert {tuple(sorted(names)) for names in basis.read.values()} == {("up",), ("head",)}


@pytest.mark.parametrize("end", TIED)
def test_a_head_that_shares_the_embedding_is_told_apart(end: str) -> None:
    (basis,) = bases(model(TIED[end]))
    assert basis.writers == {"table": 1, "down": 0, "offset": 0}
    assert basis.readers == {"up": 0} | ({"head": 0} if end == "beside another" else {})
    assert len(basis.heads) == (2 if end == "twice" else 1)
    assert {(head.weight, head.position) for head in basis.heads} == {("table", 0)}
    assert {head.norm for head in basis.heads} < set(basis.read)


@pytest.mark.parametrize(
    ("proto", "kept", "reason"),
    [
        pytest.param(model(), 1, "reads it too", id="a norm that stays"),
        pytest.param(model(more="more = Exp(sum)"), 0, "Exp .* reads it too", id="the stream itself"),
        pytest.param(
            model(TIED["transposed"], more="more = Neg(table)"), 0, "'table' is read elsewhere too",
            id="a table with more readers",
        ),
        pytest.param(
            model("a = MatMul(last, head) b = MatMul(last, head) logits = Add(a, b)"), 0,
            "the weight is read in 2 places .* 'head'", id="a head read twice",
        ),
        pytest.param(
            model("curved = Tanh(last)\n    logits = MatMul(curved, head)"), 0, "no linear layer", id="behind a norm"
        ),
    ],
)  # fmt: skip
def test_a_stream_with_another_reader_has_none_and_the_log_says_why(
    proto: onnx.ModelProto, kept: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dynorm_onnx"):
        assert bases(proto, kept=kept) == ()
    assert any(re.search(reason, message) for message in caplog.messages), caplog.messages


def test_norms_of_heads_have_none_and_leave_the_stream_its_own() -> None:
    prepared, norms = lowered(onnx.load(QWEN3))
    (basis,) = find_bases(prepared.graph, norms)
    assert basis.channels == 128
    assert {norm.site_name for norm in basis.read} == {n.site_name for n in norms if "self_attn" not in n.site_name}
    assert len(basis.writers) == 1 + 2 * 3 and len(basis.readers) == 5 * 3 + 1
