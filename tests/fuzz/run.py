"""Damaged files by the thousand: each must be converted, or refused in a sentence.

    python -m tests.fuzz.run --seconds 3600 --keep FOLDER

Starts from small models of every spelling of a norm, in bodies, quantised and beside attention, and from the shipped
one. Ends with 1 if a file made the tool crash, hang or print a traceback; such files are kept in FOLDER, with what was
written to stderr.
"""

from __future__ import annotations

import argparse
import collections
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx

from tests.fuzz.mutations import mutate, mutate_bytes
from tests.fuzz.seeds import seeds
from tests.fuzz.trial import Outcome, convert

OPTIONS = ("--data", "random", "--samples", "4", "--max-length", "8", "--no-time", "--quiet")
METHODS = (("--method", "fit"), ("--method", "reconstruct"), ("--to", "rmsnorm"), ("--dry-run",), ("--inline",))


def trials(models: Sequence[onnx.ModelProto], seed: int, folder: Path) -> Iterator[tuple[str, Path, Outcome]]:
    """Without end: what was tried, the damaged file, and what became of it. The same for the same seed."""
    number = 0
    while True:
        rng = np.random.default_rng((seed, number))
        model = models[rng.integers(1, len(models)) if rng.random() < 0.9 else 0]
        by_bytes = rng.random() < 0.3
        data = mutate_bytes(model.SerializeToString(), rng) if by_bytes else mutate(model, rng).SerializeToString()
        method = METHODS[rng.integers(len(METHODS))]
        path = folder / f"{seed}-{number}.onnx"
        path.write_bytes(data)
        yield f"{'bytes' if by_bytes else 'structure'} {' '.join(method)}", path, convert(path, *OPTIONS, *method)
        for left in folder.glob(f"{seed}-{number}.*"):
            left.unlink()
        number += 1


def main() -> int:
    """Runs the command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the files that are faults")
    args = parser.parse_args()
    ends: collections.Counter[str] = collections.Counter()
    faults = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        started = time.perf_counter()
        for what, path, outcome in trials(seeds(), args.seed, Path(folder)):
            ends[outcome.signal or f"exit {outcome.code}"] += 1
            if outcome.fault is not None:
                faults += 1
                print(f"{path.name} ({what}): {outcome.fault}", flush=True)
                if args.keep is not None:
                    args.keep.mkdir(parents=True, exist_ok=True)
                    for file in (path, path.with_suffix(".log")):
                        shutil.copy(file, args.keep)
            if time.perf_counter() - started > args.seconds:
                break
    told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    print(f"{ends.total()} files in {time.perf_counter() - started:.0f} s: {told}; {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
