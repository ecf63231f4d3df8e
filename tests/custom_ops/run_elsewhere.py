"""Runs models with the library in another interpreter: another ONNX Runtime, or another instruction set.

    python run_elsewhere.py LIBRARY FOLDER

For every NAME.onnx in FOLDER, NAME.npz holds the feeds; the outputs go to NAME.out.npz. Needs onnxruntime and
numpy only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def main(library: str, folder: Path) -> None:
    print(ort.__version__)
    for path in sorted(folder.glob("*.onnx")):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.register_custom_ops_library(library)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        with np.load(path.with_suffix(".npz")) as feeds:
            outputs = session.run(None, dict(feeds))
        np.savez(path.with_suffix(".out.npz"), *outputs)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
