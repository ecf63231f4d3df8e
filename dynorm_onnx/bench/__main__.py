"""The command line of the benchmarks: arguments, rows, and how they are shown."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from dynorm_onnx.bench.models import bench_model, is_replaced, make_untrained
from dynorm_onnx.bench.operators import ELEMENT_TYPES
from dynorm_onnx.bench.ops import OpsGrid, bench_ops
from dynorm_onnx.bench.plot import plot_model, plot_ops
from dynorm_onnx.bench.show import as_json, print_model, print_ops
from dynorm_onnx.config import OPTIMIZE
from dynorm_onnx.errors import DynormError, UsageError
from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.plotting import require_matplotlib
from dynorm_onnx.runtime.session import PROVIDERS
from dynorm_onnx.runtime.user_libraries import add_option, registered
from dynorm_onnx.terminal import use_safe_streams

Row = TypeVar("Row")
Size = tuple[int, int]

OPS_SECONDS, MODEL_SECONDS, QUICK_SECONDS = 0.5, 3.0, 0.2
MODEL_ROWS, QUICK_MODEL_ROWS = ((1, 16), (1, 128), (8, 128)), ((1, 128),)
_FILE_WIDTH = 120
QUICK_OPS = OpsGrid(rows=((1, 1), (1, 128), (8, 128)), channels=(2048,))


def main(arguments: Sequence[str] | None = None, prog: str = "python -m dynorm_onnx.bench") -> int:
    """Run a benchmark; returns the exit code (2: wrong use, 3: no norm in the model)."""
    use_safe_streams()
    options = _parser(prog).parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if options.verbose:  # our own words only: onnxscript alone writes hundreds of lines at this level
        logging.getLogger("dynorm_onnx").setLevel(logging.INFO)
    try:
        if options.plot:
            require_matplotlib("--plot")  # not after minutes of measuring
        with registered(options.custom_op_library):
            options.bench(options)
    except DynormError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _ops(options: argparse.Namespace) -> None:
    if options.cuda_graph and options.provider != "cuda":
        raise UsageError(f"--cuda-graph needs --provider cuda, not {options.provider}")
    base = QUICK_OPS if options.quick else OpsGrid()
    grid = OpsGrid(
        rows=tuple(options.rows or base.rows),
        channels=tuple(options.channels or base.channels),
        dtypes=tuple(options.dtype or base.dtypes),
        chains=tuple(options.chain or base.chains),
        coupled=tuple(dict.fromkeys(options.coupled or base.coupled)),
    )
    rows = _collect(
        bench_ops(
            grid,
            provider=options.provider,
            threads=options.threads,
            seconds=options.seconds or (QUICK_SECONDS if options.quick else OPS_SECONDS),
            cuda_graph=options.cuda_graph,
        )
    )
    if options.json:
        shown = as_json("ops", rows, provider=options.provider, threads=options.threads)
        print(json.dumps(shown | {"cuda_graph": options.cuda_graph}))
    else:
        print_ops(rows, _stdout())
    if options.plot:
        plot_ops(rows, options.plot)


def _model(options: argparse.Namespace) -> None:
    converted = options.converted
    if converted is None and is_replaced(options.file):
        converted = options.file  # a model without norms: there is no other original
    elif converted is None:
        converted = make_untrained(options.file, options.to, optimize=options.optimize)
    rows = _collect(
        bench_model(
            options.file,
            converted,
            tuple(options.rows or (QUICK_MODEL_ROWS if options.quick else MODEL_ROWS)),
            provider=options.provider,
            threads=options.threads,
            seconds=options.seconds or (QUICK_SECONDS if options.quick else MODEL_SECONDS),
        )
    )
    if options.json:
        print(json.dumps(as_json("model", rows, provider=options.provider, threads=options.threads)))
    else:
        print_model(f"{options.file.name} on {options.provider}", rows, _stdout())
    if options.plot:
        plot_model(options.file.name, rows, options.plot)


def _stdout() -> Console:
    """As wide as the terminal; wide enough for every column where there is none (a file, a pipe)."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)


def _collect(rows: Iterable[Row]) -> list[Row]:
    """All rows, with a count of them on stderr meanwhile; those measured until Ctrl-C, if it comes."""
    collected: list[Row] = []
    console = Console(stderr=True)
    with console.status("measuring") as status, contextlib.suppress(KeyboardInterrupt):
        for row in rows:
            collected.append(row)
            status.update(f"measuring: {len(collected)} rows")
        return collected
    console.print(f"interrupted: {len(collected)} rows were measured")
    return collected


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Time operators and models in ONNX Runtime, in turn within one process.",
    )
    kinds = parser.add_subparsers(required=True, metavar="{ops,model}")
    ops = kinds.add_parser("ops", help="the functions against ONNX Runtime's fused norms and a copy")
    ops.set_defaults(bench=_ops)
    ops.add_argument("--dtype", nargs="+", choices=list(ELEMENT_TYPES), help="default: float32")
    ops.add_argument("--channels", nargs="+", type=_positive, metavar="C", help="default: 768 2048 4096")
    ops.add_argument("--chain", nargs="+", type=_positive, metavar="N", help="operators in a row; default: 1 12")
    ops.add_argument(
        "--coupled",
        nargs="+",
        type=_positive,
        metavar="K",
        help="also the forms with K channels that stay in the norm's sum, as 1 4 32; default: none",
    )
    ops.add_argument(
        "--cuda-graph", action="store_true", help="on cuda: launch the operators of a run together, as a captured graph"
    )
    model = kinds.add_parser("model", help="a model in its four variants, prefill and one-token decode")
    model.set_defaults(bench=_model)
    model.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="the original ONNX model; or one that holds our functions already, to be timed with and without kernels",
    )
    either = model.add_mutually_exclusive_group()
    either.add_argument("--converted", type=Path, metavar="FILE", help="what it was converted to")
    either.add_argument(
        "--to",
        choices=list(REGISTRY),
        default="dyisru",
        help="without --converted: replace every norm by this function with random parameters (as fast as "
        "calibrated ones); default: dyisru",
    )
    model.add_argument(
        "--optimize",
        choices=OPTIMIZE,
        default="auto",
        help="with --to: ort fuses attention and the like for ONNX Runtime before replacing, auto where there is any "
        "(%(default)s)",
    )
    add_option(model)
    ops.set_defaults(custom_op_library=())
    for kind in (ops, model):
        kind.add_argument("--rows", nargs="+", type=_size, metavar="BxT", help="batch x length, as 8x128")
        kind.add_argument("--provider", choices=list(PROVIDERS), default="cpu")
        kind.add_argument("--threads", type=_positive, metavar="N", help="default: ONNX Runtime's choice")
        kind.add_argument("--seconds", type=_seconds, metavar="S", help="to measure each number for")
        kind.add_argument("--quick", action="store_true", help="fewer sizes, less time for each")
        kind.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
        kind.add_argument("--plot", type=Path, metavar="FILE", help="also draw a picture (.png, .svg, .pdf)")
        kind.add_argument("-v", "--verbose", action="store_true", help="say what is left out, and why")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _size(text: str) -> Size:
    batch, _, length = text.lower().partition("x")
    try:
        return _positive(batch), _positive(length)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a batch x length like 8x128") from None


if __name__ == "__main__":
    sys.exit(main())
