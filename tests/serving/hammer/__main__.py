"""Servers under requests that are good, malformed, cut off and too large, all at once.

    python -m tests.serving.hammer triton --seconds 600

A line for each kind of request says what became of how many: answered rightly; refused, with an error of its own;
closed without one, where what came was no HTTP; cut by the client. Ends with 1 if a request did not end with its own
answer or an error of its own, or if memory, descriptors or files of shared memory grew.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dynorm_onnx import convert_model
from tests.shipped import MODEL, TEXT


def main() -> int:
    """Runs the command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", choices=("triton", "genai", "ray"))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--model", type=Path, help="a converted file of the shipped model; default: converted anew")
    parser.add_argument("--mebibytes", type=int, default=200, help="of the largest bodies (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder) / "byte_llama.dyisru.onnx"
        if options.model is None:
            convert_model(MODEL, output=model, data=TEXT, method="fit", validate=False, time=False)
        start = time.monotonic()
        made = importlib.import_module(f"tests.serving.hammer.{options.server}").hammer(
            model, options.seconds, options.mebibytes
        )
    print(*made.tally.lines(), *made.watch.lines(), sep="\n")
    median, late, most = np.quantile(made.tally.seconds or [0], (0.5, 0.99, 1.0))
    print(
        f"{made.tally.ended} requests in {time.monotonic() - start:.0f} s, {made.tally.good()} of them good: median "
        f"{1e3 * median:.0f} ms, 99 % {1e3 * late:.0f} ms, at most {1e3 * most:.0f} ms; at most "
        f"{made.tally.longest_gap:.1f} s without an answer"
    )
    for fault in made.faults:
        print(f"FAULT: {fault}")
    return 1 if made.faults else 0


if __name__ == "__main__":
    sys.exit(main())
