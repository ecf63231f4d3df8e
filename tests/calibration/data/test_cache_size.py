"""Caches whose inputs leave sizes open that the operator which reads them settles."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from dynorm_onnx.calibration.data import ModelSignature, signature
from tests.calibration.data.test_missing import IDS, made
from tests.calibration.data.test_signature import parsed

CHANNELS = 16


def grouped(inputs: str = "q, k, k", attributes: str = "", width: int = 4 * CHANNELS) -> ModelSignature:
    """Of a model with one GroupQueryAttention: 4 heads of queries, 2 of keys; the query is `width` wide."""
    model = parsed(
        f"""(int64[batch, length] input_ids, int32[batch] seqlens_k, int32 total_sequence_length,
            float[batch, 2, past, size] past_key, float[batch, 2, past, size] past_value)
        => (float[batch, length, {4 * CHANNELS}] y) {{
            q = Gather(queries, input_ids)
            k = Gather(keys, input_ids)
            y = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2 {attributes}>(
                {inputs}, past_key, past_value, seqlens_k, total_sequence_length)
        }}""",
        queries=(9, width),
        keys=(9, 2 * CHANNELS),
    )
    # as in the files of onnxruntime-genai, which carry the shapes of all values
    model.graph.node(0).outputs[0].shape = ir.Shape(["batch", "length", width])
    return signature(model)


@pytest.mark.parametrize(("inputs", "width"), [("q, k, k", 4 * CHANNELS), ('q, "", ""', 8 * CHANNELS)])
def test_the_channels_of_a_head(inputs: str, width: int) -> None:
    model = grouped(inputs, width=width)
    assert [spec.shape for spec in model.with_role("past")] == [("batch", 2, "past", CHANNELS)] * 2
    assert made({"input_ids": IDS}, model)["past_key"].shape == (2, 2, 0, CHANNELS)


def test_a_sliding_window_has_its_room_from_the_start() -> None:
    model = grouped(attributes=", local_window_size = 5, sliding_window_cache = 1")
    feeds = made({"input_ids": IDS}, model)
    assert feeds["past_value"].shape == (2, 2, 5, CHANNELS)
    np.testing.assert_array_equal(feeds["seqlens_k"], [2, 2])  # of three tokens: the room is empty


def test_a_cache_that_nobody_settles_stays_open() -> None:
    model = grouped(width=4 * CHANNELS + 1)
    assert [spec.shape for spec in model.with_role("past")] == [("batch", 2, "past", "size")] * 2
