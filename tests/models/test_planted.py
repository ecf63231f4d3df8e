"""The planted model has the trait that it is there for, and is about as good a model as the one it is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

import dynorm_onnx
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.runtime.session import make_session
from dynorm_onnx.runtime.validate import validate
from models.planted.build import LAYERS, MASSIVE, build
from tests.shipped import MODEL, NORMS, TEXT

WINDOWS, LENGTH = 16, 256


def windows() -> np.ndarray:
    """[WINDOWS, LENGTH] bytes from all over the held-out text."""
    text = np.frombuffer(TEXT.read_bytes(), np.uint8).astype(np.int64)
    starts = np.linspace(0, text.size - LENGTH, WINDOWS).astype(int)
    return np.stack([text[start : start + LENGTH] for start in starts])


def streams(path: Path) -> list[np.ndarray]:
    """What each norm is given, [WINDOWS, LENGTH, channels]."""
    model = onnx.load(path)
    names = [node.input[0] for node in model.graph.node if node.op_type == "Pow"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return make_session(model).run(names, {"input_ids": windows()})


def test_the_first_token_is_massive_in_one_channel_behind_the_first_layer(planted: Path) -> None:
    before, behind = streams(planted)[:2], streams(planted)[2:]
    assert len(behind) == 2 * LAYERS - 1
    for stream in before:
        lengths = np.linalg.norm(stream, axis=-1)
        assert lengths[:, 0].max() < 2 * np.median(lengths)
    for stream in behind:
        lengths = np.linalg.norm(stream, axis=-1)
        assert lengths[:, 0].min() > 50 * np.median(lengths[:, 1:])
        assert (np.abs(stream[:, 0, MASSIVE]) > 0.99 * lengths[:, 0]).all()
        others = lengths[:, 8:]
        assert others.std() < 0.25 * others.mean() and others.max() < 3 * np.median(others)
        assert stream[:, 1:, MASSIVE].std() > 0.1  # the channel is alive for the others too


def test_its_loss_is_near_that_of_the_model_it_is_made_of(planted: Path) -> None:
    found = validate(make_session(MODEL), make_session(planted), [{"input_ids": windows()}]).quality
    assert found is not None and found.loss_original is not None and found.loss_converted is not None
    assert found.loss_original < 1.1
    assert found.loss_converted < found.loss_original + 0.1


def test_the_idle_heads_look_at_the_first_token(planted: Path) -> None:
    model = onnx.load(planted)
    names = [node.output[0] for node in model.graph.node if node.op_type == "Softmax"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    _, *later = make_session(model).run(names, {"input_ids": windows()})
    for attention in later:
        assert attention[:, -1, :, 0].mean() > 0.9


def test_every_norm_is_found(planted: Path) -> None:
    model = model_io.prepare(model_io.load(planted))
    assert len(dynorm_onnx.find_sites(model).sites) == NORMS


def test_it_is_the_same_every_time(planted: Path) -> None:
    onnx.checker.check_model(onnx.load(planted), full_check=True)
    assert build().SerializeToString(deterministic=True) == onnx.load(planted).SerializeToString(deterministic=True)
