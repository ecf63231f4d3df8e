"""Layers with quantised weights: re-fitted on their grid where they have one, named where they do not."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from dynorm_onnx.report import Report
from tests.end_to_end.test_foreign_files import converted, model

C = 16
RNG = np.random.default_rng(7)
DATA = [{"x": np.random.default_rng(i).normal(size=(2, 8, C)).astype(np.float32) *
         np.exp(np.random.default_rng(99).normal(size=C)).astype(np.float32)} for i in range(24)]  # fmt: skip
INT4, UINT4 = np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4)
RANGES = {np.dtype(np.int8): (-127, 127), np.dtype(np.uint8): (0, 255), INT4: (-7, 7), UINT4: (0, 15)}
WEIGHTS = [(0.4 * RNG.normal(size=(C, C))).astype(np.float32) for _ in range(2)]


def quantised(weight: np.ndarray, dtype: np.dtype, axis: int | None, block: int) -> tuple[np.ndarray, ...]:
    """(q, scale, zero) as DequantizeLinear takes them: for all, along an axis, or in blocks along it."""
    low, high = RANGES[dtype]
    parts = weight[None, None]
    if axis is not None and block:
        parts = np.stack(np.split(weight, C // block, axis))[:, None]
    elif axis is not None:
        parts = np.moveaxis(weight, axis, 0)[:, None, None]
    over = 2 if block else (1, 2, 3)
    along = {None: (2, 3)}.get(axis, (2 + axis,) if block else over)  # type: ignore[arg-type, list-item]
    least, most = (f(parts, axis=along, keepdims=True) for f in (np.min, np.max))
    zero = np.zeros_like(most) if low < 0 else np.rint(-least / np.maximum(most - least, 1e-9) * high)
    scale = np.maximum(np.abs(parts).max(along, keepdims=True), 1e-9) / high if low < 0 else (most - least) / high
    if axis is None:
        shape: tuple[int, ...] = ()
    else:
        shape = tuple(C // block if place == axis else C for place in range(2)) if block else (C,)
    scale, zero = scale.reshape(shape).astype(np.float32), zero.reshape(shape)
    wide_scale, wide_zero = (spread(array, axis, block) for array in (scale, zero))
    q = np.clip(np.rint(weight / wide_scale) + wide_zero, low, high)
    return q.astype(np.int16).astype(dtype), scale, zero.astype(np.int16).astype(dtype)


def spread(array: np.ndarray, axis: int | None, block: int) -> np.ndarray:
    if axis is None:
        return np.broadcast_to(array, (C, C))
    if block:
        return np.repeat(array, block, axis)
    return np.broadcast_to(array.reshape([-1 if place == axis else 1 for place in range(2)]), (C, C))


def blocks(product: str, dtype: np.dtype, axis: int | None, block: int, *, zeros: bool = True) -> onnx.ModelProto:
    """Two layers behind norms, whose weights are dequantised; `product` says how y is made of h and the weight d."""
    where = f"<axis = {axis}{f', block_size = {block}' if block else ''}>" if axis is not None else ""
    text = "g (float[n,8,16] x) => (float[n,8,16] y) {\nx0 = MatMul(x, first)\n"
    arrays: dict[str, np.ndarray] = {"first": WEIGHTS[0], "w": np.ones(C, np.float32)}
    for place, weight in enumerate(WEIGHTS):
        q, scale, zero = quantised(weight, dtype, axis, block)
        arrays |= {f"q{place}": q, f"s{place}": scale} | ({f"z{place}": zero} if zeros else {})
        text += f"h{place} = LayerNormalization<axis = -1>(x{place}, w)\n"
        if "d{p} =" not in product:
            text += f"d{place} = DequantizeLinear{where}(q{place}, s{place}{f', z{place}' if zeros else ''})\n"
        text += product.format(p=place) + f"\nx{place + 1} = Add(m{place}, x{place})\n"
    text += "y = Identity(x2)\n}"
    arrays |= {"rows": np.array([-1, C]), "back": np.array([-1, 8, C])} if "rows" in text else {}
    proto = model(text, {name: array for name, array in arrays.items() if array.dtype not in (INT4, UINT4)}, opset=21)
    for name, array in arrays.items():
        if array.dtype in (INT4, UINT4):
            kind = TensorProto.INT4 if array.dtype == INT4 else TensorProto.UINT4
            proto.graph.initializer.append(
                helper.make_tensor(name, kind, array.shape, array.astype(np.int8).ravel().tolist())
            )
    return proto


PLAIN = "m{p} = MatMul(h{p}, d{p})"
TURNED = "t{p} = Transpose<perm = [1, 0]>(d{p})\nm{p} = MatMul(h{p}, t{p})"
GEMM = "r{p} = Reshape(h{p}, rows)\ng{p} = Gemm<transB = 1>(r{p}, d{p})\nm{p} = Reshape(g{p}, back)"


@pytest.mark.parametrize(("product", "dtype", "axis", "block"), [
    (PLAIN, np.int8, None, 0), (PLAIN, np.uint8, 1, 0), (PLAIN, np.int8, 0, 0), (TURNED, np.uint8, 0, 0),
    (GEMM, np.int8, 0, 0), (PLAIN, INT4, 0, 4), (PLAIN, UINT4, 1, 0), (TURNED, INT4, 1, 8),
])  # fmt: skip
def test_dequantised_weights_are_refitted_on_their_grid(
    product: str, dtype: Any, axis: int | None, block: int, tmp_path: Path
) -> None:
    proto = blocks(product, np.dtype(dtype), axis, block)
    _, fitted = converted(proto, tmp_path, data=DATA, method="fit")
    output, report = converted(proto, tmp_path, data=DATA, method="reconstruct")
    changed = set(report.changed_initializers)
    assert changed & {"q0", "q1"} and not changed & {"z0", "z1", "first"}
    before, after = (arrays_of(each) for each in (proto, onnx.load(output)))
    for name in ("q0", "q1", "s0", "s1"):
        assert after[name].dtype == before[name].dtype and after[name].shape == before[name].shape
        assert np.any(after[name] != before[name]) is np.bool_(name in changed)
    for name in ("z0", "z1"):
        np.testing.assert_array_equal(after[name], before[name])
    assert error(report) < error(fitted)


def arrays_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def error(report: Report) -> float:
    assert report.validation is not None
    return report.validation.outputs["y"].relative_error


WRITTEN = (
    "c{p} = Cast<to = 1>(q{p})\nk{p} = Cast<to = 1>(z{p})\nb{p} = Sub(c{p}, k{p})\nd{p} = Mul(b{p}, s{p})\n"
    "m{p} = MatMul(h{p}, d{p})"
)


def float_blocks() -> onnx.ModelProto:
    """The layers of blocks(), with weights of floats."""
    text = "g (float[n,8,16] x) => (float[n,8,16] y) {\nx0 = MatMul(x, first)\n"
    for place in range(2):
        text += f"h{place} = LayerNormalization<axis = -1>(x{place}, w)\nm{place} = MatMul(h{place}, weight{place})\n"
        text += f"x{place + 1} = Add(m{place}, x{place})\n"
    weights = {"first": WEIGHTS[0], "w": np.ones(C, np.float32), "weight0": WEIGHTS[0], "weight1": WEIGHTS[1]}
    return model(text + "y = Identity(x2)\n}", weights, opset=21)


def by_quantize_dynamic(folder: Path, *, per_channel: bool) -> onnx.ModelProto:
    onnx.save(float_blocks(), folder / "float.onnx")
    quantize_dynamic(folder / "float.onnx", folder / "dynamic.onnx", per_channel=per_channel,
                     op_types_to_quantize=["MatMul"])  # fmt: skip
    return onnx.load(folder / "dynamic.onnx")


def by_nbits(bits: int, *, symmetric: bool) -> onnx.ModelProto:
    quantizer = MatMulNBitsQuantizer(float_blocks(), bits=bits, block_size=16, is_symmetric=symmetric)
    quantizer.process()
    return quantizer.model.model


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.feeds = iter(DATA[:4])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def by_quantize_static(folder: Path) -> onnx.ModelProto:
    onnx.save(float_blocks(), folder / "float.onnx")
    quantize_static(folder / "float.onnx", folder / "static.onnx", Reader(), quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=["MatMul"], per_channel=True)  # fmt: skip
    return onnx.load(folder / "static.onnx")


MADE: dict[str, Callable[[Path], onnx.ModelProto]] = {
    "written out": lambda folder: blocks(WRITTEN, np.dtype(np.uint8), 1, 0),
    "dynamic": functools.partial(by_quantize_dynamic, per_channel=False),
    "dynamic by channel": functools.partial(by_quantize_dynamic, per_channel=True),
    "static": by_quantize_static,
    "4 bits": lambda folder: by_nbits(4, symmetric=True),
    "4 bits, zero points": lambda folder: by_nbits(4, symmetric=False),
    "8 bits": lambda folder: by_nbits(8, symmetric=False),
}


@pytest.mark.parametrize("made", MADE)
def test_what_quantisers_write_is_refitted(made: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="dynorm_onnx")
    proto = MADE[made](tmp_path)
    _, fitted = converted(proto, tmp_path, data=DATA, method="fit")
    caplog.clear()
    output, report = converted(proto, tmp_path, data=DATA, method="reconstruct")
    assert error(report) < error(fitted)
    assert report.changed_initializers and not [line for line in report.warnings if "left as" in line]
    assert "change of the held-out error" in caplog.text
    before, after = (arrays_of(each) for each in (proto, onnx.load(output)))
    for name in report.changed_initializers:
        assert after[name].dtype == before[name].dtype and after[name].shape == before[name].shape
        assert np.any(after[name] != before[name])
    untouched = before.keys() & after.keys() - set(report.changed_initializers)
    assert all(np.array_equal(before[name], after[name]) for name in untouched)


def test_the_scales_of_another_reader_stay(tmp_path: Path) -> None:
    proto = blocks(PLAIN, np.dtype(np.int8), None, 0, zeros=False)
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear":
            node.input[1] = "s0"
    output, report = converted(proto, tmp_path, data=DATA, method="reconstruct")
    assert set(report.changed_initializers) & {"q0", "q1"} and "s0" not in report.changed_initializers
    np.testing.assert_array_equal(arrays_of(onnx.load(output))["s0"], arrays_of(proto)["s0"])


INTEGER = """
  q{p}, s{p}, z{p} = DynamicQuantizeLinear(h{p})
  n{p} = MatMulInteger(q{p}, i{p}, z{p})
  m{p} = Cast<to = 1>(n{p})
