"""Products, convolutions, norms, our functions' neighbours, and quantised weights."""

from __future__ import annotations

import numpy as np

from tests.pytorch.graph.case import MS, RNG, Case, floats, ints

X = floats(2, 3, 8)
GAMMA, BETA = floats(8, low=0.5), floats(8)


def nbits(bits: int, *, zero_points: bool) -> Case:
    n, k, block = 5, 40, 16
    blocks = -(-k // block)
    packed = RNG.integers(0, 256, (n, blocks, block * bits // 8), dtype=np.uint8)
    inputs: list[np.ndarray | None] = [floats(3, k), packed, floats(n * blocks, low=0.1) * 0.05]
    if zero_points:
        inputs.append(RNG.integers(0, 256, n * -(-blocks * bits // 8), dtype=np.uint8))
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block}
    return Case("MatMulNBits", inputs, attributes, domain=MS, gradient=False, tag=f"{bits}{'zero' * zero_points}")


PRODUCTS = [
    Case("MatMul", [X, floats(8, 5)]),
    Case("MatMul", [floats(4, 3), floats(2, 3, 5)], tag="broadcast"),
    Case("Gemm", [floats(3, 4), floats(4, 5), floats(5)]),
    Case("Gemm", [floats(4, 3), floats(5, 4), floats(3, 1)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
         tag="flags"),
    Case("FusedMatMul", [X, floats(2, 5, 8)], {"transB": 1, "alpha": 0.25}, domain=MS),
    Case("Einsum", [X, floats(2, 8, 4)], {"equation": "bij,bjk->bik"}),
    Case("Conv", [floats(2, 4, 9), floats(6, 2, 3), floats(6)], {"group": 2, "pads": [2, 0], "strides": [2]}),
    Case("Conv", [floats(1, 3, 6, 7), floats(4, 3, 2, 3)], {"dilations": [2, 1]}, tag="2d"),
    Case("Conv", [floats(1, 3, 6, 7), floats(4, 3, 2, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, tag="same"),
    Case("Conv", [floats(1, 3, 6, 7), floats(4, 3, 2, 3)], {"auto_pad": "SAME_LOWER"}, tag="lower"),
]  # fmt: skip
NORMS = [
    Case("LayerNormalization", [X, GAMMA, BETA], {"epsilon": 1e-3}),
    Case("LayerNormalization", [X, floats(3, 8)], {"axis": 1}, tag="axis"),
    Case("RMSNormalization", [X, GAMMA], {"epsilon": 1e-3}, opset=23),
    Case("SimplifiedLayerNormalization", [X, GAMMA], {"epsilon": 1e-3}, opset=17),
    Case("SkipLayerNormalization", [X, floats(2, 3, 8), GAMMA, BETA, floats(8)], domain=MS),
    Case("SkipSimplifiedLayerNormalization", [X, floats(2, 3, 8), GAMMA, floats(8)], {"epsilon": 1e-4}, domain=MS),
    Case("EmbedLayerNormalization",
         [ints(1, 4, 2, 0, shape=(2, 2)).astype(np.int32), ints(0, 1, 1, 0, shape=(2, 2)).astype(np.int32),
          floats(5, 8), floats(3, 8), floats(2, 8), GAMMA, BETA], domain=MS, outputs=2),
    Case("GroupNormalization", [floats(2, 6, 5), floats(6), floats(6)], {"num_groups": 3}, opset=21),
    Case("GroupNormalization", [floats(2, 6, 5), floats(3), floats(3)], {"num_groups": 3}, opset=18, tag="by-group"),
    Case("InstanceNormalization", [floats(2, 3, 5), floats(3), floats(3)]),
    Case("BatchNormalization", [floats(2, 3, 5), floats(3), floats(3), floats(3), floats(3, low=0.5)], gradient=False),
    Case("LpNormalization", [X], {"axis": -1, "p": 2}),
]  # fmt: skip
INT8 = RNG.integers(-128, 128, (4, 6), dtype=np.int8)
QUANTISED = [
    *(nbits(bits, zero_points=zero) for bits in (4, 8) for zero in (False, True)),
    Case("DequantizeLinear", [INT8, np.array(0.1, np.float32), np.array(3, np.int8)], gradient=False),
    Case("DequantizeLinear", [INT8, floats(6, low=0.1), INT8[0]], {"axis": 1}, gradient=False, tag="axis"),
    Case("DequantizeLinear", [INT8, floats(2, 6, low=0.1)], {"axis": 0, "block_size": 2}, opset=21, gradient=False,
         tag="blocks"),
]  # fmt: skip
TOKENS, ROUTER = floats(2, 3, 8), floats(6, 4)
UP, UP_BIAS, DOWN, DOWN_BIAS = floats(4, 12, 8), floats(4, 12), floats(4, 8, 6), floats(4, 8)
SWIGLU = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.702, "activation_beta": 1.0,
          "swiglu_limit": 1.5, "normalize_routing_weights": 1}  # fmt: skip
EXPERTS = [
    Case("MoE", [TOKENS, ROUTER, UP, UP_BIAS, DOWN, DOWN_BIAS], {**SWIGLU, "k": 2}, domain=MS),
    Case(
        "MoE", [TOKENS, ROUTER, UP, None, floats(4, 8, 12)], {"activation_type": "silu", "k": 1}, domain=MS, tag="silu"
    ),
]
CASES = [*PRODUCTS, *NORMS, *QUANTISED, *EXPERTS]
