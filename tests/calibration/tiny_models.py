"""Language models of one attention layer, written out, with the inputs that exported models have."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

VOCABULARY = 23
HIDDEN = 8
POSITIONS = 48

_ATTENTION = """
    q = MatMul(x, wq)
    k_new = MatMul(x, wk)
    v_new = MatMul(x, wv)
    {cache}
    k_t = Transpose<perm = [0, 2, 1]>(k)
    products = MatMul(q, k_t)
    {mask}
    attention = Softmax<axis = -1>(scores)
    mixed = MatMul(attention, v)
    out = Add(x, mixed)
    logits = MatMul(out, head)
"""
_CACHE = """
    k = Concat<axis = 1>("past_key_values.0.key", k_new)
    v = Concat<axis = 1>("past_key_values.0.value", v_new)
    "present.0.key" = Identity(k)
    "present.0.value" = Identity(v)
"""
_NO_CACHE = """
    k = Identity(k_new)
    v = Identity(v_new)
"""
_CAUSAL = """
    length_q = Shape<start = 1, end = 2>(q)
    length_k = Shape<start = 1, end = 2>(k)
    first_q = Sub(length_k, length_q)
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    axes = Constant<value_ints = [1]>()
    start = Squeeze(first_q)
    stop = Squeeze(length_k)
    queries = Range(start, stop, one)
    keys = Range(zero, stop, one)
    column = Unsqueeze(queries, axes)
    later = Greater(keys, column)
    minus = Constant<value_float = -10000.0>()
    {name} = Where(later, minus, {scores})
"""
_MASK = """
    mask_axes = Constant<value_ints = [1]>()
    mask_rows = Unsqueeze(attention_mask, mask_axes)
    shown = Cast<to = 9>(mask_rows)
    mask_minus = Constant<value_float = -10000.0>()
    scores = Where(shown, {scores}, mask_minus)
"""


def language_model(
    shape: str = "batch, length",
    *,
    causal: bool = True,
    cache: bool = False,
    mask: bool = True,
    positions: bool = True,
) -> ir.Model:
    """A model of `logits` [batch, length, 23] that takes `input_ids` of the shape given ("2, 16" is fixed).

    Args:
        shape: of input_ids.
        causal: whether tokens look only backwards.
        cache, mask, positions: whether it takes past_key_values, attention_mask, position_ids.
    """
    batch, length = shape.split(", ")
    total = "total" if cache else length
    inputs = [f"int64[{shape}] input_ids"]
    inputs += [f"int64[{batch}, {total}] attention_mask"] * mask
    inputs += [f"int64[{shape}] position_ids"] * positions
    outputs = [f"float[{shape}, {VOCABULARY}] logits"]
    for part in ("key", "value") if cache else ():
        inputs.append(f'float[{batch}, past, {HIDDEN}] "past_key_values.0.{part}"')
        outputs.append(f'float[{batch}, total, {HIDDEN}] "present.0.{part}"')
    body = "embedded = Gather(embedding, input_ids)\n"
    if positions:
        body += "placed = Gather(position_table, position_ids)\n x = Add(embedded, placed)\n"
    else:
        body += "x = Identity(embedded)\n"
    body += _ATTENTION.format(cache=_CACHE if cache else _NO_CACHE, mask=_masks(causal, mask))
    text = f'<ir_version: 10, opset_import: ["": 18]> tiny ({", ".join(inputs)}) => ({", ".join(outputs)}) {{{body}}}'
    return _with_weights(onnx.parser.parse_model(text), positions)


def _masks(causal: bool, mask: bool) -> str:
    if not causal and not mask:
        return "scores = Identity(products)"
    text = _CAUSAL.format(name="past_only" if mask else "scores", scores="products") if causal else ""
    return text + (_MASK.format(scores="past_only" if causal else "products") if mask else "")


def _with_weights(model: onnx.ModelProto, positions: bool) -> ir.Model:
    rng = np.random.default_rng(3)
    weights = {name: rng.standard_normal((HIDDEN, HIDDEN)) * 0.4 for name in ("wq", "wk", "wv")}
    weights["embedding"] = rng.standard_normal((VOCABULARY, HIDDEN))
    weights["head"] = rng.standard_normal((HIDDEN, VOCABULARY))
    if positions:
        weights["position_table"] = rng.standard_normal((POSITIONS, HIDDEN)) * 0.3
    for name, weight in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), name))
    onnx.checker.check_model(model)
    return ir.from_proto(model)


_GROUPED = f"""
<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
grouped (int64[batch, length] input_ids, int32[batch] seqlens_k, int32 total_sequence_length,
    float[batch, 1, past, 8] "past_key_values.0.key", float[batch, 1, past, 8] "past_key_values.0.value")
=> (float[batch, length, {VOCABULARY}] logits,
    float[batch, 1, total, 8] "present.0.key", float[batch, 1, total, 8] "present.0.value")
{{
    x = Gather(embedding, input_ids)
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    mixed, "present.0.key", "present.0.value" =
        com.microsoft.GroupQueryAttention<num_heads = 1, kv_num_heads = 1>(
            q, k, v, "past_key_values.0.key", "past_key_values.0.value", seqlens_k, total_sequence_length)
    out = Add(x, mixed)
    logits = MatMul(out, head)
}}
"""


def grouped_query_model() -> ir.Model:
    """A causal model around com.microsoft::GroupQueryAttention, which takes lengths in the place of a mask."""
    return _with_weights(onnx.parser.parse_model(_GROUPED), positions=False)
