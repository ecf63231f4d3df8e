"""The command line: the paper's experiment, or the same question put to a model.

    python -m dynorm_onnx.paper [--json] [--plot FILE]
    python -m dynorm_onnx.paper --model MODEL.onnx [--data FILE] [--coupled N] [--json] [--plot FILE]

Exit codes: 0 done, 2 wrong use or unreadable input, 3 no norm found.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dynorm_onnx.errors import DynormError, UsageError
from dynorm_onnx.paper.experiment import run_experiment
from dynorm_onnx.paper.plot import plot_experiment, plot_model
from dynorm_onnx.paper.real_model import MAX_LENGTH, SAMPLES, compare_on_model
from dynorm_onnx.paper.show import print_experiment, print_model
from dynorm_onnx.plotting import require_matplotlib, save_figure
from dynorm_onnx.runtime.user_libraries import add_option, registered
from dynorm_onnx.terminal import use_safe_streams

_FILE_WIDTH = 120


def main(arguments: Sequence[str] | None = None, prog: str = "python -m dynorm_onnx.paper") -> int:
    """Run the command line; returns the exit code."""
    use_safe_streams()
    options = _parser(prog).parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if options.plot is not None:
            require_matplotlib("--plot")  # not after minutes of running a model
            if not os.access(options.plot.absolute().parent, os.W_OK):
                raise UsageError(f"--plot {options.plot}: nothing can be written in that folder")
        (_paper if options.model is None else _model)(options)
    except DynormError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _paper(options: argparse.Namespace) -> None:
    experiments = [run_experiment("layer"), run_experiment("rms")]
    if options.data is not None:
        raise UsageError(f"--data {options.data} needs --model: the paper's experiment draws its own token")
    if options.coupled:
        raise UsageError(f"--coupled {options.coupled} needs --model: the paper's functions are of single channels")
    told = {"paper": "arXiv 2503.21708", "experiments": [experiment.as_dict() for experiment in experiments]}
    _tell(options, told, lambda console: print_experiment(experiments, console))
    if options.plot is not None:
        save_figure(plot_experiment(experiments), options.plot, "--plot")


def _model(options: argparse.Namespace) -> None:
    if options.coupled < 0:
        raise UsageError(f"--coupled {options.coupled}: a number of channels, 0 for none")
    with registered(options.custom_op_library):
        comparison = compare_on_model(
            options.model,
            options.data,
            tokenizer=options.tokenizer,
            samples=options.samples,
            max_length=options.max_length,
            seed=options.seed,
            coupled=options.coupled,
        )
    _tell(options, comparison.as_dict(), lambda console: print_model(comparison, console))
    if options.plot is not None:
        save_figure(plot_model(comparison), options.plot, "--plot")


def _tell(options: argparse.Namespace, plain: dict[str, Any], show: Callable[[Console], None]) -> None:
    if options.json:
        print(json.dumps(plain, allow_nan=False))
        return
    console = Console()
    show(console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_FILE_WIDTH))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Which element-wise function follows a norm: the experiment of arXiv 2503.21708, or a real model.",
    )
    parser.add_argument("--model", type=Path, metavar="MODEL.onnx", help="compare on this model's own activations")
    parser.add_argument("--data", type=Path, help="as for dynorm_onnx.convert; default: self-written text")
    parser.add_argument("--tokenizer", type=Path, metavar="tokenizer.json", help="default: the one beside MODEL")
    add_option(parser)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="samples used (%(default)s)")
    parser.add_argument("--max-length", type=int, default=MAX_LENGTH, help="tokens a sample (%(default)s)")
    parser.add_argument(
        "--coupled", type=int, default=0, metavar="N",
        help="fit once more with at most N channels of each norm kept in its sum (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a figure (.svg, .png, .pdf)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    return parser


if __name__ == "__main__":
    sys.exit(main())
