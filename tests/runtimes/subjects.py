"""The converted files that runtimes and tools are tried on: the shipped model by every function, in both forms."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx

from dynorm_onnx import convert_model
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.replace.inline import inlined
from dynorm_onnx.runtime.session import make_session
from tests.shipped import MODEL, TEXT

FUNCTIONS = {
    "DyISRU": ("dyisru", 0),
    "DyISRU, 4 channels coupled": ("dyisru", 4),
    "DyT": ("dyt", 0),
    "Derf": ("derf", 0),
}
"""Column of the tables -> the function, and how many channels stay in a norm's sum."""
FORMS = ("with functions", "`--inline`")


@dataclasses.dataclass(frozen=True)
class Subjects:
    """A folder with all files, and what they give out: in ONNX Runtime by the bodies, without optimisations."""

    folder: Path
    feeds: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]  # by column

    def path(self, column: str, form: str) -> Path:
        """The file of one column in one form."""
        return self.folder / f"{list(FUNCTIONS).index(column)}-{FORMS.index(form)}.onnx"


def make(folder: Path) -> Subjects:
    """Converts the shipped model, quickly: what it is good for is not asked here."""
    feeds = {"input_ids": np.frombuffer(TEXT.read_bytes()[:32], np.uint8).astype(np.int64).reshape(2, 16)}
    described = {name: {"dims": list(ids.shape), "data": ids.ravel().tolist()} for name, ids in feeds.items()}
    (folder / "feeds.json").write_text(json.dumps(described))
    subjects = Subjects(folder, feeds, {})
    for column, (function, coupled) in FUNCTIONS.items():
        path = subjects.path(column, FORMS[0])
        convert_model(
            MODEL, to=function, coupled=coupled, output=path, data=TEXT, samples=4, max_length=32, method="fit",
            validate=False, time=False, rotate=False, optimize="none",
        )  # fmt: skip
        coupled_nodes = [node for node in onnx.load(path).graph.node if "Coupled" in node.op_type]
        assert bool(coupled_nodes) == bool(coupled), f"{column}: what the column says is not in the file"
        model_io.save(inlined(model_io.load(path)), subjects.path(column, FORMS[1]))
        session = make_session(path, kernels=False, optimization="none", threads=1)
        subjects.expected[column] = session.run(["logits"], feeds)[0]
    return subjects
