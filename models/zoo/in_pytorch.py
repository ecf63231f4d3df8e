"""Whether a file computes in PyTorch what it computes in ONNX Runtime: what `--method distil` rests on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dynorm_onnx.calibration.data import load_calibration
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.pytorch.graph import GraphModule
from dynorm_onnx.runtime.session import make_session


def error_in_pytorch(path: Path, *, length: int) -> float:
    """The worst relative error of a float output, PyTorch against ONNX Runtime, on inputs as a conversion makes them.

    Raises what dynorm_onnx.pytorch.graph raises where it has no such operator.
    """
    model = model_io.load(path)
    session = make_session(path, threads=1)
    data = load_calibration(
        model, None, session=lambda: session, samples=2, max_length=length, seed=0, folder=path.parent, drawn=True
    )
    feeds = data.validation[0]
    with torch.no_grad():
        got = GraphModule(model)(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    names = [output.name for output in session.get_outputs()]
    wanted = dict(zip(names, session.run(names, feeds), strict=True))
    return max(
        float(np.linalg.norm(got[name].numpy() - array) / (np.linalg.norm(array) or 1.0))
        for name, array in wanted.items()
        if np.issubdtype(array.dtype, np.floating)
    )
