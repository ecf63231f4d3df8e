"""Small transformers written out node by node, with the norms and the streams that folds are about."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper, parser

from dynorm_onnx.graph.fold import Parity
from dynorm_onnx.graph.lower import LoweredNorm
from tests.builders.convert import lowered
from tests.builders.execute import run_ort

CHANNELS, VOCABULARY, WIDTH = 8, 31, 12
IDS = np.random.default_rng(11).integers(0, VOCABULARY, (2, 5))
ELEMENT = {np.dtype(np.float32): "float", np.dtype(np.float16): "float16", np.dtype(np.float64): "double"}


@dataclasses.dataclass
class Draft:
    """Lines of a graph in onnx's text form, and its initializers."""

    rng: np.random.Generator
    dtype: np.dtype = dataclasses.field(default_factory=lambda: np.dtype(np.float32))
    lines: list[str] = dataclasses.field(default_factory=list)
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def weight(self, name: str, *shape: int, mean: float = 0.4, size: float = 0.5) -> str:
        """A random initializer that is well off centre."""
        self.arrays[name] = (mean + size * self.rng.standard_normal(shape)).astype(self.dtype)
        return name

    def norm(self, name: str, x: str, *, bias: bool = True) -> str:
        """A LayerNormalization of `x`; returns its output."""
        self.weight(f"{name}.weight", CHANNELS, mean=1.0, size=0.2)
        operands = [x, f'"{name}.weight"']
        if bias:
            operands.append(f'"{self.weight(f"{name}.bias", CHANNELS)}"')
        self.lines.append(f"{name}_y = LayerNormalization<epsilon = 0.00001>({', '.join(operands)})")
        return f"{name}_y"

    def linear(self, name: str, x: str, inputs: int, outputs: int, *, bias: bool = True, gemm: bool = False) -> str:
        """x W + b by MatMul and Add, or by Reshape, Gemm and Reshape as GPT-2's are exported."""
        self.weight(f"{name}.W", inputs, outputs, size=1 / np.sqrt(inputs))
        if bias:
            self.weight(f"{name}.b", outputs)
        if gemm:
            self.arrays[f"{name}.flat"] = np.array([-1, inputs])
            self.arrays[f"{name}.unflat"] = np.array([2, 5, outputs])
            operands = f'{name}_rows, "{name}.W"' + (f', "{name}.b"' if bias else "")
            self.lines += [
                f'{name}_rows = Reshape({x}, "{name}.flat")',
                f"{name}_made = Gemm({operands})",
                f'{name}_y = Reshape({name}_made, "{name}.unflat")',
            ]
        else:
            self.lines.append(f'{name}_{"m" if bias else "y"} = MatMul({x}, "{name}.W")')
            if bias:
                self.lines.append(f'{name}_y = Add({name}_m, "{name}.b")')
        return f"{name}_y"

    def block(self, name: str, x: str, *, gemm: bool = False, bias: bool = True) -> str:
        """x + W2 tanh(W1 norm(x)): a pre-norm block."""
        up = self.linear(f"{name}_up", self.norm(f"{name}_norm", x), CHANNELS, WIDTH, gemm=gemm, bias=bias)
        self.lines.append(f"{name}_h = Tanh({up})")
        down = self.linear(f"{name}_down", f"{name}_h", WIDTH, CHANNELS, gemm=gemm)
        self.lines.append(f"{name}_x = Add({x}, {down})")
        return f"{name}_x"

    def embedding(self, vocabulary: int = VOCABULARY) -> str:
        """word[ids] + position; returns the sum."""
        self.weight("words", vocabulary, CHANNELS)
        self.weight("places", 5, CHANNELS)
        self.lines += ["word = Gather(words, ids)", "x0 = Add(word, places)"]
        return "x0"

    def model(self, outputs: str, *, opset: int = 17) -> onnx.ModelProto:
        """The model of `ids` [2, 5] with these outputs, "float[2, 5, 8] y, ..." less the type of floats."""
        element = ELEMENT[self.dtype]
        signature = f"(int64[2, 5] ids) => ({', '.join(f'{element}{output}' for output in outputs.split('; '))})"
        imports = f'"": {opset}, "com.microsoft": 1'
        text = f"<ir_version: {10 if opset > 20 else 8}, opset_import: [{imports}]> g {signature} {{ "
        model = parser.parse_model(text + "\n".join(self.lines) + " }")
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in self.arrays.items())
        return model


def pre_norm(
    *,
    blocks: int = 2,
    vocabulary: int = VOCABULARY,
    tied: bool = False,
    gemm: bool = False,
    seed: int = 0,
    opset: int = 17,
    dtype: type = np.float32,
) -> onnx.ModelProto:
    """Embeddings, pre-norm blocks, a final norm and a head with a bias; `tied`: the head reads the embeddings."""
    draft = Draft(np.random.default_rng(seed), np.dtype(dtype))
    x = draft.embedding(vocabulary)
    for number in range(blocks):
        x = draft.block(f"block{number}", x, gemm=gemm)
    y = draft.norm("final", x)
    if tied:
        draft.lines += ["turned = Transpose<perm = [1, 0]>(words)", f"head_y = MatMul({y}, turned)"]
    else:
        draft.linear("head", y, CHANNELS, vocabulary)
    draft.lines.append("logits = Identity(head_y)")
    return draft.model(f"[2, 5, {vocabulary}] logits", opset=opset)


def post_norm(blocks: int = 2) -> onnx.ModelProto:
    """As BERT's: norm(x + W2 tanh(W1 x)), so that every norm writes the stream of the next."""
    draft = Draft(np.random.default_rng(1))
    x = draft.norm("embed", draft.embedding())
    for number in range(blocks):
        up = draft.linear(f"up{number}", x, CHANNELS, WIDTH)
        draft.lines.append(f"h{number} = Tanh({up})")
        down = draft.linear(f"down{number}", f"h{number}", WIDTH, CHANNELS)
        draft.lines.append(f"x{number + 1} = Add({x}, {down})")
        x = draft.norm(f"norm{number}", f"x{number + 1}")
    draft.linear("head", x, CHANNELS, CHANNELS)
    draft.lines.append("y = Identity(head_y)")
    return draft.model(f"[2, 5, {CHANNELS}] y")


def outputs_of(model: ir.Model) -> list[np.ndarray]:
    """What the model gives for IDS in ONNX Runtime, as it is written."""
    return run_ort(ir.to_proto(model), {"ids": IDS})


PARITY = Parity(outputs_of)


def prepared(source: onnx.ModelProto) -> tuple[ir.Model, tuple[LoweredNorm, ...]]:
    """The lowered model and its norms."""
    onnx.checker.check_model(source)
    return lowered(source)
