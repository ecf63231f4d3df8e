"""Quantise a byte-level model with ONNX Runtime's own tools, in three ways (docs/quantisation.md).

    python models/byte_llama/quantise.py -o FOLDER
    python models/byte_llama/quantise.py converted.onnx -o FOLDER

writes dynamic.onnx (int8 weights, x quantised to uint8 where the model runs), qdq.onnx (the same with the ranges of x
fixed beforehand, on the first windows of held_out.txt) and nbits.onnx (MatMulNBits, 4 bits in blocks of 32 with zero
points). Weights of 8 bits have a scale per column.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

HERE = Path(__file__).parent
WINDOWS, LENGTH, BATCH = 32, 256, 4


class Bytes(CalibrationDataReader):
    """The first windows of the shipped text, for the ranges of activations."""

    def __init__(self) -> None:
        text = (HERE / "held_out.txt").read_bytes()[: WINDOWS * LENGTH]
        ids = np.frombuffer(text, np.uint8).astype(np.int64).reshape(-1, BATCH, LENGTH)
        self._feeds = iter([{"input_ids": batch} for batch in ids])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def dynamic(model: Path, output: Path, nodes: list[str] | None = None) -> None:
    """int8 weights; DynamicQuantizeLinear in front of every layer. `nodes`: of these layers only."""
    quantize_dynamic(
        model, output, op_types_to_quantize=["MatMul"], nodes_to_quantize=nodes, weight_type=QuantType.QInt8,
        per_channel=True,
    )  # fmt: skip


def static(
    model: Path,
    output: Path,
    method: CalibrationMethod = CalibrationMethod.MinMax,
    overrides: dict[str, Any] | None = None,
    nodes: list[str] | None = None,
) -> None:
    """int8 weights, uint8 inputs of layers by ranges found on text, float outputs; `nodes`: of these layers only."""
    nodes = nodes or layers(model)  # else attention's products too, which quantize_dynamic leaves
    quantize_static(
        model, output, Bytes(), calibrate_method=method, op_types_to_quantize=["MatMul"], nodes_to_quantize=nodes,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"], "TensorQuantOverrides": overrides or {}},
    )  # fmt: skip


def layers(model: Path) -> list[str]:
    """The names of all products with a weight."""
    graph = onnx.load(model).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]


def four_bits(model: Path, output: Path) -> None:
    """MatMulNBits in blocks of 32 weights; x stays float."""
    quantizer = MatMulNBitsQuantizer(onnx.load(model), bits=4, block_size=32, is_symmetric=False)
    quantizer.process()
    quantizer.model.save_model_to_file(str(output), False)


WAYS = {"dynamic": dynamic, "qdq": static, "nbits": four_bits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=HERE / "byte_llama.onnx")
    parser.add_argument("--output", "-o", type=Path, required=True, help="a folder")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for name, quantise in WAYS.items():
        quantise(args.model, args.output / f"{name}.onnx")


if __name__ == "__main__":
    main()
