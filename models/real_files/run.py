"""Convert the files of the catalogue as their users would, and write the table of what became of them.

    python -m models.real_files.run [--only NAME] [--write docs/real_models.md]

Each file three times, in processes of their own: the norms that are found (--dry-run), `--to rmsnorm`, `--to dyisru`.
Results stay in CACHE/results, so that the table is whole after `--only` too. Exits with 1 where a conversion ended
in a way that none may.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from models.real_files import data, fetch, table
from models.real_files.catalogue import BY_NAME, FILES, RealFile
from models.real_files.outcome import FileOutcome, Outcome, faults

CACHE = Path.home() / ".cache" / "dynorm-onnx" / "real_files"
SAMPLES = 64
LIMIT = 1800.0  # seconds of one conversion
STEPS = {
    "find": ["--dry-run"],
    "rmsnorm": ["--to", "rmsnorm", "--no-time", "--samples", "20"],
    "dyisru": ["--to", "dyisru", "--no-time", "--samples", str(SAMPLES)],
}


def convert(model: Path, options: list[str], limit: float = LIMIT) -> Outcome:
    """One run of the command line on a model; what it says and how it ends, whatever that is."""
    command = [sys.executable, "-m", "dynorm_onnx.convert", str(model), *options, "--json"]
    begun = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return Outcome(None, time.perf_counter() - begun, None, f"stopped after {limit:.0f} s")
    seconds = time.perf_counter() - begun
    return Outcome(done.returncode, seconds, _report(done.stdout), done.stderr)


def _report(stdout: str) -> dict[str, Any] | None:
    try:
        return json.loads(stdout)
    except ValueError:
        return None


def run(file: RealFile, cache: Path) -> FileOutcome:
    """Fetch a file, make its data, and convert it by every step."""
    model = fetch.path_of(file, cache)
    given: list[str] = []
    if file.data is not None:
        given = ["--data", str(data.written(file.data, model, cache / "data" / file.name, cache))]
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        for step, options in STEPS.items():
            output = Path(folder) / f"{step}.onnx"
            outcomes[step] = convert(model, [*options, *given, "-o", str(output)]).without(folder, str(cache))
    size = sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*"))  # with external data
    return FileOutcome(file.name, size, outcomes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=tuple(BY_NAME), metavar="NAME", help="repeatable")
    parser.add_argument("--cache", type=Path, default=CACHE, help="of downloads, data and results (%(default)s)")
    parser.add_argument("--write", type=Path, help="the page to write the table to")
    args = parser.parse_args()
    results = args.cache / "results"
    results.mkdir(parents=True, exist_ok=True)
    bad = 0
    chosen = FILES if args.only is None else [BY_NAME[name] for name in args.only]
    for file in chosen:
        outcome = run(file, args.cache)
        (results / f"{file.name}.json").write_text(json.dumps(dataclasses.asdict(outcome)) + "\n")
        found = faults(outcome)
        bad += bool(found)
        print(f"{file.name}: {table.summary(outcome)}", *(f"fault: {fault}" for fault in found), sep="\n  ", flush=True)
    if args.write is not None:  # with what earlier runs of other files left
        there = [results / f"{file.name}.json" for file in FILES]
        args.write.write_text(table.document([FileOutcome.read(path) for path in there if path.exists()]))
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
