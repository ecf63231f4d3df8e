"""E: what looks like a norm and is not one, or is one that must not be replaced, or only with care.

Every trap says which sites may be found in it, by kind, and which word the reason of a refusal or near
miss must hold. Replacing the sites that are found must never change an output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from tests.builders.cases import CHANNELS, FLOATS, FormCase
from tests.builders.graph import Graph
from tests.builders.installed import NEWEST, NEWEST_LP_NORMALIZATION
from tests.builders.layer_forms import textbook
from tests.builders.rms_forms import divided, mean_square, root, weightless

EPS = 1e-3


@dataclasses.dataclass(frozen=True)
class Trap:
    """`sites`: the kinds of the sites that may be found; `words`: one of them is in a reason given."""

    id: str
    piece: Callable[[Graph, str], str]
    sites: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    refused: bool = False  # a Refusal, not a NearMiss, must say so
    dtypes: tuple[str, ...] = FLOATS
    since: int = 11
    until: int = NEWEST
    shape: tuple[int, ...] = (2, 3, CHANNELS)
    declared: tuple[int | str, ...] | None = None
    same_shape: bool = True  # y has the shape of x
    runtime: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)  # as FormCase has it

    def case(self) -> FormCase:
        """A FormCase that builds the model; it expects nothing of the outputs."""
        shape = self.shape if self.same_shape else (0,)
        return FormCase(
            self.id,
            self.piece,
            (),
            dtypes=self.dtypes,
            since=self.since,
            until=self.until,
            shape=self.shape,
            declared=self.declared,
            runtime=self.runtime,
            definition=lambda x, params: np.zeros(shape),
        )


def mean_outside(g: Graph, x: str) -> str:
    """1: a LayerNorm without bias, as ONNX Runtime saves it."""
    centred = g.op("Sub", x, g.reduce("ReduceMean", x, [-1]))
    return g.op("SimplifiedLayerNormalization", centred, g.weight(CHANNELS), epsilon=EPS)


def mean_of_other_axis(g: Graph, x: str) -> str:
    """The mean over the tokens belongs to nobody: what is left is an RMSNorm."""
    centred = g.op("Sub", x, g.reduce("ReduceMean", x, [1]))
    return divided(g, centred, "Mul")


def chain(g: Graph, x: str, length: int = 3) -> str:
    """2: the next norm's Mul(y, y) is no weight."""
    for _ in range(length):
        x = g.op("Mul", x, g.op("Reciprocal", root(g, x, "Mul")))
    return x


def weight_of_x(g: Graph, x: str) -> str:
    """A gate that depends on x is no weight."""
    return g.op("Mul", weightless(g, x), g.op("Sigmoid", x))


def weight_of_norm(g: Graph, x: str) -> str:
    y = weightless(g, x)
    return g.op("Mul", y, g.op("Sigmoid", y))


def branches(g: Graph, x: str) -> str:
    """What is normalised is read before its weight as well as after."""
    normal = g.op("Div", x, root(g, x))
    return g.op("Sub", g.op("Mul", normal, g.weight(CHANNELS)), normal)


def residual_after(g: Graph, x: str) -> str:
    """x itself, added behind, is no bias."""
    return g.op("Add", divided(g, x, "Mul"), x)


def sandwich_norm(g: Graph, x: str) -> str:
    """Gemma 2: the residual stream, upstream of x, is added to the norm; it is no bias either."""
    stream = g.normal_input("stream", (2, 3, CHANNELS), ("dim0", "dim1", CHANNELS))
    y = divided(g, g.op("Add", g.op("Tanh", stream), x), "Mul")
    return g.op("Add", stream, y)


def masked_places(g: Graph, x: str) -> str:
    """What is multiplied by next is one number a token, an input: Mamba's attention mask, no weight."""
    mask = g.normal_input("mask", (2, 3), (2, 3))
    return g.op("Mul", divided(g, x, "Mul"), g.unsqueeze(mask, 2))


