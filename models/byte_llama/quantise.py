"""Quantise the shipped model with ONNX Runtime's own tools, in the three ways that docs/quality.md measures.

    python models/byte_llama/quantise.py -o FOLDER

writes qdq.onnx (int8 weights behind DequantizeLinear, uint8 activations), nbits.onnx (MatMulNBits, 4 bits in blocks of
32 with zero points) and dynamic.onnx (int8 weights, activations quantised where the model runs).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", "-o", type=Path, required=True, help="a folder")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    model, matmul = HERE / "byte_llama.onnx", ["MatMul"]
    quantize_static(
        model, folder / "qdq.onnx", Bytes(), quant_format=QuantFormat.QDQ, op_types_to_quantize=matmul,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    quantize_dynamic(model, folder / "dynamic.onnx", op_types_to_quantize=matmul, weight_type=QuantType.QInt8)
    nbits = MatMulNBitsQuantizer(onnx.load(model), bits=4, block_size=32, is_symmetric=False)
    nbits.process()
    nbits.model.save_model_to_file(str(folder / "nbits.onnx"), False)


if __name__ == "__main__":
    main()
