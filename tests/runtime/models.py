"""Small models that the tests of running share, as ONNX text."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser

LOCAL_FUNCTION = """
<ir_version: 10, opset_import: ["" : 21, "dynorm" : 1]>
main (float[N, 4] x) => (float[N, 4] y) { y = dynorm.Twice(x) }
<domain: "dynorm", opset_import: ["" : 21]>
Twice (a) => (b) { b = Add(a, a) }
"""

BFLOAT16 = """
<ir_version: 10, opset_import: ["" : 21]>
main (bfloat16[N, 4] x, bfloat16 s) => (bfloat16[N, 4] y, float[N, 4] z) {
  x32 = Cast<to = 1>(x)
  s32 = Cast<to = 1>(s)
  z = Mul(x32, s32)
  y = Cast<to = 16>(z)
}
"""


def local_function() -> onnx.ModelProto:
    """y = 2 x, by a model-local function in the domain dynorm."""
    return parser.parse_model(LOCAL_FUNCTION)


def bfloat16_scale() -> onnx.ModelProto:
    """z = x s in float32 and y = z in bfloat16, for bfloat16 x [N, 4] and scalar s."""
    return parser.parse_model(BFLOAT16)


def linear(weight: np.ndarray) -> onnx.ModelProto:
    """y = x weight, x [N, K], with the weight [K, M] as an initializer."""
    rows, columns = weight.shape
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        linear (float[N, {rows}] x) => (float[N, {columns}] y) {{ y = MatMul(x, weight) }}"""
    )
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    return model


def language_model(*, vocabulary: int = 11, width: int = 8, seed: int = 0, bias: float = 0.0) -> onnx.ModelProto:
    """A causal model: logits [B, T, V] of the running mean of embeddings, from input_ids and attention_mask.

    `bias` shifts the logits of token 3, so that two of these models differ by a known amount.
    """
    rng = np.random.default_rng(seed)
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        lm (int64[B, T] input_ids, int64[B, T] attention_mask) => (float[B, T, {vocabulary}] logits) {{
          one = Constant<value_int = 1>()
          mask = Cast<to = 1>(attention_mask)
          last = Constant<value_ints = [-1]>()
          mask3 = Unsqueeze(mask, last)
          e = Gather(table, input_ids)
          masked = Mul(e, mask3)
          sums = CumSum(masked, one)
          counts = CumSum(mask3, one)
          h = Div(sums, counts)
          raw = MatMul(h, head)
          logits = Add(raw, shift)
        }}"""
    )
    shift = np.zeros(vocabulary, np.float32)
    shift[3] = bias
    for name, array in {
        "table": rng.standard_normal((vocabulary, width)).astype(np.float32),
        "head": rng.standard_normal((width, vocabulary)).astype(np.float32),
        "shift": shift,
    }.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model