def negated(g: Graph, x: str) -> str:
    """mean - x: a LayerNorm of the other sign."""
    centred = g.op("Sub", g.reduce("ReduceMean", x, [-1]), x)
    variance = g.reduce("ReduceMean", g.op("Mul", centred, centred), [-1])
    normal = g.op("Div", centred, g.op("Sqrt", g.op("Add", variance, g.scalar(EPS))))
    return g.op("Add", g.op("Mul", normal, g.weight(CHANNELS)), g.bias(CHANNELS))


def enlarging(g: Graph, x: str) -> str:
    """3: the weight makes [.., 1] a [.., 2]."""
    normal = g.op("Div", x, root(g, x))
    return g.op("Mul", normal, g.weight(2))


def enlarging_rank(g: Graph, x: str) -> str:
    """3: the weight adds an axis in front."""
    return g.op("Mul", g.op("Div", x, root(g, x)), g.weight(2, 1, 1, CHANNELS))


def group_norm_body(g: Graph, x: str) -> str:
    """4: GroupNormalization written out: a LayerNorm core over [N, groups, rest]."""
    groups = g.op("Reshape", x, g.ints(2, 4, -1))
    mean = g.reduce("ReduceMean", groups, [2])
    squares = g.reduce("ReduceMean", g.op("Mul", groups, groups), [2])
    variance = g.op("Sub", squares, g.op("Mul", mean, mean))
    rooted = g.op("Sqrt", g.op("Add", variance, g.scalar(EPS)))
    normal = g.op("Div", g.op("Sub", groups, mean), rooted)
    rows = g.op("Reshape", normal, g.ints(2, CHANNELS, -1))
    rows = g.op("Add", g.op("Mul", rows, g.weight(CHANNELS, 1)), g.bias(CHANNELS, 1))
    return g.op("Reshape", rows, g.op("Shape", x))


def mvn_body(g: Graph, x: str) -> str:
    """4: MeanVarianceNormalization written out."""
    axes = [0, 2, 3]
    mean = g.reduce("ReduceMean", x, axes)
    squares = g.reduce("ReduceMean", g.op("Pow", x, g.scalar(2.0)), axes)
    variance = g.op("Sub", squares, g.op("Pow", mean, g.scalar(2.0)))
    deviation = g.op("Add", g.op("Sqrt", variance), g.scalar(1e-3))
    return g.op("Div", g.op("Sub", x, mean), deviation)


def group_norm(g: Graph, x: str) -> str:
    return g.op("GroupNormalization", x, g.weight(CHANNELS), g.bias(CHANNELS), num_groups=4)


def instance_norm(g: Graph, x: str) -> str:
    return g.op("InstanceNormalization", x, g.weight(CHANNELS), g.bias(CHANNELS))


def batch_norm(g: Graph, x: str) -> str:
    mean, variance = g.initializer(np.zeros(CHANNELS)), g.initializer(np.ones(CHANNELS))
    return g.op("BatchNormalization", x, g.weight(CHANNELS), g.bias(CHANNELS), mean, variance)


def l2(g: Graph, x: str, how: str) -> str:
    """4, B12: an L2 normalisation, times a temperature that is not sqrt(C)."""
    if how == "LpNormalization":
        normal = g.op("LpNormalization", x, axis=-1)
    elif how == "ReduceL2":
        normal = g.op("Div", x, g.reduce("ReduceL2", x, [-1]))
    elif how == "ReduceSum":
        normal = g.op("Div", x, g.op("Sqrt", g.reduce("ReduceSum", g.op("Mul", x, x), [-1])))
    else:
        normal = g.op("LpNormalization", x, axis=-1, p=1)
    return g.op("Mul", normal, g.scalar(14.3))


def l2_plain(g: Graph, x: str) -> str:
    return g.op("Div", x, g.op("Max", g.reduce("ReduceL2", x, [-1]), g.scalar(1e-6)))


