"""What models are given and what becomes of it, in files that a program of any language reads and writes.

feeds.json has each input's dims and data, integers; NAME.bin is NAME.onnx's output, raw float32, and NAME.error what
the runtime says instead. The programs import nothing of this project: they run where it is not installed.
"""

import json
import sys
from pathlib import Path

import numpy as np


def run_all(load):
    """Runs every model of the folder by load(path)(feeds)."""
    folder, results = map(Path, sys.argv[1:3])
    described = json.loads((folder / "feeds.json").read_text())
    feeds = {name: np.array(feed["data"], np.int64).reshape(feed["dims"]) for name, feed in described.items()}
    for path in sorted(folder.glob("*.onnx")):
        try:
            np.ascontiguousarray(load(path)(feeds), np.float32).tofile(results / f"{path.stem}.bin")
        except Exception as error:  # of any runtime's own kind
            (results / f"{path.stem}.error").write_text(str(error) or type(error).__name__)
