"""A: a norm that is one node, or hides in a bigger fused one."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from onnx import helper

from tests.builders.cases import CHANNELS, FLOATS, Expected, FormCase, Params, layer, rms
from tests.builders.graph import CONTRIB, NUMPY, Graph, tensor
from tests.builders.reference import grouped_attention, normalise, silu

EPS = 1e-3
LOW = ("float32", "float16", "bfloat16")
STATIC = {"declared": ("batch", 3, CHANNELS)}


def rms_node(
    g: Graph, x: str, op: str, *, shape: tuple[int, ...] = (CHANNELS,), scale_dtype: str | None = None,
    domain: str = "", **attrs: Any,
) -> str:  # fmt: skip
    """A1, A2."""
    return g.op(op, x, g.weight(*shape, dtype=scale_dtype), domain=domain, **attrs)


def rms_node_with_spare_output(g: Graph, x: str) -> str:
    outputs = ["normed", "unread_inv_std_var"]
    return g.op("SimplifiedLayerNormalization", x, g.weight(CHANNELS), outputs=outputs, epsilon=EPS)[0]


def layer_node(
    g: Graph, x: str, *, shape: tuple[int, ...] = (CHANNELS,), bias: bool = True, spare: bool = False, **attrs: Any
) -> str:
    """A3."""
    operands = [x, g.weight(*shape), *([g.bias(*shape)] if bias else [])]
    if spare:
        return g.op("LayerNormalization", *operands, outputs=["y", "unread_mean", "unread_dev"], **attrs)[0]
    return g.op("LayerNormalization", *operands, **attrs)


def skip_node(
    g: Graph,
    x: str,
    kind: str,
    *,
    skip_shape: tuple[int, ...] = (2, 3, CHANNELS),
    beta: bool = True,
    sum_bias: bool = False,
    residual: bool = False,
    **attrs: Any,
) -> str:
    """A4, A5; with `residual` the sum, output 3, is read too."""
    skip = g.initializer(g.values("skip", skip_shape, -1, 1), name="skip")
    operands = [x, skip, g.weight(CHANNELS)]
    if kind == "layer":
        operands.append(g.bias(CHANNELS) if beta else "")
    if sum_bias:
        operands.append(g.bias(CHANNELS, name="sum_bias"))
    while not operands[-1]:
        operands.pop()
    op = "SkipLayerNormalization" if kind == "layer" else "SkipSimplifiedLayerNormalization"
    if not residual:
        return g.op(op, *operands, domain=CONTRIB, **attrs)
    y, _, _, total = g.op(op, *operands, outputs=["normed", "", "", "residual_sum"], domain=CONTRIB, **attrs)
    return g.op("Sub", y, total)


def skip_definition(x: np.ndarray, params: Params, kind: str, eps: float, residual: bool = False) -> np.ndarray:
    total = x + params["skip"] + params.get("sum_bias", 0)
    y = normalise(kind, total, eps=eps) * params["weight"] + params.get("bias", 0)
    return y - total if residual else y


def skip_case(name: str, kind: str, *, eps: float = EPS, shape: tuple[int, ...] = (), **options: Any) -> FormCase:
    attrs = {} if eps == 1e-12 else {"epsilon": eps}
    residual = options.get("residual", False)
    form = "A4" if kind == "layer" else "A5"
    bias = kind == "layer" and options.get("beta", True)
    return FormCase(
        f"{form}-{name}",
        partial(skip_node, kind=kind, **options, **attrs),
        (Expected(kind, form, eps, bias=bias),),
        dtypes=LOW,
        shape=shape or (2, 3, CHANNELS),
        definition=partial(skip_definition, kind=kind, eps=eps, residual=residual),
    )


def embedding(
    g: Graph, x: str, *, segments: bool = True, total: bool = False, positions: bool = False, mask: bool = False
) -> str:
    """A6; `total` reads the embedding sum too. x stays in the model around it, unread here."""
    ids = g.input("ids", np.array([[1, 4, 2], [0, 3, 3]], np.int32), ["dim0", "dim1"])
    operands = [ids, "", g.initializer(g.values("words", [6, CHANNELS], -1, 1))]
    operands.append(g.initializer(g.values("positions", [5, CHANNELS], -1, 1)))
    operands.append("")
    if segments:
        operands[1] = g.input("segments", np.array([[0, 1, 1], [0, 0, 1]], np.int32), ["dim0", "dim1"])
        operands[4] = g.initializer(g.values("kinds", [2, CHANNELS], -1, 1))
    operands += [g.weight(CHANNELS), g.bias(CHANNELS)]
    if mask or positions:
        operands.append(g.input("mask", np.ones((2, 3), np.int32), ["dim0", "dim1"]) if mask else "")
    if positions:
        operands.append(g.input("position_ids", np.array([[2, 0, 1], [4, 4, 0]], np.int32), ["dim0", "dim1"]))
    outputs = ["embedded", "mask_index", *(["embedding_sum"] if total else [])]
    named = g.op("EmbedLayerNormalization", *operands, outputs=outputs, domain=CONTRIB, epsilon=EPS)
    if mask:
        g.output("mask_index", dtype="int32")
    return g.op("Add", named[0], named[2]) if total else named[0]


def embedding_definition(x: np.ndarray, params: Params, total: bool = False, positions: bool = False) -> np.ndarray:
    ids = np.array([[1, 4, 2], [0, 3, 3]])
    where = np.array([[2, 0, 1], [4, 4, 0]]) if positions else np.arange(3)[None]
    summed = params["words"][ids] + params["positions"][where]
    if "kinds" in params:
        summed = summed + params["kinds"][np.array([[0, 1, 1], [0, 0, 1]])]
    y = normalise("layer", summed, eps=EPS) * params["weight"] + params["bias"]
    return y + summed if total else y


HEADS, KV_HEADS, SIZE = 4, 2, 16
WIDTH = HEADS * SIZE


def attention(g: Graph, x: str, *, rotary: bool = False, **attrs: Any) -> str:
    """A7: q_norm_weight and k_norm_weight are inputs 14 and 15."""
    k, v = (
        g.op("MatMul", x, g.initializer(g.values(name, [WIDTH, KV_HEADS * SIZE], -0.5, 0.5)))
        for name in ("to_k", "to_v")
    )
    lengths = g.initializer(np.array([2, 2]), dtype="int32")
    total = g.initializer(np.array(3), dtype="int32")
    cos = sin = ""
    if rotary:
        angles = np.arange(8)[:, None] * 0.3 ** np.arange(SIZE // 2)[None]
        cos, sin = g.initializer(np.cos(angles)), g.initializer(np.sin(angles))
        attrs["do_rotary"] = 1
    q_weight, k_weight = (g.initializer(g.values(name, [SIZE], 0.5, 1.5)) for name in ("q_scale", "k_scale"))
    operands = [x, k, v, "", "", lengths, total, cos, sin, "", "", "", "", "", q_weight, k_weight]
    return g.op(
        "GroupQueryAttention",
        *operands,
        outputs=["attended", "present_k", "present_v"],
        domain=CONTRIB,
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        **attrs,
    )[0]


def attention_definition(x: np.ndarray, params: Params, q_eps: float, k_eps: float, rotary: bool = False) -> np.ndarray:
    def heads(value: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
        groups = value.reshape(*value.shape[:-1], -1, SIZE)
        normal = normalise("rms", groups, eps=eps) * scale
        return (turn(normal) if rotary else normal).reshape(value.shape)

    q = heads(x, params["q_scale"], q_eps)
    k = heads(x @ params["to_k"], params["k_scale"], k_eps)
    return grouped_attention(q, k, x @ params["to_v"], HEADS, KV_HEADS)


def turn(value: np.ndarray) -> np.ndarray:
    """The rotary embedding of [B, S, heads, SIZE], halves apart."""
    angles = np.arange(value.shape[1])[:, None] * 0.3 ** np.arange(SIZE // 2)[None]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    left, right = value[..., : SIZE // 2], value[..., SIZE // 2 :]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def attention_case(name: str, q_eps: float, k_eps: float, rotary: bool = False, **attrs: Any) -> FormCase:
    return FormCase(
        f"A7-{name}",
        partial(attention, rotary=rotary, **attrs),
        tuple(Expected("rms", "A7", eps, channels=SIZE, part=part) for part, eps in (("q", q_eps), ("k", k_eps))),
        dtypes=LOW,
        reference_only=True,
        shape=(2, 3, WIDTH),
        declared=("batch", 3, WIDTH),
        definition=partial(attention_definition, q_eps=q_eps, k_eps=k_eps, rotary=rotary),
    )


def gated_node(g: Graph, x: str, size: int = CHANNELS, **attrs: Any) -> str:
    """A8: groups of `size` in the last axis."""
    gate = g.initializer(g.values("gate", [2, 3, CHANNELS], -2, 2))
    return g.op("GatedRMSNorm", x, g.weight(size), gate, domain=CONTRIB, epsilon=EPS, **attrs)


def gated_definition(x: np.ndarray, params: Params, size: int, gating: Any = silu) -> np.ndarray:
    groups = x.reshape(*x.shape[:-1], -1, size)
    y = (normalise("rms", groups, eps=EPS) * params["weight"]).reshape(x.shape)
    return y * gating(params["gate"])


def function_call(g: Graph, x: str, name: str, domain: str, nested: bool = False) -> str:
    """A10: a model-local function, its epsilon an attribute of the call; `nested` calls it from another one."""
    g.functions.append(skip_function(g, name, domain))
    g.imports[domain] = 1
    skip = g.initializer(g.values("skip", [3, CHANNELS], -1, 1))
    operands = [x, skip, g.weight(CHANNELS), g.bias(CHANNELS)]
    if not nested:
        return g.op(name, *operands, domain=domain, epsilon=EPS)
    call = helper.make_node(name, ["a", "b", "c", "d"], ["y"], domain=domain)
    call.attribute.append(referenced("epsilon", "block_epsilon"))
    block = helper.make_function(
        "blocks", "Block", list("abcd"), ["y"], [call], [helper.make_opsetid(domain, 1)], ["block_epsilon"]
    )
    g.functions.append(block)
    return g.op("Block", *operands, domain="blocks", block_epsilon=EPS)


def referenced(name: str, of_function: str) -> Any:
    attribute = helper.make_attribute(name, 1.0)
    attribute.ClearField("f")
    attribute.ref_attr_name = of_function
    return attribute


def skip_function(g: Graph, name: str, domain: str) -> Any:
    """LayerNorm of input + skip in pieces; the function shadows the contrib operator of its name."""
    body = Graph(g.dtype, g.opset, named=g.named)
    body._count = 1000  # names of its own
    for value, array in (("two", 2.0), ("axis", [-1])):
        dtype = "int64" if value == "axis" else None
        body.op("Constant", outputs=[value], value=_tensor(array, dtype or g.dtype))
    total = body.op("Add", "x", "skip")
    axes = {"axes": [-1]} if g.opset < 18 else {}
    reduce = lambda v: body.op("ReduceMean", v, *([] if axes else ["axis"]), **axes)  # noqa: E731
    centred = body.op("Sub", total, reduce(total))
    variance = reduce(body.op("Pow", centred, "two"))
    body.op("Constant", outputs=["eps32"])
    body.nodes[-1].attribute.append(referenced("value_float", "epsilon"))
    eps = body.op("CastLike", "eps32", "x") if g.opset >= 15 else body.cast("eps32", g.dtype)
    normal = body.op("Div", centred, body.op("Sqrt", body.op("Add", variance, eps)))
    body.op("Add", body.op("Mul", normal, "gamma"), "beta", outputs=["y"])
    imports = [helper.make_opsetid("", g.opset)]
    inputs = ["x", "skip", "gamma", "beta"]
    return helper.make_function(domain, name, inputs, ["y"], body.nodes, imports, ["epsilon"])


def _tensor(value: Any, dtype: str) -> Any:
    return tensor("", np.array(value).astype(NUMPY[dtype]))


def function_definition(x: np.ndarray, params: Params) -> np.ndarray:
    return normalise("layer", x + params["skip"], eps=EPS) * params["weight"] + params["bias"]


RMS_NODE = partial(rms_node, op="RMSNormalization", epsilon=EPS)
SIMPLIFIED = partial(rms_node, op="SimplifiedLayerNormalization", epsilon=EPS)
FORMS = [
    FormCase("A1", RMS_NODE, rms("A1"), since=23),
    FormCase("A1-defaults", partial(rms_node, op="RMSNormalization"), rms("A1", eps=1e-5), since=23),
    *(
        FormCase(f"A1-scale-{name}", partial(RMS_NODE, shape=shape), rms("A1"), since=23, **STATIC)
        for name, shape in (("row", (1, 1, CHANNELS)), ("one", (1,)), ("scalar", ()), ("full", (3, CHANNELS)))
    ),
    FormCase("A1-axis-2", partial(RMS_NODE, axis=2), rms("A1"), since=23),
    FormCase(
        "A1-two-axes",
        partial(RMS_NODE, axis=-2, shape=(3, CHANNELS)),
        rms("A1", axes=(-2, -1), channels=24),
        since=23,
        **STATIC,
    ),
    FormCase(
        "A1-two-axes-last-scale", partial(RMS_NODE, axis=1), rms("A1", axes=(-2, -1), channels=24), since=23, **STATIC
    ),
    FormCase(
        "A1-wide-scale",
        partial(RMS_NODE, scale_dtype="float32"),
        rms("A1"),
        dtypes=("float16", "bfloat16"),
        since=23,
        reference_only=True,
        out_dtype="float32",
    ),
    FormCase("A2", SIMPLIFIED, rms("A2")),
    FormCase("A2-defaults", partial(rms_node, op="SimplifiedLayerNormalization"), rms("A2", eps=1e-5)),
    FormCase("A2-axis-2", partial(SIMPLIFIED, axis=2), rms("A2")),
    FormCase(
        "A2-two-axes",
        partial(SIMPLIFIED, axis=1, shape=(3, CHANNELS)),
        rms("A2", axes=(-2, -1), channels=24),
        **STATIC,
    ),
    FormCase("A2-spare-output", rms_node_with_spare_output, rms("A2"), runtime={"double": (1, 30)}),
    FormCase(
        "A2-wide-scale",
        partial(SIMPLIFIED, scale_dtype="float32"),
        rms("A2"),
        dtypes=("float16",),
        out_dtype="float32",
    ),
    FormCase("A3", partial(layer_node, epsilon=EPS), layer("A3")),
    FormCase("A3-defaults", layer_node, layer("A3", eps=1e-5)),
    FormCase("A3-no-bias", partial(layer_node, epsilon=EPS, bias=False), layer("A3", bias=False)),
    FormCase("A3-spare-outputs", partial(layer_node, epsilon=EPS, spare=True), layer("A3")),
    FormCase("A3-axis-2", partial(layer_node, epsilon=EPS, axis=2), layer("A3")),
    FormCase(
        "A3-two-axes",
        partial(layer_node, epsilon=EPS, axis=1, shape=(3, CHANNELS)),
        layer("A3", axes=(-2, -1), channels=24),
        **STATIC,
    ),
    skip_case("plain", "layer"),
    skip_case("defaults", "layer", eps=1e-12),
    skip_case("no-beta", "layer", beta=False),
    skip_case("sum-bias", "layer", sum_bias=True),
    skip_case("residual", "layer", residual=True),
    skip_case("residual-sum-bias", "layer", residual=True, sum_bias=True, beta=False),
    skip_case("skip-of-rank-2", "layer", skip_shape=(3, CHANNELS), residual=True),
    skip_case("skip-of-one-batch", "layer", skip_shape=(1, 3, CHANNELS), residual=True, sum_bias=True),
    skip_case("rank-2", "layer", shape=(6, CHANNELS), skip_shape=(6, CHANNELS)),
    skip_case("plain", "rms"),
    skip_case("defaults", "rms", eps=1e-12),
    skip_case("sum-bias", "rms", sum_bias=True),
    skip_case("residual", "rms", residual=True),
    skip_case("residual-sum-bias", "rms", residual=True, sum_bias=True),
    skip_case("rank-2", "rms", shape=(6, CHANNELS), skip_shape=(6, CHANNELS), residual=True),
    *(
        FormCase(
            f"A6-{name}",
            partial(embedding, **options),
            (Expected("layer", "A6", EPS, bias=True),),
            dtypes=LOW,
            definition=partial(embedding_definition, **{k: v for k, v in options.items() if k in said}),
        )
        for said in [("total", "positions")]
        for name, options in (
            ("plain", {}),
            ("no-segments", {"segments": False}),
            ("sum", {"total": True}),
            ("positions", {"positions": True}),
            ("all", {"positions": True, "total": True}),
            ("mask-index", {"mask": True, "positions": True}),
        )
    ),
    attention_case("defaults", 1e-6, 1e-6),
    attention_case("one-eps", EPS, EPS, qk_norm_epsilon=EPS),
    attention_case("two-eps", EPS, 2e-2, q_norm_epsilon=EPS, k_norm_epsilon=2e-2),
    attention_case("rotary", EPS, EPS, rotary=True, qk_norm_epsilon=EPS),
    *(
        FormCase(
            f"A8-{name}",
            partial(gated_node, size=size, **attrs),
            (Expected("rms", "A8", EPS, channels=size),),
            dtypes=LOW,
            runtime={"float32": (1, 30), "float16": (1, 30)},
            definition=partial(gated_definition, size=size, gating=gating),
        )
        for name, size, attrs, gating in (
            ("plain", CHANNELS, {}, silu),
            ("groups", 4, {}, silu),
            ("swish", 4, {"activation": "swish"}, silu),
            ("sigmoid", CHANNELS, {"activation": "sigmoid"}, lambda gate: 1 / (1 + np.exp(-gate))),
        )
    ),
    *(
        FormCase(
            f"A10-{name}",
            partial(function_call, name=function, domain=domain, nested=nested),
            (Expected("layer", "A10|C1", EPS, bias=True),),
            dtypes=LOW if domain == CONTRIB else FLOATS,
            since=13,
            definition=function_definition,
        )
        for name, function, domain, nested in (
            ("shadows-contrib", "SkipLayerNormalization", CONTRIB, False),
            ("own-domain", "MyNorm", "custom.functions", False),
            ("nested", "Norm", "custom.functions", True),
        )
    ),
]
