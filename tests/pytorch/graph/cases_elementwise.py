"""Arithmetic, comparison, logic, activations, reductions."""

from __future__ import annotations

import numpy as np

from tests.pytorch.graph.case import MS, Case, floats, ints, scalar

X = floats(2, 3, 4)
AWAY = np.where(X < 0, X - 0.3, X + 0.3).astype(np.float32)  # from kinks and poles at zero
POSITIVE = floats(2, 3, low=0.5)
SMALL = (floats(2, 3) * 0.2).astype(np.float32)
TRUTH = X > 0
NUMBERS = ints(-7, 5, 3, -2, 9, 4, shape=(2, 3))
WITH_NAN = np.array([1, np.nan, np.inf, -np.inf, 0], np.float32)

UNARY = [
    Case(op, [AWAY])
    for op in ("Abs", "Atan", "Cos", "Erf", "Exp", "Neg", "Reciprocal", "Sigmoid", "Sin", "Sinh", "Cosh", "Tanh",
               "Relu", "LeakyRelu", "Elu", "Softplus", "HardSwish", "Mish", "Gelu", "Identity", "Softmax", "LogSoftmax")
]  # fmt: skip
UNARY += [Case(op, [POSITIVE]) for op in ("Log", "Sqrt")]
UNARY += [Case(op, [SMALL]) for op in ("Acos", "Asin", "Tan", "HardSigmoid")]
UNARY += [Case(op, [AWAY * 3], gradient=False) for op in ("Ceil", "Floor", "Round", "Sign")]
UNARY += [Case(op, [WITH_NAN], gradient=False) for op in ("IsNaN", "IsInf")]
UNARY += [Case("IsNaN", [X], gradient=False)]
UNARY += [
    Case("IsInf", [WITH_NAN], {"detect_positive": 0}, gradient=False, tag="negative"),
    Case("Not", [TRUTH]),
    Case("BitwiseNot", [NUMBERS]),
    Case("Gelu", [X], {"approximate": "tanh"}, tag="tanh"),
    Case("Softmax", [X], {"axis": 1}, opset=11, tag="flat"),
    Case("Softmax", [X], {"axis": 1}, opset=13, tag="axis"),
    Case("LogSoftmax", [X], {"axis": 0}, opset=13, tag="axis"),
]
BINARY = [Case(op, [X, floats(4)]) for op in ("Add", "Sub", "Mul")]
BINARY += [Case("Div", [X, floats(3, 1, low=0.5)]), Case("Div", [NUMBERS, ints(2, -3, 2)], tag="integers")]
BINARY += [Case(op, [X, floats(3, 4), floats(4)], tag="three") for op in ("Max", "Min", "Sum", "Mean")]
BINARY += [Case(op, [NUMBERS, ints(5, 3, 1)]) for op in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")]
BINARY += [Case(op, [TRUTH, TRUTH[:1]]) for op in ("And", "Or", "Xor")]
BINARY += [Case(op, [NUMBERS, ints(5, 3, 1)]) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")]
BINARY += [
    Case("Pow", [POSITIVE, scalar(2.0)], gradient=False, tag="square"),
    Case("Pow", [POSITIVE, floats(3)], tag="tensor"),
    Case("Mod", [NUMBERS, ints(3, -4, 2)]),
    Case("Mod", [X, floats(4, low=0.7)], {"fmod": 1}, gradient=False, tag="fmod"),
    Case("BitShift", [NUMBERS.astype(np.uint8) % 8, np.array([1, 2, 0], np.uint8)], {"direction": "LEFT"}),
    Case("PRelu", [AWAY, floats(4)]),
    Case("Where", [TRUTH, X, floats(4)]),
    Case("Clip", [X, scalar(-0.52), scalar(0.71)], gradient=False),
    Case("Clip", [X], {"min": -0.52}, opset=10, tag="attribute"),
    Case("CumSum", [X, scalar(1)]),
    Case("CumSum", [X, scalar(-1)], {"exclusive": 1, "reverse": 1}, tag="exclusive-reverse"),
    Case("CumSum", [X, scalar(1)], {"exclusive": 1}, tag="exclusive"),
]
FUSED = [
    Case("Gelu", [X], domain=MS),
    Case("QuickGelu", [X], {"alpha": 1.5}, domain=MS),
    Case("BiasGelu", [X, floats(4)], domain=MS),
    Case("FastGelu", [X, floats(4)], domain=MS),
    Case("FastGelu", [X], domain=MS, tag="plain"),
]
REDUCTIONS = [
    Case(op, [POSITIVE, ints(1)], {"keepdims": keep}, tag=f"keep{keep}")
    for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare", "ReduceL1",
               "ReduceL2", "ReduceLogSumExp", "ReduceLogSum")
    for keep in (0, 1)
]  # fmt: skip
REDUCTIONS += [
    Case("ReduceMean", [X], {"axes": [-1, 0]}, opset=13, tag="attribute"),
    Case("ReduceSum", [X], tag="all"),
    Case("ReduceMean", [X], {"noop_with_empty_axes": 1}, tag="none"),
    Case("ReduceMean", [NUMBERS, ints(0)], tag="integers"),
    Case("ArgMax", [X], {"axis": -1, "keepdims": 0}, gradient=False),
    Case("ArgMin", [X], {"axis": 1}, gradient=False),
    Case("ArgMax", [ints(3, 5, 5, 1)], {"axis": 0, "select_last_index": 1}, tag="last"),
    Case("TopK", [X, ints(2)], {"axis": 1}, outputs=2),
    Case("TopK", [X, ints(2)], {"axis": -1, "largest": 0}, outputs=2, tag="smallest"),
]
CASES = [*UNARY, *BINARY, *FUSED, *REDUCTIONS]