def all_axes(g: Graph, x: str, empty: bool = False) -> str:
    """5: no axes at all, or an empty list of them, means every axis."""
    squared = g.op("Mul", x, x)
    mean = g.op("ReduceMean", squared, g.ints()) if empty else g.op("ReduceMean", squared)
    return g.op("Mul", g.op("Div", x, g.op("Sqrt", g.op("Add", mean, g.scalar(EPS)))), g.weight(CHANNELS))


def all_axes_layer(g: Graph, x: str) -> str:
    centred = g.op("Sub", x, g.op("ReduceMean", x))
    variance = g.op("ReduceMean", g.op("Mul", centred, centred))
    normal = g.op("Div", centred, g.op("Sqrt", g.op("Add", variance, g.scalar(EPS))))
    return g.op("Add", g.op("Mul", normal, g.weight(CHANNELS)), g.bias(CHANNELS))


def no_axes(g: Graph, x: str) -> str:
    """noop_with_empty_axes: nothing is reduced, x / sqrt(x^2 + eps) is DyISRU itself."""
    mean = g.op("ReduceMean", g.op("Mul", x, x), g.ints(), noop_with_empty_axes=1)
    return g.op("Mul", g.op("Div", x, g.op("Sqrt", g.op("Add", mean, g.scalar(EPS)))), g.weight(CHANNELS))


def dyisru(g: Graph, x: str) -> str:
    total = g.op("Add", g.op("Mul", x, x), g.scalar(4.0))
    return g.op("Mul", g.op("Div", x, g.op("Sqrt", total)), g.weight(CHANNELS))


def other_numerator(g: Graph, x: str) -> str:
    other = g.op("Add", x, g.bias(CHANNELS))
    return g.op("Mul", g.op("Div", other, root(g, x)), g.weight(CHANNELS))


def other_exponent(g: Graph, x: str, inner: float, outer: float) -> str:
    mean = g.reduce("ReduceMean", g.op("Pow", x, g.scalar(inner)), [-1])
    base = g.op("Add", g.op("Abs", mean), g.scalar(EPS))
    return g.op("Mul", g.op("Mul", x, g.op("Pow", base, g.scalar(outer))), g.weight(CHANNELS))


def unbiased(g: Graph, x: str) -> str:
    """torch.std: divided by C - 1."""
    centred = g.op("Sub", x, g.reduce("ReduceMean", x, [-1]))
    total = g.reduce("ReduceSum", g.op("Mul", centred, centred), [-1])
    variance = g.op("Div", total, g.scalar(CHANNELS - 1.0))
    normal = g.op("Div", centred, g.op("Sqrt", g.op("Add", variance, g.scalar(EPS))))
    return g.op("Add", g.op("Mul", normal, g.weight(CHANNELS)), g.bias(CHANNELS))


def eps_after_root(g: Graph, x: str) -> str:
    mean = g.reduce("ReduceMean", g.op("Mul", x, x), [-1])
    deviation = g.op("Add", g.op("Sqrt", mean), g.scalar(0.125))
    return g.op("Mul", g.op("Div", x, deviation), g.weight(CHANNELS))


def eps_vector(g: Graph, x: str) -> str:
    mean = g.reduce("ReduceMean", g.op("Mul", x, x), [-1])
    total = g.op("Add", mean, g.initializer(np.linspace(0.1, 2.0, CHANNELS)))
    return g.op("Mul", g.op("Div", x, g.op("Sqrt", total)), g.weight(CHANNELS))


def eps_of_input(g: Graph, x: str) -> str:
    eps = g.input("eps", g.values("eps", [1], 0.1, 0.2))
    mean = g.reduce("ReduceMean", g.op("Mul", x, x), [-1])
    return g.op("Mul", g.op("Div", x, g.op("Sqrt", g.op("Add", mean, eps))), g.weight(CHANNELS))


