"""MatMulNBits is read as ONNX Runtime computes it, and written back as it was packed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from dynorm_onnx.graph.quantised.matmul_nbits import Packed, packed, unpacked
from tests.graph.quantised.checks import check_layer, check_output, check_round_trip, layer_of, model_of, reason
from tests.tolerances import TOLERANCE

OUT = 6


@given(st.sampled_from([2, 4, 8]), st.integers(1, 5), st.integers(1, 70), st.sampled_from([16, 32]), st.randoms())
@settings(max_examples=60, deadline=None)
def test_bytes_are_the_same_again(bits: int, outputs: int, inputs: int, block: int, random: object) -> None:
    rng = np.random.default_rng(hash(random) % 2**32)
    stored = rng.integers(0, 256, (outputs, -(-inputs // block), block * bits // 8)).astype(np.uint8)
    layout = Packed((inputs, outputs), block, bits)
    numbers = layout.read(stored)
    assert numbers.shape == (inputs, outputs) and numbers.max(initial=0) < 2**bits
    assert layout.write(numbers, stored).tobytes() == stored.tobytes()
    other = rng.integers(0, 2**bits, numbers.shape)
    np.testing.assert_array_equal(layout.read(layout.write(other, stored)), other)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_first_number_lies_in_the_lowest_bits(bits: int) -> None:
    (first, *others) = unpacked(np.array([0b10010011], np.uint8), bits)
    assert first == 0b10010011 & (2**bits - 1) and len(others) == 8 // bits - 1
    assert packed(np.array([first, *others], np.uint8), bits).tolist() == [0b10010011]


def nbits(bits: int, block: int, inputs: int, dtype: type, zero: str, operands: str = "") -> ir.Model:
    """One product with random bytes; `operands` behind those of the zero points."""
    rng = np.random.default_rng(bits + block)
    blocks = -(-inputs // block)
    kind = "float" if dtype is np.float32 else "float16"
    arrays: dict[str, np.ndarray] = {
        "B": rng.integers(0, 256, (OUT, blocks, block * bits // 8)).astype(np.uint8),
        "s": rng.uniform(0.01, 0.1, (OUT, blocks)).astype(dtype),
        "packed": rng.integers(0, 256, (OUT, -(-blocks * bits // 8))).astype(np.uint8),
        "floats": rng.uniform(0, 2**bits, (OUT, blocks)).astype(dtype),
        "bias": rng.normal(size=OUT).astype(dtype),
        "index": (np.arange(inputs) // block).astype(np.int32),
    }
    operands = (zero or '""') + operands
    attributes = f"K = {inputs}, N = {OUT}, bits = {bits}, block_size = {block}"
    return model_of(
        f"g ({kind}[n,{inputs}] x) => ({kind}[n,{OUT}] y) {{\n"
        f"y = com.microsoft.MatMulNBits<{attributes}>(x, B, s, {operands})\n}}",
        arrays,
    )


@pytest.mark.parametrize(("bits", "block", "inputs", "dtype", "zero", "operands"), [
    (2, 16, 40, np.float32, "packed", ""), (2, 32, 64, np.float32, "", ""), (4, 16, 40, np.float32, "packed", ""),
    (4, 32, 96, np.float16, "packed", ""), (4, 32, 40, np.float32, "floats", ""), (4, 16, 48, np.float16, "", ""),
    (8, 32, 40, np.float32, "packed", ""), (8, 16, 33, np.float32, "", ', "", bias'),
    (4, 32, 64, np.float16, "packed", ', "", bias'),
], ids=str)  # fmt: skip
def test_what_is_read_is_what_runs(bits: int, block: int, inputs: int, dtype: type, zero: str, operands: str) -> None:
    x = np.random.default_rng(0).normal(size=(5, inputs)).astype(dtype)
    layer = check_layer(nbits(bits, block, inputs, dtype, zero, operands), x, TOLERANCE[np.dtype(dtype).name])
    assert (layer.inputs, layer.outputs, layer.has_free_scales) == (inputs, OUT, True)
    assert (layer.bias is not None) is bool(operands)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_the_quantizer_writes(bits: int, symmetric: bool) -> None:
    weight = np.random.default_rng(0).normal(size=(48, OUT)).astype(np.float32)
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[n,48] x) => (float[n,6] y) { y = MatMul(x, w) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    quantizer = MatMulNBitsQuantizer(proto, bits=bits, block_size=16, is_symmetric=symmetric)
    quantizer.process()
    model = ir.from_proto(quantizer.model.model)
    layer = layer_of(model)
    check_round_trip(layer)
    check_output(model, layer, np.random.default_rng(1).normal(size=(4, 48)).astype(np.float32), TOLERANCE["float32"])
    assert np.linalg.norm(layer.matrix() - weight) < {4: 0.12, 8: 0.01}[bits] * np.linalg.norm(weight)


def test_an_index_of_groups_is_named() -> None:
    assert "MatMulNBits: its weights are quantised, and g_idx" in reason(nbits(4, 16, 32, np.float32, "", ", index"))


@pytest.mark.parametrize(("name", "number", "said"), [
    ("bits", 3, "of 3 bits a byte does not hold a whole number"),
    ("weight_prepacked", 1, "they lie in the order of one GPU's kernels"),
])  # fmt: skip
def test_bytes_in_another_order_are_named(name: str, number: int, said: str) -> None:
    model = nbits(4, 16, 32, np.float32, "")
    model.graph.node(0).attributes[name] = ir.AttrInt64(name, number)
    assert f"MatMulNBits: its weights are quantised, and {said}" in reason(model)


def test_a_weight_that_says_it_is_not_packed_anew_is_read() -> None:
    model = nbits(4, 16, 32, np.float32, "")
    model.graph.node(0).attributes["weight_prepacked"] = ir.AttrInt64("weight_prepacked", 0)
    assert layer_of(model).has_free_scales


def test_scales_that_do_not_fit_are_named() -> None:
    model = nbits(4, 16, 32, np.float32, "")
    model.graph.node(0).attributes["block_size"] = ir.AttrInt64("block_size", 32)
    assert "its scales or zero points are not 6 x 1" in reason(model)


def test_scales_that_others_read_stay() -> None:
    model = nbits(4, 16, 32, np.float32, "floats")
    node = model.graph.node(0)
    node.replace_input_with(3, node.inputs[2])  # the zero points are the scales: as numbers they will do
    layer = layer_of(model)
    assert not layer.has_free_scales and layer.initializers == (node.inputs[1],)
