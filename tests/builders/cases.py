"""A FormCase: one spelling of a norm, in a small model around it, and what must be found in it.

The model is x -> pre -> norm -> post -> out. Around a norm over the last axis of a [.., C] value, pre and post are
a MatMul, and a residual Add goes around the norm; around other norms they are element-wise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import pytest

from tests.builders.graph import NUMPY, Graph
from tests.builders.installed import NEWEST, RUNTIME
from tests.builders.reference import normalise

CHANNELS = 8
FLOATS = ("float32", "float16", "bfloat16", "double")
Params = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Expected:
    """One site that find_sites() must report."""

    kind: str
    form: str  # or several that are right, "A10|C1"
    eps: float
    axes: tuple[int, ...] = (-1,)
    channels: int | None = CHANNELS
    weight: bool | None = True  # None: either reading is right
    bias: bool | None = False
    x: str | None = None  # name of the normalised value where it is one value of the model
    part: str | None = None


@dataclasses.dataclass(frozen=True)
class Built:
    """A model of a form, with what it is fed and what it must give, in float64."""

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    output: np.ndarray  # the last one of the model
    params: Params = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FormCase:
    """One spelling; `piece(graph, x)` writes it and returns the name of y.

    `definition(x, params)` is y in float64; left out, it is the norm of kind, axes and eps of the first
    expected site, times params["weight"] plus params["bias"] where the piece made them.
    """

    id: str
    piece: Callable[[Graph, str], str]
    expected: tuple[Expected, ...]
    dtypes: tuple[str, ...] = FLOATS
    since: int = 11
    until: int = NEWEST
    shape: tuple[int, ...] = (2, 3, CHANNELS)
    declared: tuple[int | str, ...] | None = None  # None: dimensions but the last are symbolic
    definition: Callable[[np.ndarray, Params], np.ndarray] | None = None
    constant_weight: bool = True  # params["weight"], if it is a vector, can be read from the file
    reference_only: bool = False  # no CPU kernel of ONNX Runtime runs the original
    out_dtype: str | None = None  # of y, where it is not that of x
    runtime: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)  # first with a kernel, by dtype

    def opsets(self, dtype: str) -> range:
        """Where the form exists; operators in pieces take bfloat16 since opset 13."""
        return range(max(self.since, 13 if dtype == "bfloat16" else 0), min(self.until, NEWEST) + 1)

    def marks(self, dtype: str) -> tuple[pytest.MarkDecorator, ...]:
        """Skips the form where nothing of it runs with what is installed."""
        first, opsets = self.runtime.get(dtype, RUNTIME), self.opsets(dtype)
        return (
            pytest.mark.skipif(first > RUNTIME, reason=f"ONNX Runtime runs it since {first[0]}.{first[1]}"),
            pytest.mark.skipif(not opsets, reason=f"needs opset {self.since}, and what is installed knows {NEWEST}"),
        )

    def build(self, dtype: str, opset: int, *, named: bool = True, bare: bool = False) -> Built:
        """The model; `bare` leaves pre and post out: the norm reads an input and gives the output."""
        graph = Graph(dtype, opset, named=named, seed=self.id)
        names = [f"dim{i}" for i in range(len(self.shape))]
        declared = self.declared or (*names[:-1], self.shape[-1])
        x = graph.normal_input("x", self.shape, declared)
        x64 = graph.feeds["x"].astype(np.float64)
        h, h64 = (x, x64) if bare else self._pre(graph, x, x64)
        y = self.piece(graph, h)
        y64 = self._define(h64, graph)
        if bare:
            graph.output(y, dtype=self.out_dtype)
            return Built(graph.model(), graph.feeds, y64, graph.params)
        out, out64 = self._post(graph, y, y64, h, h64)
        graph.output(out, "out", dtype=self.out_dtype)
        return Built(graph.model(), graph.feeds, out64, graph.params)

    def _define(self, x: np.ndarray, graph: Graph) -> np.ndarray:
        params = {name: array.astype(np.float64) for name, array in graph.params.items()}
        if self.definition is not None:
            return self.definition(x, params)
        site = self.expected[0]
        y = normalise(site.kind, x, site.axes, eps_in(graph.dtype, site.eps))
        return y * params.get("weight", np.float64(1)) + params.get("bias", np.float64(0))

    def _pre(self, graph: Graph, x: str, x64: np.ndarray) -> tuple[str, np.ndarray]:
        width = self.shape[-1]
        matrix = mixing_matrix(graph, width)
        name = graph.initializer(matrix, name="pre_weight")
        return graph.op("MatMul", x, name, outputs=["h"]), x64 @ matrix.astype(np.float64)

    def _post(self, graph: Graph, y: str, y64: np.ndarray, h: str, h64: np.ndarray) -> tuple[str, np.ndarray]:
        if y64.shape != h64.shape:
            return y, y64
        dtype = self.out_dtype or graph.dtype
        matrix = mixing_matrix(graph, self.shape[-1]).astype(NUMPY[dtype])
        name = graph.initializer(matrix, name="post_weight", dtype=dtype)
        z = graph.op("MatMul", y, name)
        h = h if dtype == graph.dtype else graph.cast(h, dtype)
        return graph.op("Add", h, z), h64 + y64 @ matrix.astype(np.float64)


def mixing_matrix(graph: Graph, width: int) -> np.ndarray:
    """A matrix that mixes the channels and makes some of them larger: norms are not scale-free tests."""
    matrix = graph.rng.normal(0.0, 1.0 / np.sqrt(width), (width, width)) * np.linspace(0.5, 2.0, width)
    return matrix.astype(NUMPY[graph.dtype])


def eps_in(dtype: str, eps: float) -> float:
    """The epsilon that is left of `eps` when a constant of this type holds it."""
    return float(np.asarray(eps).astype(NUMPY[dtype]).astype(np.float64)) if dtype in NUMPY else eps


def rms(form: str, eps: float = 1e-3, **changes: object) -> tuple[Expected, ...]:
    return (Expected("rms", form, eps, **{"x": "h", **changes}),)  # type: ignore[arg-type]


def layer(form: str, eps: float = 1e-3, **changes: object) -> tuple[Expected, ...]:
    return (Expected("layer", form, eps, **{"x": "h", "bias": True, **changes}),)  # type: ignore[arg-type]


def case_ids(cases: Sequence[FormCase]) -> list[str]:
    return [case.id for case in cases]