def exposed(g: Graph, x: str, op: str, output: int, read: bool) -> str:
    """7: Mean or InvStdDev is read, or is an output of the model."""
    operands = [x, g.weight(CHANNELS), *([g.bias(CHANNELS)] if op == "LayerNormalization" else [])]
    names = ["normed", *(f"aux_{i}" if i == output else "" for i in range(1, output + 1))]
    y = g.op(op, *operands, outputs=names, epsilon=EPS)[0]
    if not read:
        g.output(names[-1], dtype="float32")
        return y
    aux = names[-1] if g.dtype == "float32" else g.cast(names[-1], g.dtype)
    return g.op("Add", y, aux)


def exposed_in_pieces(g: Graph, x: str) -> str:
    """7, in pieces: the deviation is an output; it can stay there for itself."""
    deviation = root(g, x)
    g.output(deviation, "deviation")
    return g.op("Mul", g.op("Div", x, deviation), g.weight(CHANNELS))


def square_read(g: Graph, x: str) -> str:
    squared = g.op("Mul", x, x)
    mean = g.op("Add", g.reduce("ReduceMean", squared, [-1]), g.scalar(EPS))
    y = g.op("Mul", g.op("Div", x, g.op("Sqrt", mean)), g.weight(CHANNELS))
    return g.op("Add", y, squared)


def shared_inverse(g: Graph, x: str) -> str:
    """One inverse deviation, two products with x: two norms, or one with two branches."""
    inverse = g.op("Reciprocal", root(g, x))
    one = g.op("Mul", g.op("Mul", x, inverse), g.weight(CHANNELS))
    two = g.op("Mul", g.op("Mul", x, inverse), g.weight(CHANNELS, name="weight_2"))
    return g.op("Sub", one, two)


def shared_mean(g: Graph, x: str) -> str:
    """A LayerNorm and an RMSNorm of the same x."""
    one = textbook(g, x)
    return g.op("Sub", one, weightless(g, x))


def tied_weight(g: Graph, x: str) -> str:
    weight = g.weight(CHANNELS)
    x = g.op("Mul", g.op("Div", x, root(g, x)), weight)
    return g.op("Mul", g.op("Div", x, root(g, x)), weight)


def through_identity(g: Graph, x: str) -> str:
    copy = g.op("Identity", x)
    inverse = g.op("Reciprocal", g.op("Identity", root(g, copy, "Mul")))
    return g.op("Mul", g.op("Identity", g.op("Mul", x, inverse)), g.weight(CHANNELS))


def huge(g: Graph, x: str) -> str:
    """8: the variance of x overflows fp16; the node computes in float32."""
    big = g.op("Mul", x, g.scalar(4000.0))
    return g.op("SimplifiedLayerNormalization", big, g.weight(CHANNELS), epsilon=1e-6)


def huge_in_pieces(g: Graph, x: str) -> str:
    big = g.op("Mul", x, g.scalar(4000.0))
    wide = g.cast(big, "float32")
    inverse = g.op("Reciprocal", g.op("Sqrt", mean_square(g, wide, dtype="float32")))
    return g.op("Mul", g.weight(CHANNELS), g.cast(g.op("Mul", wide, inverse), g.dtype))


def no_eps(g: Graph, x: str) -> str:
    """8: eps 1e-8 is 0 in fp16."""
    return g.op("Mul", g.op("Div", x, root(g, x, eps=1e-8)), g.weight(CHANNELS))


