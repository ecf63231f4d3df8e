"""Third-party files: what is found in them is what their index counted, and lowering changes no output.

The files are not part of the repository. They are looked for in the folder that the environment
variable DYNORM_CORPUS names, or in ../shared/corpus beside the checkout.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from dynorm_onnx.graph.files.model_io import load, prepare
from dynorm_onnx.graph.lower import lower
from dynorm_onnx.graph.norm_site import SitesFound
from dynorm_onnx.graph.sites.find import find_sites
from dynorm_onnx.runtime.session import runnable
from tests.builders.convert import CANONICAL, is_checked, replaced
from tests.builders.execute import run_ort
from tests.builders.feeds import drawn_feeds, stored_feeds
from tests.tolerances import relative_error

CORPUS = Path(os.environ.get("DYNORM_CORPUS", Path(__file__).parents[4] / "shared" / "corpus"))
INDEX = json.loads((CORPUS / "INDEX.json").read_text()) if (CORPUS / "INDEX.json").is_file() else []
FOUND = ("RMS", "LN", "FUNC-EXPANDED", "NOT-LAST-AXIS", "MULTI-AXIS", "EMBED", "QKNORM")
NOTHING = ("LEAVE", "ALL-AXES")

pytestmark = pytest.mark.skipif(not INDEX, reason=f"no corpus in {CORPUS}; set DYNORM_CORPUS")


@dataclasses.dataclass(frozen=True)
class Differs:
    """What is right for a file whose row in the index says something else, and why."""

    sites: int
    refused: int
    reason: str


EXPOSED = "Mean and InvStdDev are outputs of the model; the index looked at the axis first"
SEARCH = "all its norms lie in the decoder of a search operator, and are refused there"
DIFFERENCES = {
    **{
        f"test_layer_normalization_{name}": Differs(0, 1, EXPOSED)
        for name in (
            "2d_axis0", "2d_axis_negative_2",
            "3d_axis0_epsilon", "3d_axis1_epsilon", "3d_axis_negative_2_epsilon", "3d_axis_negative_3_epsilon",
            "4d_axis0", "4d_axis1", "4d_axis2",
            "4d_axis_negative_2", "4d_axis_negative_3", "4d_axis_negative_4",
        )
    },
    "tiny_gpt2_beamsearch_fp16": Differs(0, 11, SEARCH),
    "tiny_gpt2_greedysearch_fp16_padded_vocab": Differs(0, 11, SEARCH),
}  # fmt: skip
# Loaded, but no CPU kernel of ONNX Runtime runs the original, whatever it is fed. Nothing is found in them, and so
# nothing may be changed.
CANNOT_RUN = {
    "tiny_gpt2_beamsearch_fp16": "BeamSearch takes no float16 model on the CPU",
    "tiny_gpt2_greedysearch_fp16_padded_vocab": "GreedySearch takes no float16 model on the CPU",
}
# Inputs that must have certain shapes.
SHAPES = {
    "issue_19480": {"shape_input": (1, 128, 4, 4), "in0_input": (1, 32, 64), "in1_input": (1, 32, 64)},
    "embed_layer_norm_format7_opset13": {"input_ids": (2, 2), "input_mask": (2, 2)},
}
EVERY_FILE = pytest.mark.parametrize("row", INDEX, ids=lambda row: key(row))


def key(row: dict[str, Any]) -> str:
    """The name of a file in DIFFERENCES: its own, or its folder's where all are called model.onnx."""
    path = Path(row["file"])
    return path.parent.name if path.stem == "model" else path.stem


def expectation(row: dict[str, Any]) -> tuple[int, int]:
    """How many sites and how many refusals the row of the index stands for."""
    if key(row) in DIFFERENCES:
        differs = DIFFERENCES[key(row)]
        return differs.sites, differs.refused
    counts = row["v"].items()
    assert all(verdict.startswith((*FOUND, *NOTHING, "AUX-OUTPUT-USED")) for verdict, _ in counts)
    sites = sum(count for verdict, count in counts if verdict.startswith(FOUND))
    return sites, row["v"].get("AUX-OUTPUT-USED", 0)


def found_in(row: dict[str, Any]) -> tuple[ir.Model, SitesFound]:
    prepared = prepare(load(CORPUS / row["file"]))
    return prepared, find_sites(prepared, load=runnable)