"""
CAST = "c{p} = Cast<to = 1>(i0)\nk{p} = Mul(c{p}, scale)\nm{p} = MatMul(h{p}, k{p})"
SHARED = "d{p} = DequantizeLinear(i0, scale)\nm{p} = MatMul(h{p}, d{p})"
FLOAT8 = "d{p} = DequantizeLinear(e{p}, scale)\nm{p} = MatMul(h{p}, d{p})"
TWICE = "its whole numbers are read in 2 places"


@pytest.mark.parametrize(("product", "said"), [
    (INTEGER, "MatMulInteger: its weights are quantised, and what follows is not a Cast and Muls by the scales"),
    (CAST, f"Cast, Mul: its weights are quantised, and {TWICE}"),
    (SHARED, f"DequantizeLinear: its weights are quantised, and {TWICE}"),
    (FLOAT8, "DequantizeLinear: its weights are quantised, and FLOAT8E4M3FN has no grid"),
], ids=["integer", "cast", "shared", "float8"])  # fmt: skip
def test_other_quantised_weights_are_named(product: str, said: str, tmp_path: Path) -> None:
    text = "g (float[n,8,16] x) => (float[n,8,16] y) {\nx0 = Identity(x)\n"
    for place in range(2):
        text += f"h{place} = LayerNormalization<axis = -1>(x{place}, w)\n" + product.format(p=place)
        text += f"\nx{place + 1} = Add(m{place}, x{place})\n"
    text += "y = Identity(x2)\n}"
    arrays: dict[str, np.ndarray] = {"w": np.ones(C, np.float32), "scale": np.array(0.02, np.float32)}
    arrays |= {f"i{place}": RNG.integers(-100, 100, (C, C)).astype(np.int8) for place in range(2)}
    proto = model(text, {name: array for name, array in arrays.items() if name in text}, opset=21)
    for place in range(2) if product is FLOAT8 else ():
        numbers = RNG.normal(size=C * C).tolist()
        proto.graph.initializer.append(helper.make_tensor(f"e{place}", TensorProto.FLOAT8E4M3FN, (C, C), numbers))
    _, report = converted(proto, tmp_path, data=DATA, method="reconstruct")
    (note,) = [line for line in report.warnings if said in line]
    assert "are left as they are" in note and not report.changed_initializers
    assert any("the result is that of --method fit" in line for line in report.warnings)
