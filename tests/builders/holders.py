"""Models whose norms sit in bodies, and where they cannot be replaced: inside operators of other kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.builders.cases import CHANNELS
from tests.builders.graph import CONTRIB, Graph
from tests.builders.rms_forms import divided

FLOAT = TensorProto.FLOAT


def _norm_body(opset: int, piece: Callable[[Graph, str], str] | None = None, prefix: str = "body") -> Graph:
    """A graph that reads the outer value `h` and gives `PREFIX_out`, by a norm."""
    body = Graph("float32", opset, seed=prefix)
    body._count = 500  # names apart from those of the outer graph
    y = piece(body, "h") if piece else divided(body, "h", "Mul")
    body.op("Identity", y, outputs=[f"{prefix}_out"])
    return body


def _graph(body: Graph, inputs: Iterable[onnx.ValueInfoProto], outputs: Iterable[str]) -> onnx.GraphProto:
    infos = [helper.make_tensor_value_info(name, *typed) for name, typed in outputs]
    return helper.make_graph(body.nodes, "body", list(inputs), infos, body.initializers)


def in_if(opset: int, piece: Callable[[Graph, str], str] | None = None) -> Graph:
    """A norm in the then branch, none in the else branch, and one after the If."""
    outer = Graph("float32", opset, seed="if")
    x = outer.normal_input("x", (2, 3, CHANNELS), ("batch", "tokens", CHANNELS))
    outer.op("Relu", x, outputs=["h"])
    flag = outer.input("flag", np.array(True).astype(np.int32))
    then = _graph(_norm_body(opset, piece, "then"), [], [("then_out", (FLOAT, None))])
    other = Graph("float32", opset)
    other.op("Neg", "h", outputs=["else_out"])
    otherwise = _graph(other, [], [("else_out", (FLOAT, None))])
    condition = outer.op("Cast", flag, to=TensorProto.BOOL)
    y = outer.op("If", condition, then_branch=then, else_branch=otherwise)
    outer.output(outer.op("Add", divided(outer, y, "Pow"), "h"), "out")
    return outer


def in_loop(opset: int) -> Graph:
    """A norm in the body of a Loop that runs twice."""
    outer = Graph("float32", opset, seed="loop")
    x = outer.normal_input("x", (2, 3, CHANNELS), ("batch", "tokens", CHANNELS))
    outer.op("Relu", x, outputs=["h0"])
    body = Graph("float32", opset, seed="loop-body")
    body._count = 500
    y = divided(body, "h", "Mul")
    body.op("Identity", y, outputs=["h_next"])
    body.op("Identity", "go", outputs=["go_next"])
    inputs = [
        helper.make_tensor_value_info("step", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("h", FLOAT, ["batch", "tokens", CHANNELS]),
    ]
    outputs = [("go_next", (TensorProto.BOOL, [])), ("h_next", (FLOAT, ["batch", "tokens", CHANNELS]))]
    trips = outer.initializer(np.array(2), dtype="int64")
    y = outer.op("Loop", trips, "", "h0", body=_graph(body, inputs, outputs))
    outer.output(outer.op("Add", y, "h0"), "out")
    return outer


def in_scan(opset: int) -> Graph:
    """A norm in the body of a Scan over the tokens."""
    outer = Graph("float32", opset, seed="scan")
    x = outer.normal_input("x", (2, 3, CHANNELS), (2, 3, CHANNELS))
    body = Graph("float32", opset, seed="scan-body")
    body._count = 500
    y = divided(body, "row", "Mul")
    body.op("Add", y, "state", outputs=["row_out"])
    body.op("Identity", "row_out", outputs=["state_out"])
    row = [3, CHANNELS]
    inputs = [helper.make_tensor_value_info(name, FLOAT, row) for name in ("state", "row")]
    outputs = [("state_out", (FLOAT, row)), ("row_out", (FLOAT, row))]
    state = outer.initializer(np.zeros((3, CHANNELS)))
    _, rows = outer.op("Scan", state, x, outputs=2, body=_graph(body, inputs, outputs), num_scan_inputs=1)
    outer.output(rows, "out")
    return outer


def in_beam_search(opset: int) -> Graph:
    """A norm in the decoder of a BeamSearch; structure alone, nobody runs it."""
    outer = Graph("float32", opset, seed="beam")
    ids = outer.input("ids", np.zeros((1, 3), np.int32))
    body = Graph("float32", opset, seed="beam-body")
    body._count = 500
    table = body.initializer(np.ones((5, CHANNELS)), name="table")
    body.op("Gather", table, "input_ids", outputs=["h"])
    y = body.op("LayerNormalization", "h", body.weight(CHANNELS), body.bias(CHANNELS), epsilon=1e-3)
    body.op("Identity", y, outputs=["logits"])
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", "tokens"])]
    decoder = _graph(body, inputs, [("logits", (FLOAT, None))])
    numbers = [outer.initializer(np.array([n]), dtype="int32") for n in (8, 1, 2, 1)]
    found = outer.op(
        "BeamSearch", ids, *numbers, outputs=["sequences"], domain=CONTRIB, decoder=decoder,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    outer.output(found, dtype="int32")
    return outer


def norm_read_in_if(opset: int) -> Graph:
    """The norm is outside; its result is read by name inside the branches of an If, and nowhere else."""
    outer = Graph("float32", opset, seed="outer")
    x = outer.normal_input("x", (2, 3, CHANNELS), ("batch", "tokens", CHANNELS))
    y = divided(outer, outer.op("Relu", x), "Mul")
    flag = outer.input("flag", np.array(True).astype(np.int32))
    branches = []
    for name, op in (("then_out", "Neg"), ("else_out", "Abs")):
        body = Graph("float32", opset)
        body.op(op, y, outputs=[name])
        branches.append(_graph(body, [], [(name, (FLOAT, None))]))
    condition = outer.op("Cast", flag, to=TensorProto.BOOL)
    outer.output(outer.op("If", condition, then_branch=branches[0], else_branch=branches[1]), "out")
    return outer


def _quantised_operands(g: Graph, names: Iterable[str]) -> list[str]:
    made = []
    for name in names:
        if name.endswith("_B"):
            made.append(g.initializer(np.zeros((32, 1, 16)), dtype="int32", name=name))
        elif name:
            made.append(g.initializer(np.ones((32,)), name=name))
        else:
            made.append("")
    return made


def fused(op_type: str) -> onnx.ModelProto:
    """A9: an operator that holds a norm among other things; structure alone."""
    g = Graph("float32", 21, seed=op_type)
    x = g.normal_input("x", (1, 3, 32))
    if op_type == "MatMulNBitsMlp":
        operands = ["", "norm_scale", "gate_B", "gate_scales", "", "up_B", "up_scales"]
        attrs = {"K": 32, "N": 32, "bits": 4, "block_size": 32, "activation": "silu"}
    elif op_type == "MatMulNBitsQkv":
        operands = ["", "norm_scale", "q_B", "q_scales", "", "k_B", "k_scales", "", "v_B", "v_scales"]
        attrs = {"K": 32, "Nq": 32, "Nkv": 32, "bits": 4, "block_size": 32}
    elif op_type == "QOrderedLayerNormalization":
        operands, attrs = ["scale_X", "gamma", "beta", "scale_Y"], {}
    elif op_type == "RMSNormRotary":
        operands, attrs = ["gamma", "position_ids", "cosine", "sine"], {"rotary_embedding_dim": 16}
    else:
        operands, attrs = ["gamma"], {"num_branches": 2}
    outputs = 3 if op_type == "MatMulNBitsQkv" else 1
    made = g.op(op_type, x, *_quantised_operands(g, operands), outputs=outputs, domain=CONTRIB, **attrs)
    g.output(made[0] if outputs > 1 else made, "out")
    return g.model()


FUSED = ("MatMulNBitsMlp", "MatMulNBitsQkv", "QOrderedLayerNormalization", "RMSNormRotary", "BranchwiseRMSNorm")