@EVERY_FILE
def test_found_as_the_index_counts(row: dict[str, Any]) -> None:
    _, found = found_in(row)
    assert (len(found.sites), len(found.refused)) == expectation(row), found


@EVERY_FILE
def test_conversion(row: dict[str, Any]) -> None:
    """Lowering changes no output; a function in the place of every norm leaves a model that runs."""
    original = onnx.load(CORPUS / row["file"])
    prepared, found = found_in(row)
    norms = lower(prepared, found.sites)
    assert len(norms) == len(found.sites)
    proto = ir.to_proto(prepared)
    assert [v.name for v in proto.graph.output] == [v.name for v in original.graph.output]
    assert [v.name for v in proto.graph.input] == [v.name for v in original.graph.input]
    converted = replaced(prepared, norms)
    if is_checked(original):
        assert is_checked(converted)
    if key(row) in CANNOT_RUN:
        assert [n.op_type for n in proto.graph.node] == [n.op_type for n in original.graph.node]
    elif row["load"] == "yes":
        _run_all(row, original, proto, converted)


def _run_all(
    row: dict[str, Any], original: onnx.ModelProto, proto: onnx.ModelProto, converted: onnx.ModelProto
) -> None:
    for model in (original, proto, converted):
        _make_runnable(row, model)
    feeds, before = run_original(CORPUS / row["file"], original)
    bound = 1e-2 if "FLOAT16" in row["dtype"] else 1e-5
    for old, new in zip(before, run_ort(proto, feeds), strict=True):
        assert old.shape == new.shape and old.dtype == new.dtype
        if old.dtype.kind in "fiub":
            assert relative_error(new, old) <= bound
    for output in run_ort(converted, feeds):
        assert output.dtype.kind != "f" or np.isfinite(output).all()


def _make_runnable(row: dict[str, Any], model: onnx.ModelProto) -> None:
    """What a few files need to run and to mean something, done alike to the original and to what came of it."""
    for value in model.graph.input:
        for place, size in enumerate(SHAPES.get(key(row), {}).get(value.name, ())):
            value.type.tensor_type.shape.dim[place].dim_value = size
    for node in model.graph.node:
        if node.op_type == "Attention" and len(node.input) > 3 and key(row) == "gpt2_megatron_opt_skiplayernorm":
            node.input[3] = ""  # a 4-D mask, which no CPU kernel takes
    for tensor in model.graph.initializer:
        _vary(tensor)


def _vary(tensor: onnx.TensorProto) -> None:
    """Random numbers for a matrix of all ones, as some files have for weights: after it all channels are equal, and a
    LayerNorm of equal channels shows nothing but rounding."""
    if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != 2 or min(tensor.dims) < 2:
        return
    array = onnx.numpy_helper.to_array(tensor)
    if (array == array.flat[0]).all() and array.flat[0] == 1:
        drawn = np.random.default_rng(tensor.dims[0]).normal(0, tensor.dims[0] ** -0.5, array.shape)
        tensor.CopyFrom(onnx.numpy_helper.from_array(drawn.astype(np.float32), tensor.name))


def run_original(path: Path, model: onnx.ModelProto) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """The first feeds that the model takes, and its outputs."""
    stored = stored_feeds(path, model)
    for feeds in drawn_feeds(model) if stored is None else [stored]:
        try:
            return feeds, run_ort(model, feeds)
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            reason = error
    raise AssertionError(f"{path.name} does not run as it is: {reason}")


def test_nothing_is_stale() -> None:
    """Every file that is spoken of here is in the corpus, and ONNX Runtime is of the index's opinion on loading."""
    known = {key(row) for row in INDEX}
    assert set(DIFFERENCES) | set(CANNOT_RUN) | set(SHAPES) <= known
    for row in INDEX:
        if row["load"] != "yes":
            with pytest.raises(Exception):  # noqa: B017
                ort.InferenceSession(str(CORPUS / row["file"]), providers=["CPUExecutionProvider"])


def test_replaced_models_hold_no_norm() -> None:
    """In files without a refusal nothing canonical is left."""
    for row in INDEX[:20]:
        prepared, found = found_in(row)
        if not found.refused:
            proto = replaced(prepared, lower(prepared, found.sites))
            assert not CANONICAL & {node.op_type for node in proto.graph.node}
