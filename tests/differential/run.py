"""Composed graphs by the thousand: rewritten and replaced in memory, and some of them converted from file to file.

    python -m tests.differential.run --graphs 5000 --seed 0 --every 50

Ends with 1 if a graph comes out other than it should, and names the seeds of those.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.progress import track

from tests.differential.checks import check_conversion, check_replacement, check_rewrite
from tests.differential.composer import compose


def checks(seed: int, every: int, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """What is to hold of the graphs of a seed, with a name for each; of every so many, of whole conversions too."""
    yield "to rmsnorm", lambda: check_rewrite(compose(seed))
    yield "to dyisru", lambda: check_replacement(seed)
    if seed % every == 0:
        yield "converted", lambda: check_conversion(seed, folder)


def main() -> int:
    """Runs the command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first one")
    parser.add_argument("--every", type=int, default=10, help="graph is also converted from file to file")
    args = parser.parse_args()
    started, wrong, norms = time.perf_counter(), 0, 0
    for seed in track(range(args.seed, args.seed + args.graphs), description="graphs", transient=True):
        norms += len(compose(seed).norms)
        with tempfile.TemporaryDirectory() as folder:
            for name, check in checks(seed, args.every, Path(folder)):
                try:
                    check()
                except Exception as error:
                    wrong += 1
                    print(f"{name}, seed {seed}: {type(error).__name__}: {str(error)[:500]}", flush=True)
    print(f"{args.graphs} graphs with {norms} norms in {time.perf_counter() - started:.0f} s: {wrong} came out wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