ROWS = {"shape": (2, CHANNELS, 4, 5), "declared": (2, CHANNELS, 4, 5)}
TRAPS = [
    Trap("E1-mean-outside", mean_outside, sites=("layer",)),
    Trap("E1-mean-of-other-axis", mean_of_other_axis, sites=("rms",)),
    Trap("E2-chain", chain, sites=("rms",) * 3),
    Trap("E2-weight-of-x", weight_of_x, sites=("rms",)),
    Trap("E2-weight-of-norm", weight_of_norm, sites=("rms",)),
    Trap("E2-residual-after", residual_after, sites=("rms",)),
    Trap("sandwich-norm", sandwich_norm, sites=("rms",)),
    Trap("branches", branches, sites=("rms",)),
    Trap("masked-places", masked_places, sites=("rms",), declared=(2, 3, CHANNELS)),
    Trap(
        "E3-enlarging",
        enlarging,
        words=("enlarge",),
        refused=True,
        shape=(2, 3, 1),
        same_shape=False,
    ),
    Trap("E4-group-norm-body", group_norm_body, words=("group",), since=13, declared=(2, 3, CHANNELS)),
    Trap("E4-mvn-body", mvn_body, words=("ax", "contiguous", "tail"), **ROWS),
    Trap("E4-group-norm", group_norm, since=21, dtypes=("float32", "float16", "double"), **ROWS),
    Trap("E4-instance-norm", instance_norm, dtypes=("float32",), **ROWS),
    Trap("E4-batch-norm", batch_norm, dtypes=("float32", "double"), **ROWS),
    *(
        Trap(f"E4-l2-{how}", partial(l2, how=how), dtypes=("float32", "double"), until=until)
        for how, until in (
            ("LpNormalization", NEWEST_LP_NORMALIZATION),
            ("ReduceL2", NEWEST),
            ("ReduceSum", NEWEST),
            ("L1", NEWEST_LP_NORMALIZATION),
        )
    ),
    Trap("E4-l2-plain", l2_plain),
    Trap("E5-all-axes", all_axes, words=("axes", "every axis")),
    Trap("E5-all-axes-empty", partial(all_axes, empty=True), words=("axes", "every axis"), since=18),
    Trap("E5-all-axes-layer", all_axes_layer, words=("axes", "every axis")),
    Trap("E5-no-axes", no_axes, since=18),
    Trap("E5-dyisru", dyisru),
    Trap("other-numerator", other_numerator, words=("same", "numerator", "differ")),
    Trap("cubed", partial(other_exponent, inner=4.0, outer=-0.5)),
    Trap("exponent", partial(other_exponent, inner=2.0, outer=-0.4)),
    Trap("unbiased", unbiased, words=("mean", "count", "channels", "agree", "C - 1")),
    Trap("eps-after-root", eps_after_root),
    Trap("eps-vector", eps_vector, words=("eps",)),
    Trap("eps-of-input", eps_of_input, words=("eps",)),
    *(
        Trap(
            f"E7-{op}-{output}-{'read' if read else 'output'}",
            partial(exposed, op=op, output=output, read=read),
            words=words,
            refused=True,
            dtypes=("float32", "float16", "double"),
            runtime={"double": (1, 30)} if op == "SimplifiedLayerNormalization" else {},
        )
        for op, output, words in (
            ("LayerNormalization", 1, ("mean",)),
            ("LayerNormalization", 2, ("inv", "deviation")),
            ("SimplifiedLayerNormalization", 1, ("inv", "deviation")),
        )
        for read in (True, False)
    ),
    Trap("E7-in-pieces", exposed_in_pieces, sites=("rms",)),
    Trap("square-read", square_read, sites=("rms",)),
    Trap("shared-inverse", shared_inverse, sites=("rms", "rms")),
    Trap("shared-x", shared_mean, sites=("layer", "rms")),
    Trap("tied-weight", tied_weight, sites=("rms", "rms")),
    Trap("through-identity", through_identity, sites=("rms",)),
    Trap("E8-huge", huge, sites=("rms",), dtypes=("float16", "bfloat16")),
    Trap("E8-huge-in-pieces", huge_in_pieces, sites=("rms",), dtypes=("float16", "bfloat16")),
    Trap("E8-no-eps", no_eps, sites=("rms",), dtypes=("float16", "bfloat16")),
]
