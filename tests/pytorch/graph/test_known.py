"""Uses of an operator that are not supported in PyTorch are named, with the node."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from dynorm_onnx.errors import DataError, ModelError
from dynorm_onnx.pytorch.graph import GraphModule
from dynorm_onnx.pytorch.graph.tensors import to_torch
from tests.end_to_end.test_foreign_files import model
from tests.pytorch.graph.case import MS, Case, floats, ints

HEADS = floats(1, 2, 3, 4)
FLOAT8 = onnx.TensorProto.FLOAT8E4M3FN
IMAGE = floats(1, 1, 4, 4)


@pytest.mark.parametrize(("case", "what"), [
    (Case("Attention", [HEADS] * 3, opset=23, outputs=4), "the output of the scores"),
    (Case("Attention", [floats(1, 3, 8), floats(8, 24)], {"num_heads": 2, "do_rotary": 1}, domain=MS),
     "do_rotary or past_present_share_buffer"),
    (Case("Attention", [floats(1, 3, 8), floats(8, 24), floats(24), np.ones((1, 1, 3, 3), np.int32)],
          {"num_heads": 2}, domain=MS), r"a mask of shape \(1, 1, 3, 3\)"),
    (Case("GroupQueryAttention", [*[floats(2, 1, 16)] * 3, *[floats(2, 2, 4, 8)] * 2, np.array([3, 2], np.int32),
          np.array(4, np.int32)], {"num_heads": 2, "kv_num_heads": 2}, domain=MS, outputs=3),
     "a batch of rows with pasts of different lengths"),
    (Case("Cast", [floats(2)], {"to": FLOAT8}), "the type FLOAT8E4M3FN"),
    (Case("MoE", [floats(3, 4), floats(3, 2), floats(2, 5, 4), None, floats(2, 4, 5)], {"use_sparse_mixer": 1},
          domain=MS), "a sparse mixer or a third layer"),
    (Case("MoE", [floats(3, 4), floats(3, 2), floats(2, 5, 4), None, floats(2, 4, 5)], {"activation_type": "tanh"},
          domain=MS), "the activation 'tanh'"),
    (Case("MoE", [floats(3, 4), floats(3, 2), floats(2, 5, 4), None, floats(2, 4, 5)], {"activation_type": "swiglu"},
          domain=MS), "swiglu_fusion 0"),
    (Case("ScatterND", [floats(4), ints(1, shape=(1, 1)), floats(1)], {"reduction": "mul"}), "the reduction 'mul'"),
    (Case("Conv", [floats(1, 1, 2, 2, 2, 2), floats(1, 1, 1, 1, 1, 1)]), "a convolution over 4 axes"),
    (Case("ConvTranspose", [IMAGE, IMAGE], {"auto_pad": "SAME_UPPER"}),
     "a transposed convolution over 2 axes, or with output_shape or auto_pad"),
    (Case("BatchNormalization", [floats(2, 3, 5), *[floats(3, low=0.5)] * 4], {"training_mode": 1}), "training_mode"),
    (Case("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "storage_order": 1}, outputs=2), "storage_order"),
    (Case("QuantizeLinear", [floats(2), np.array(0.1, np.float32)], {"output_dtype": FLOAT8}, opset=23),
     "rounding to FLOAT8E4M3FN"),
    (Case("GatherBlockQuantized", [np.ones((2, 16), np.uint8), ints(0), floats(2, 1)], {"gather_axis": 1}, domain=MS),
     "another gather_axis than 0, or another quantize_axis than the last"),
    (Case("GatherBlockQuantized", [np.ones((2, 16), np.uint8), ints(0), floats(2, 1)], domain=MS),
     "a table of another type than int4"),
    (Case("RotaryEmbedding", [HEADS, ints(0), floats(5, 2), floats(5, 2)], {"is_packed_batching": 1}, domain=MS),
     "is_packed_batching"),
    (Case("RotaryEmbedding", [HEADS, ints(0), floats(5, 2), floats(5, 2)], {"scale": 2.0}, domain=MS), "the scale 2.0"),
    (Case("Pad", [floats(2), ints(1, 1)], {"mode": "mirrored"}), "the mode 'mirrored'"),
], ids=lambda value: value if isinstance(value, str) else value.name)  # fmt: skip
def test_what_is_not_supported_is_named(case: Case, what: str) -> None:
    with pytest.raises(ModelError, match=rf"node 'node' \(.*{case.op}.*\): {what}.* is not supported when the graph"):
        case.in_pytorch()


def test_a_loop_without_trips_has_nothing_to_stack() -> None:
    text = """
    g (float[2] x) => (float[k,2] s) {
      last, s = Loop(none, yes, x) <body = b (int64 i, bool c, float[2] h) => (bool c2, float[2] h2, float[2] o)
        { c2 = Identity(c) h2 = Identity(h) o = Identity(h) }>
    }"""
    proto = model(text, {"none": np.array(0), "yes": np.array(True)})
    with pytest.raises(ModelError, match="a loop without trips whose outputs are stacked"):
        GraphModule(ir.from_proto(proto))(x=_tensor(floats(2)))


def test_a_type_that_torch_has_not_is_named() -> None:
    with pytest.raises(ModelError, match="'t' has elements of FLOAT8E4M3FN, which PyTorch cannot hold"):
        to_torch(ir.tensor(np.ones(2).astype(ml_dtypes.float8_e4m3fn), name="t"))


def test_a_weight_without_data_is_named() -> None:
    found = ir.from_proto(model("g (float[2] x) => (float[2] y) { y = Add(x, w) }", {"w": floats(2)}))
    found.graph.initializers["w"].const_value = None
    with pytest.raises(ModelError, match="The weight 'w' holds no data"):
        GraphModule(found)


def test_inputs_that_are_missing_or_do_not_fit_are_named() -> None:
    run = GraphModule(ir.from_proto(model("g (float[n] x, float[m] b) => (float[k] y) { y = Add(x, b) }", {})))
    with pytest.raises(DataError, match="the model takes 'b', which was not given"):
        run(x=_tensor(floats(2)))
    with pytest.raises(ModelError, match=r"failed in PyTorch on shapes \(2,\), \(3,\)"):
        run(x=_tensor(floats(2)), b=_tensor(floats(3)))


def _tensor(array: np.ndarray) -> torch.Tensor:
    return to_torch(ir.tensor(array))
