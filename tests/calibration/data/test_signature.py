"""What a model's inputs are for: by their names, and by what they index."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from dynorm_onnx.calibration.data import signature
from dynorm_onnx.calibration.data.roles import role_by_name
from dynorm_onnx.errors import DataError
from tests.calibration.tiny_models import VOCABULARY, language_model


def parsed(text: str, **tables: tuple[int, ...]) -> ir.Model:
    """The model of an ONNX graph text, with zeros of the shapes given for initializers."""
    header = '<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>'
    model = onnx.parser.parse_model(f"{header} graph {text}")
    for name, shape in tables.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name))
    return ir.from_proto(model)


def test_language_model_with_a_cache() -> None:
    found = signature(language_model(cache=True))
    assert [spec.role for spec in found.inputs] == [
        "token_ids",
        "attention_mask",
        "position_ids",
        "past",
        "past",
    ]
    assert found.tokens is not None and found.tokens.bound == VOCABULARY
    assert found.logits == "logits"
    assert found.presents == {
        "past_key_values.0.key": "present.0.key",
        "past_key_values.0.value": "present.0.value",
    }
    assert (found.fixed_batch, found.fixed_length) == (None, None)


def test_fixed_sizes() -> None:
    found = signature(language_model("2, 16"))
    assert (found.fixed_batch, found.fixed_length) == (2, 16)


@pytest.mark.parametrize(
    ("name", "dtype", "role"),
    [
        ("input_ids", "INT64", "token_ids"),
        ("input_ids:0", "INT32", "token_ids"),
        ("decoder_input_ids", "INT64", "decoder_token_ids"),
        ("attention_mask", "FLOAT", "attention_mask"),
        ("encoder_attention_mask", "INT64", "attention_mask"),
        ("causal_mask", "BOOL", "attention_mask"),
        ("masked_lm_positions", "INT64", "position_ids"),
        ("position_ids", "INT64", "position_ids"),
        ("cache_position", "INT64", "cache_position"),
        ("token_type_ids", "INT64", "token_type_ids"),
        ("segment_ids", "INT32", "token_type_ids"),
        ("past_key_values.3.decoder.key", "FLOAT16", "past"),
        ("past_0", "FLOAT", "past"),
        ("past_conv.0", "BFLOAT16", "past"),
        ("use_cache_branch", "BOOL", "cache_flag"),
        ("seqlens_k", "INT32", "sequence_lengths"),
        ("total_sequence_length", "INT32", "total_length"),
        ("total_seq_len", "INT32", "total_length"),
        ("past_seq_len", "INT32", "past_length"),
        ("past_sequence_length", "INT32", "past_length"),
        ("num_logits_to_keep", "INT64", "logits_to_keep"),
        ("encoder_hidden_states", "FLOAT", "encoder_states"),
        ("hidden_states", "FLOAT", "other"),
        ("pixel_values", "FLOAT", "other"),
        ("labels", "INT64", "other"),
    ],
)
def test_role_by_name(name: str, dtype: str, role: str) -> None:
    assert role_by_name(name, ir.DataType[dtype]) == role


def test_nameless_inputs_by_the_tables_that_they_index() -> None:
    model = parsed(
        """(int64[b, s] a, int64[b, s] b) => (float[b, s, 4] y) {
            narrow = Cast<to = 6>(b)
            p = Gather(types, a)
            q = Gather(words, narrow)
            y = Add(p, q)
        }""",
        words=(300, 4),
        types=(2, 4),
    )
    assert [(spec.role, spec.bound) for spec in signature(model).inputs] == [
        ("token_type_ids", 2),
        ("token_ids", 300),
    ]


def test_tables_behind_other_operators() -> None:
    model = parsed(
        """(int32[b, s] x, int32[b, s] z) => (float[b, s, 4] y, float[b, s, 4] w, float[b, s, 4] v) {
            table = Transpose(head)
            y = Gather(table, x)
            w, unused = com.microsoft.EmbedLayerNormalization(z, "", words, places, "", ones, ones)
            v = com.microsoft.GatherBlockQuantized<gather_axis = 0>(packed, x, scales)
        }""",
        head=(4, 90),
        words=(70, 4),
        places=(12, 4),
        ones=(4,),
        packed=(80, 4),
        scales=(80, 1),
    )
    found = signature(model)
    assert [spec.bound for spec in found.inputs] == [80, 70]
    assert found.longest == 12


def test_longest_text_by_a_table_that_counts_up_to_the_length() -> None:
    model = parsed(
        """(int64[b, s] input_ids) => (float[b, s, 4] y) {
            words_of = Gather(words, input_ids)
            zero = Constant<value_int = 0>()
            one = Constant<value_int = 1>()
            shape = Shape(input_ids)
            length = Gather(shape, one)
            places_of = Range(zero, length, one)
            placed = Gather(places, places_of)
            y = Add(words_of, placed)
        }""",
        words=(300, 4),
        places=(40, 4),
    )
    assert signature(model).longest == 40


def test_longest_text_by_positions_that_add_up_the_tokens() -> None:
    model = parsed(
        """(int64[b, s] input_ids) => (float[b, s, 4] y) {
            words_of = Gather(words, input_ids)
            one = Constant<value_int = 1>()
            padding = Equal(input_ids, one)
            token = Not(padding)
            flags = Cast<to = 7>(token)
            added = CumSum(flags, one)
            shown = Mul(added, flags)
            places_of = Add(shown, one)
            placed = Gather(places, places_of)
            y = Add(words_of, placed)
        }""",
        words=(300, 4),
        places=(42, 4),
    )
    assert signature(model).longest == 40


def test_buckets_of_relative_positions_do_not_bound_the_length() -> None:
    model = parsed(
        """(int64[b, s] input_ids) => (float[b, s, 4] y) {
            words_of = Gather(words, input_ids)
            zero = Constant<value_int = 0>()
            one = Constant<value_int = 1>()
            last = Constant<value_int = 7>()
            shape = Shape(input_ids)
            length = Gather(shape, one)
            distance = Range(zero, length, one)
            bucket = Min(distance, last)
            placed = Gather(buckets, bucket)
            y = Add(words_of, placed)
        }""",
        words=(300, 4),
        buckets=(8, 4),
    )
    assert signature(model).longest is None


def test_an_index_that_is_reached_in_countless_ways() -> None:
    doublings = "\n".join(f"d{step + 1} = Add(d{step}, d{step})" for step in range(40))
    model = parsed(
        f"""(int64[b, s] input_ids) => (float[b, s, 4] y) {{
            words_of = Gather(words, input_ids)
            d0 = Shape(input_ids)
            {doublings}
            placed = Gather(places, d40)
            y = Identity(words_of)
        }}""",
        words=(300, 4),
        places=(40, 4),
    )
    assert signature(model).longest == 40


def test_weights_among_the_inputs_have_no_samples() -> None:
    model = parsed("(float[batch, seq, 8] x, float[8] scale) => (float[batch, seq, 8] y) { y = Mul(x, scale) }")
    assert [spec.batch_axis for spec in signature(model).inputs] == [0, None]


def test_presents_by_order_where_names_do_not_tell() -> None:
    model = parsed(
        """(float[b, n, 4] k_cache_a, float[b, n, 4] v_cache_a)
        => (float[b, n, 4] new_cache_1, float[b, n, 4] new_cache_2) {
            new_cache_1 = Identity(k_cache_a)
            new_cache_2 = Identity(v_cache_a)
        }"""
    )
    assert signature(model).presents == {"k_cache_a": "new_cache_1", "v_cache_a": "new_cache_2"}


def test_positions_of_masked_words_are_no_positions_of_tokens() -> None:
    model = parsed(
        "(float[batch,length,8] x, int64[batch,words,1] masked_positions, int64[3,batch,length] position_ids) "
        "=> (float[batch,words,8] y) { p = Cast<to = 1>(position_ids) "
        "h = GatherND<batch_dims = 1>(x, masked_positions) "
        "s = ReduceSum(p) y = Add(h, s) }"
    )
    _, masked, positions = signature(model).inputs
    assert (masked.role, masked.batch_axis) == ("other", 0)
    assert (positions.role, positions.batch_axis) == ("position_ids", 1)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("optional(float[n])", r"input 'x' is an optional \(Optional\(Tensor\(FLOAT\)\)\): data can be given for"),
        ("seq(optional(float[n]))", "input 'x' is of the type Sequence"),
        ("sparse_tensor(float[n])", "input 'x' is a sparse tensor"),
    ],
)
def test_inputs_that_take_no_data(kind: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        signature(parsed(f"({kind} x) => ({kind} y) {{ y = Identity(x) }}"))
