"""Shapes, indices, and moving elements about."""

from __future__ import annotations

import numpy as np

from tests.pytorch.graph.case import Case, constant_tensor, floats, ints, scalar

X = floats(2, 3, 4)
TABLE = floats(5, 3)
IDS = ints(4, 0, -1, 2, shape=(2, 2))

CASES = [
    Case("Shape", [X], {"start": 1, "end": -1}),
    Case("Size", [X]),
    Case("Reshape", [X, ints(0, -1)]),
    Case("Reshape", [X, ints(4, 6)], {"allowzero": 1}, tag="allowzero"),
    Case("Flatten", [X], {"axis": 2}),
    Case("Flatten", [X], {"axis": -1}, tag="negative"),
    Case("Transpose", [X], {"perm": [1, 2, 0]}),
    Case("Transpose", [X], tag="reversed"),
    Case("Squeeze", [floats(1, 3, 1), ints(-1)]),
    Case("Squeeze", [floats(1, 3, 1)], tag="all"),
    Case("Squeeze", [floats(1, 3, 1)], {"axes": [0]}, opset=12, tag="attribute"),
    Case("Unsqueeze", [X, ints(-1, 0)]),
    Case("Unsqueeze", [X], {"axes": [1, 3]}, opset=12, tag="attribute"),
    Case("Concat", [X, floats(2, 1, 4)], {"axis": 1}),
    Case("Split", [X, ints(1, 3)], {"axis": -1}, outputs=2),
    Case("Split", [floats(7, 2)], {"num_outputs": 3}, outputs=3, tag="uneven"),
    Case("Split", [X], {"axis": 1, "split": [2, 1]}, opset=11, outputs=2, tag="attribute"),
    Case("Slice", [X, ints(1, -3), ints(9, -1), ints(1, 2)]),
    Case("Slice", [X, ints(-1), ints(-9), ints(2), ints(-2)], tag="backwards"),
    Case("Slice", [X, ints(0), ints(2**62), ints(2), ints(3)], tag="steps"),
    Case("Slice", [X], {"starts": [1], "ends": [3], "axes": [1]}, opset=9, tag="attribute"),
    Case("Expand", [floats(3, 1), ints(2, 1, 4)]),
    Case("Tile", [X, ints(1, 2, 3)]),
    Case("Range", [scalar(2), scalar(11), scalar(3)]),
    Case("Trilu", [floats(4, 5), scalar(1)]),
    Case("Trilu", [floats(4, 5)], {"upper": 0}, tag="lower"),
    Case("EyeLike", [floats(3, 4)], {"k": 1}, gradient=False),
    Case("ConstantOfShape", [ints(2, 3)], {"value": constant_tensor(np.array([4], np.int64))}),
    Case("Cast", [X * 3], {"to": 7}, gradient=False),
    Case("Cast", [X], {"to": 10}, gradient=False, tag="half"),
    Case("CastLike", [X * 3, ints(1)], gradient=False),
    Case("Dropout", [X]),
    Case("Pad", [X, ints(0, 1, 2, 0, 0, 1)]),
    Case("Pad", [X, ints(1, 2), scalar(2.5), ints(-1)], gradient=False, tag="axes"),
    Case("Pad", [X, ints(0, 2, 1, 0, 1, 3)], {"mode": "reflect"}, tag="reflect"),
    Case("Pad", [X, ints(0, 2, 1, 0, 1, 3)], {"mode": "edge"}, tag="edge"),
    Case("Gather", [TABLE, IDS]),
    Case("Gather", [X, ints(1, 0, 2)], {"axis": 1}, tag="axis"),
    Case("Gather", [ints(5, 6, 7), scalar(-2)], tag="scalar"),
    Case("GatherElements", [TABLE, ints(1, -1, 0, 2, 2, 1, shape=(2, 3))], {"axis": 0}),
    Case("GatherND", [X, ints(0, 1, 1, 2, shape=(2, 2))]),
    Case("GatherND", [X, ints(2, 0, shape=(2, 1))], {"batch_dims": 1}, tag="batch"),
    Case("ScatterElements", [TABLE, ints(1, 4, 0, shape=(1, 3)), floats(1, 3)], {"axis": 0}),
    Case("ScatterElements", [TABLE, ints(1, 4, 1, shape=(1, 3)), floats(1, 3)], {"reduction": "add"}, tag="add"),
    Case("ScatterND", [TABLE, ints(3, 1, shape=(2, 1)), floats(2, 3)]),
    Case("ScatterND", [TABLE, ints(3, 1, shape=(2, 1)), floats(2, 3)], {"reduction": "add"}, tag="add"),
    Case("OneHot", [ints(1, -1, 0), scalar(4), floats(2)]),
    Case("OneHot", [ints(1, 2, 0), scalar(4), floats(2)], {"axis": 0}, tag="axis"),
    Case("NonZero", [np.where(X > 0, X, 0).astype(np.float32)], gradient=False),
]
