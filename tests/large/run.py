"""Large models through `fit` and `--to rmsnorm`, with less memory than they are large: peaks and times, as a table.

    python -m tests.large.run --gib 0.5 1 2.5 4 --limit 1.25 --folder FOLDER

For each size a Llama of TinyLlama's shape, of as many layers as that takes, is written to FOLDER with random float16
weights in an external file, converted in a process of its own, and removed: with RMSNorms by `--method fit`, with
LayerNorms `--to rmsnorm`. The limit is one of private memory (`ulimit -d`), of which pages of files are no part: the
system takes those back when it needs them. Ends with 1 if a conversion failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from models.large_llama.build import Shape, build, random_tokens
from tests.large.peak import Peak, convert

WAYS = {"--method fit": "rms", "--to rmsnorm": "layer"}
"""What is done, and the norms of the model that it is done to."""
OPTIONS = ("--samples", "4", "--no-time", "--quiet")
GIB = 1 << 30


def row(gib: float, way: str, limit: float | None, folder: Path) -> tuple[str, Peak]:
    """One line of the table."""
    shape = Shape(norms=WAYS[way]).of_gib(gib)
    model, tokens = folder / "large_llama.onnx", folder / "tokens.npz"
    build(shape, model)
    random_tokens(shape.vocabulary, tokens)
    size = (folder / "large_llama.onnx.data").stat().st_size
    bound = None if limit is None else int(limit * GIB)
    peak = convert(model, "--data", str(tokens), *OPTIONS, *way.split(), data_limit=bound)
    told = "done" if peak.code == 0 else peak.stderr.strip().splitlines()[-1]
    own, counted = f"{peak.anonymous / GIB:.2f}", f"{peak.data / GIB:.2f}"
    figures = f"{size / GIB:.2f} | {shape.layers} | {own} | {counted} | {peak.file / GIB:.2f}"
    return f"| `{way}` | {figures} | {peak.seconds:.0f} | {peak.processor_seconds:.0f} | {told} |", peak


def main() -> int:
    """Runs the command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, nargs="+", default=[0.5, 1, 2.5, 4])
    parser.add_argument("--limit", type=float, help="GiB that each process may have; default: none is set")
    parser.add_argument("--folder", type=Path, help="for the model and what it becomes: twice the largest size")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    failed = 0
    print("| | model, GiB | layers | peak: own, GiB | as the limit counts | files | s | processor s | |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|", flush=True)
    for gib in args.gib:
        for way in args.ways:
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                line, peak = row(gib, way, args.limit, Path(folder))
            print(line, flush=True)
            failed += peak.code != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
