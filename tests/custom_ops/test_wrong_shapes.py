"""Shapes that do not fit, when a node runs and when it is made: a sentence that names them, whatever they are."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from dynorm_onnx.functions import OPERATORS
from tests.custom_ops.nodes import NUMPY_TYPE, Node, every_operator, model_of
from tests.custom_ops.test_operators import session_of
from tests.tolerances import TOLERANCE, relative_error

Arrays = dict[str, np.ndarray]
TYPES = ("float32", "float16", "double")  # those that can be fed; bfloat16 has the same code in front of it
any_shape = st.lists(st.integers(0, 3) | st.integers(4, 20), max_size=3).map(tuple) | st.just((1,) * 10)
one_axis = st.tuples(st.integers(0, 40))


def untyped(node: Node, constants: Arrays) -> onnx.ModelProto:
    """A model of the node in which no shape is declared; `constants` are initializers, the rest are inputs."""
    model = model_of(node, constants=False, casts=False)
    kept = [value for value in model.graph.input if value.name not in constants]
    for value in kept:
        value.type.tensor_type.ClearField("shape")
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


@functools.cache
def shared_session(op_type: str, dtype: str) -> Any:
    """One session for all shapes, so that a run follows on one that failed."""
    return session_of(untyped(Node(op_type, dtype), {}))


def wrong(node: Node, arrays: Arrays) -> tuple[str, ...]:
    """What the sentence must say of the first input that does not fit: nothing where all do."""
    said = {name: f"{name.replace('x', 'X')} has shape {list(array.shape)}" for name, array in arrays.items()}
    weight = arrays["weight"].shape
    if len(weight) != 1:
        return said["weight"], "must have one axis, the channels"
    if arrays["bias"].shape != weight:
        return said["bias"], said["weight"]
    for name in node.kind.parameter_names:
        if arrays[name].shape not in ((1,), weight):
            return said[name], said["weight"]
    if node.form.coupled:
        channels = arrays["channels"]
        if channels.ndim != 1 or channels.size == 0:
            return said["channels"], "must have one axis of at least one element"
        if arrays["coupling"].shape != channels.shape:
            return said["coupling"], said["channels"]
        beyond = [c for c in channels if not 0 <= c < weight[0]]
        if beyond:
            return f"channels holds {beyond[0]}, and must hold indices of channels, 0 to {weight[0] - 1}."
    x = arrays["x"].shape
    if not x or x[-1] != weight[0]:
        return said["x"], said["weight"]
    if node.skip and arrays["skip"].shape != x:
        return said["skip"], said["x"]
    return ()


@st.composite
def cases(draw: st.DrawFn) -> tuple[Node, Arrays]:
    """A node and its inputs: of shapes that fit, then one of them perhaps of another shape."""
    channels, parameter_size = draw(st.integers(0, 40)), draw(st.booleans())
    node = Node(draw(st.sampled_from(sorted(OPERATORS))), draw(st.sampled_from(TYPES)), channels)
    leading = draw(any_shape)
    shapes: dict[str, tuple[int, ...]] = {"x": (*leading, channels)}
    if node.skip:
        shapes["skip"] = shapes["x"]
    shapes |= {"weight": (channels,), "bias": (channels,)}
    shapes |= {name: (channels if parameter_size else 1,) for name in node.kind.parameter_names}
    if node.form.coupled:
        shapes |= dict.fromkeys(("channels", "coupling"), (draw(st.integers(1, 5)),))
    changed = draw(st.none() | st.sampled_from(sorted(shapes)))
    if changed:
        shapes[changed] = draw(any_shape | one_axis)
    random = np.random.default_rng(draw(st.integers(0, 99)))
    arrays = {name: random.uniform(0.3, 2.0, shape).astype(np.float32) for name, shape in shapes.items()}
    for name in ("x", "skip", "weight", "bias"):
        if name in arrays:
            arrays[name] = arrays[name].astype(NUMPY_TYPE[node.dtype])
    if node.form.coupled:
        indices = st.lists(st.integers(-1 if draw(st.booleans()) else 0, max(channels - 1, 0)), min_size=9)
        size = shapes["channels"]
        arrays["channels"] = np.resize(np.array(draw(indices), np.int64), size)
    return node, arrays


@settings(max_examples=300)
@given(case=cases(), constants=st.booleans())
def test_every_shape_is_computed_or_named(case: tuple[Node, Arrays], constants: bool) -> None:
    node, arrays = case
    parameters = {name: value for name, value in arrays.items() if name not in ("x", "skip")}
    expected = wrong(node, arrays)

    def outputs() -> list[np.ndarray]:
        if not constants:
            return shared_session(node.op_type, node.dtype).run(None, arrays)
        given = {name: value for name, value in arrays.items() if name not in parameters}
        return session_of(untyped(node, parameters)).run(None, given)

    if expected:
        with pytest.raises(Exception, match=f"dynorm::{node.op_type}: input ") as caught:
            outputs()
        for words in expected:
            assert words in str(caught.value)
        return
    y, *residual = outputs()
    x = arrays["x"] + arrays["skip"] if node.skip else arrays["x"]
    assert y.shape == x.shape
    assert relative_error(y, node.function_of(x, parameters)) < TOLERANCE[node.dtype]
    if node.skip:
        np.testing.assert_array_equal(residual[0], x)


@every_operator
def test_a_session_runs_on_after_shapes_that_do_not_fit(op_type: str) -> None:
    node = Node(op_type)
    session, feeds = session_of(untyped(node, node.parameters())), node.feeds(2, 3)
    before = session.run(None, feeds)
    for name in feeds:
        for shape in [(), (0,), (47,), (2, 3, 49), (2, 48, 3), (1,) * 10]:
            with pytest.raises(Exception, match=f"dynorm::{op_type}: input {name.replace('x', 'X')} has shape"):
                session.run(None, feeds | {name: np.zeros(shape, np.float32)})
    for output, again in zip(before, session.run(None, feeds), strict=True):
        np.testing.assert_array_equal(again, output)


def refused(model: onnx.ModelProto, op_type: str) -> None:
    with pytest.raises(Exception, match=op_type):
        session_of(model)


@pytest.mark.parametrize("op_type", ["DyT", "SkipCoupledDerf"])
def test_types_and_numbers_that_do_not_fit_are_refused_when_the_session_is_made(op_type: str) -> None:
    """Each input of every other type, left out, and missing at the end; outputs left out."""
    node = Node(op_type)
    whole = untyped(node, {})
    for value in whole.graph.input:
        for number in (
            TensorProto.FLOAT,
            TensorProto.FLOAT16,
            TensorProto.DOUBLE,
            TensorProto.INT64,
            TensorProto.STRING,
        ):
            if number != value.type.tensor_type.elem_type:
                model = copy.deepcopy(whole)
                next(v for v in model.graph.input if v.name == value.name).type.tensor_type.elem_type = number
                refused(model, op_type)
    for names in ("input", "output"):
        for i in range(len(getattr(whole.graph.node[0], names))):
            emptied, shorter = copy.deepcopy(whole), copy.deepcopy(whole)
            getattr(emptied.graph.node[0], names)[i] = ""
            del getattr(shorter.graph.node[0], names)[i:]
            for model in (emptied, shorter):
                left = set(model.graph.node[0].output)
                kept = [output for output in model.graph.output if output.name in left]
                del model.graph.output[:]
                model.graph.output.extend(kept)
                refused(model, op_type)
