"""Random streams: whatever is folded, no output moves; and harmless steps keep nothing from being folded."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynorm_onnx.graph.fold import Parity, fold_centring
from tests.builders.execute import run_ort
from tests.graph.fold.models import CHANNELS, PARITY, Draft, outputs_of, prepared
from tests.graph.test_lower import model_of
from tests.tolerances import TOLERANCE, relative_error

HARMLESS = ("block", "shift", "scale", "rows", "turn", "less", "cut", "join", "same")
HARMFUL = ("tanh", "gate", "one")


def step(draft: Draft, kind: str, number: int, x: str) -> str:
    """One step [2, 5, 8] -> [2, 5, 8] of a stream; returns its output."""
    name = f"s{number}"
    if kind == "block":
        return draft.block(name, x, gemm=number % 2 == 0)
    draft.arrays |= {f"{name}_flat": np.array([10, CHANNELS]), f"{name}_shape": np.array([2, 5, CHANNELS])}
    draft.arrays |= {f"{name}_{word}": np.array([value]) for word, value in (("zero", 0), ("one", 1), ("two", 2))}
    lines = {
        "shift": [f"{name} = Add({x}, {draft.weight(f'{name}_v', CHANNELS)})"],
        "less": [f"{name} = Sub({x}, {draft.weight(f'{name}_l', 5, CHANNELS)})"],
        "scale": [f"{name} = Mul({draft.weight(f'{name}_c', 1, mean=1.5)}, {x})"],
        "rows": [f"{name}_r = Reshape({x}, {name}_flat)", f"{name} = Reshape({name}_r, {name}_shape)"],
        "turn": [f"{name}_t = Transpose<perm = [1, 0, 2]>({x})", f"{name} = Transpose<perm = [1, 0, 2]>({name}_t)"],
        "join": [
            f"{name}_f = Slice({x}, {name}_zero, {name}_one, {name}_one)",
            f"{name} = Concat<axis = 1>({name}_f, {draft.weight(f'{name}_j', 2, 4, CHANNELS)})",
        ],
        "cut": [f"{name}_k = Slice({x}, {name}_one, {name}_two, {name}_one)", f"{name} = Add({x}, {name}_k)"],
        "same": [f"{name} = Identity({x})"],
        "tanh": [f"{name} = Tanh({x})"],
        "gate": [f"{name} = Mul({x}, {draft.weight(f'{name}_g', CHANNELS)})"],
        "one": [f"{name} = Add({x}, {draft.weight(f'{name}_o', 1)})"],
    }[kind]
    draft.lines += lines
    return name


def stream(steps: list[str], seed: int) -> onnx.ModelProto:
    """Embeddings, the steps, and a norm that a linear layer reads."""
    draft = Draft(np.random.default_rng(seed))
    x = draft.embedding()
    for number, kind in enumerate(steps):
        x = step(draft, kind, number, x)
    draft.linear("head", draft.norm("final", x), CHANNELS, CHANNELS)
    draft.lines.append("y = Identity(head_y)")
    used = "\n".join(draft.lines)
    draft.arrays = {name: array for name, array in draft.arrays.items() if name in used}
    return draft.model(f"[2, 5, {CHANNELS}] y")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(HARMLESS), max_size=6), st.integers(0, 99))
def test_harmless_steps(steps: list[str], seed: int) -> None:
    source = stream(steps, seed)
    model, norms = prepared(source)
    before = outputs_of(model)[0]
    after, folds = fold_centring(model, norms, PARITY)
    assert not folds.left, folds.left
    assert {norm.kind for norm in after} == {"rms"}
    assert relative_error(outputs_of(model)[0], before) < 3 * TOLERANCE["float32"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(HARMLESS + HARMFUL), max_size=6), st.integers(0, 99), st.booleans())
def test_all_steps(steps: list[str], seed: int, reductions: bool) -> None:
    source = stream(steps, seed)
    model, norms = prepared(source)
    before = outputs_of(model)[0]
    _, folds = fold_centring(model, norms, PARITY, reductions=reductions)
    told = [site for fold in folds.done for site in fold.sites] + [left.site for left in folds.left]
    assert sorted(told) == sorted(norm.site_name for norm in norms)
    assert "would move" not in " ".join(left.reason for left in folds.left)  # the reasoning is right by itself
    assert relative_error(outputs_of(model)[0], before) < 3 * TOLERANCE["float32"]


@pytest.mark.parametrize("bias", [False, True])
def test_patches_of_an_image(bias: bool) -> None:
    """As in vision transformers: the channels that a Conv makes come last by Reshape and Transpose."""
    rng = np.random.default_rng(4)
    arrays = {
        "kernel": rng.standard_normal((8, 3, 2, 2)) + 0.3,
        "offset": rng.standard_normal(8) + 1,
        "cls": rng.standard_normal((1, 1, 8)) + 1,
        "places": rng.standard_normal((1, 5, 8)) + 1,
        "scale": rng.uniform(0.5, 1.5, 8),
    }
    source = model_of(
        f"""patches = Conv<strides = [2, 2]>(image, kernel{", offset" if bias else ""})
        shape = Constant<value_ints = [2, 8, 4]>()
        flat = Reshape(patches, shape)
        rows = Transpose<perm = [0, 2, 1]>(flat)
        lead = Constant<value_ints = [2, 1, 8]>()
        first = Expand(cls, lead)
        tokens = Concat<axis = 1>(first, rows)
        x = Add(tokens, places)
        y = LayerNormalization(x, scale)""",
        signature="(float[2, 3, 4, 4] image) => (float[2, 5, 8] y)",
        **{name: array.astype(np.float32) for name, array in arrays.items() if bias or name != "offset"},
    )
    image = rng.standard_normal((2, 3, 4, 4)).astype(np.float32)
    parity = Parity(lambda model: run(model, image))
    model, norms = prepared(source)
    before = run(model, image)[0]
    after, folds = fold_centring(model, norms, parity)
    assert [norm.kind for norm in after] == ["rms"]
    assert {"kernel", "cls", "places"} <= set(folds.changed_initializers)
    assert relative_error(run(model, image)[0], before) < TOLERANCE["float32"]


def run(model: ir.Model, image: np.ndarray) -> list[np.ndarray]:
    return run_ort(ir.to_proto(model), {"image": image})
