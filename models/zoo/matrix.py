"""Every architecture by every exporter: are all norms found, is their exact rewrite exact, can they be replaced.

    python -m models.zoo.matrix [--arch NAME ...] [--exporter NAME ...] [--write docs/architectures.md]

Ends with 1 if a file was exported in which a norm is missed, the parity fails or the conversion does not run.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from models.zoo.architectures import ARCHITECTURES
from models.zoo.cell import Cell, ExporterError, check, reason, require_model
from models.zoo.columns import COLUMNS, Column
from models.zoo.norms import running_norms
from models.zoo.subject import Subject, tiny
from models.zoo.table import document


def measure(names: Sequence[str], columns: Sequence[str]) -> Iterator[Cell]:
    """The cells, as they are done; a file is exported once for all columns that need it."""
    for name in names:
        with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
            yield from _row(tiny(name), [COLUMNS[column] for column in columns], Path(folder))


def _row(subject: Subject, columns: Sequence[Column], folder: Path) -> Iterator[Cell]:
    norms = len(running_norms(subject.module, subject.example))
    exported: dict[str, list[Path] | ExporterError] = {}
    for column in columns:
        start = time.perf_counter()
        cell = Cell(subject.name, column.name, norms, seconds=0.0)
        if column.source not in exported:
            exported[column.source] = _exported(subject, COLUMNS[column.source], folder)
        outcome = exported[column.source]
        if column.optimise is not None and not isinstance(outcome, ExporterError):
            outcome = _optimised(subject, column, outcome)
        spent = time.perf_counter() - start
        if isinstance(outcome, ExporterError):
            yield dataclasses.replace(cell, seconds=spent, no_file=str(outcome))
        else:
            yield check(outcome, dataclasses.replace(cell, seconds=spent))


def _exported(subject: Subject, column: Column, folder: Path) -> list[Path] | ExporterError:
    place = folder / column.name
    place.mkdir()
    try:
        files = column.export(subject, place)
        require_model(files, subject, approximate="genai" in column.name)
        return files
    except ExporterError as error:
        return error
    except Exception as error:  # exporters raise anything
        return ExporterError(reason(error))


def _optimised(subject: Subject, column: Column, files: Sequence[Path]) -> list[Path] | ExporterError:
    optimised = [path.with_name(f"{column.name.rpartition('+')[2]}.onnx") for path in files]
    try:
        assert column.optimise is not None
        for path, target in zip(files, optimised, strict=True):
            column.optimise(subject, path, target)
        require_model(optimised, subject, approximate=False)
        return optimised
    except ExporterError as error:
        return error
    except Exception as error:
        return ExporterError(reason(error))


def main() -> int:
    """Runs the command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=tuple(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--exporter", nargs="+", choices=tuple(COLUMNS), default=list(COLUMNS))
    parser.add_argument("--write", type=Path, help="the Markdown file to write the table to")
    args = parser.parse_args()
    _quiet()
    start = time.process_time()
    cells = []
    for cell in measure(args.arch, args.exporter):
        cells.append(cell)
        print(_line(cell), flush=True)
    seconds = time.process_time() - start
    failed = [cell for cell in cells if not cell.passes]
    print(f"{len(cells)} cells, {len(failed)} failed, {seconds:.0f} s of one core")
    if args.write is not None:
        args.write.write_text(document(cells, seconds))
    return 1 if failed else 0


def _line(cell: Cell) -> str:
    head = f"{cell.architecture:<11} {cell.column:<31} {cell.seconds:5.1f} s  "
    if cell.no_file is not None:
        return f"{head}no file: {cell.no_file}"
    parts = [
        f"{'ok' if cell.passes else 'FAILED'}  {cell.sites}/{cell.norms} norms, {cell.replaced} replaced",
        "not rewritten" if cell.parity is None else f"parity {cell.parity:.0e}",
        f"in PyTorch {cell.not_in_pytorch if cell.in_pytorch is None else f'{cell.in_pytorch:.0e}'}",
        cell.failure,
    ]
    return head + ", ".join(part for part in parts if part is not None)


def _quiet() -> None:
    """One core, nothing from the network, and none of the exporters' chatter."""
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main())
