"""The command line: arguments -> convert_model() -> exit code.

    python -m dynorm_onnx.convert model.onnx --to dyisru

Exit codes: 0 done, 1 a bug of ours, 2 wrong use or unreadable input, 3 no norm found, 4 a bound not met.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from dynorm_onnx.config import METHODS, OPTIMIZE, PROVIDERS, SAMPLES, TRAIN, ConvertConfig
from dynorm_onnx.conversion.convert_model import TARGETS, convert_model
from dynorm_onnx.errors import DynormError, ModelError
from dynorm_onnx.report import Report, print_report
from dynorm_onnx.runtime.user_libraries import add_option
from dynorm_onnx.terminal import log_handler, print_error, shown_progress, table_console, use_safe_streams


def main(arguments: Sequence[str] | None = None, prog: str = "python -m dynorm_onnx.convert") -> int:
    """Run the command line; returns the exit code."""
    use_safe_streams()
    options = vars(_parser(prog).parse_args(arguments))
    as_json, verbosity, quiet = options.pop("json"), options.pop("verbose"), options.pop("quiet")
    if int(os.environ.get("RANK", "0")) > 0:
        return _help_to_distil(options)
    errors = Console(stderr=True)
    _log_to(errors, verbosity, quiet)
    told: list[str] = []
    model: Path = options.pop("model")

    def tell(report: Report) -> None:
        """Before the files are in their place: if this fails, nothing has been written."""
        told.append(_as_json(report) if as_json else _as_text(report, options["report"]))

    try:
        with shown_progress(errors, quiet=quiet) as progress:
            report = convert_model(model, progress=progress, ready=tell, **options)
    except DynormError as error:
        print_error(errors, f"error: {error}")
        return error.exit_code
    except MemoryError as error:
        print_error(errors, f"error: not enough memory: {error}")
        return ModelError.exit_code
    except KeyboardInterrupt:
        errors.print(f"interrupted; nothing was written{_goes_on(model, options)}", soft_wrap=True)
        return 130
    if as_json and not quiet and report.verdict is not None and not report.verdict.usable:
        print_error(errors, report.verdict.sentence)
    _write("".join(told))
    return 0


def _goes_on(model: Path, options: dict[str, Any]) -> str:
    """What an interrupted run leaves, if anything, for the same command to go on from."""
    config = ConvertConfig.of(model, **options)
    left = [path for path in (config.calibration_path, config.checkpoint_path) if path.exists()]
    return f"; the same command goes on from {' and '.join(map(str, dict.fromkeys(left)))}" if left else ""


def _as_json(report: Report) -> str:
    return json.dumps(report.as_dict(), allow_nan=False) + "\n"


def _as_text(report: Report, page: Path | None) -> str:
    """The summary, with colours where stdout is a terminal."""
    console = table_console()
    with console.capture() as captured:
        print_report(report, console)
        if page is not None:
            console.print(Text.assemble("page: ", (str(page), "bold")), soft_wrap=True)
    return captured.get()


def _write(text: str) -> None:
    """To stdout; a reader that has left (`| head`) is no error."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it exits


def _help_to_distil(options: dict[str, Any]) -> int:
    """What a process of torchrun does that is not the first: its share of the distillation, and nothing else."""
    if options["method"] != "distil":
        return 0
    checkpoint = ConvertConfig.of(**options).checkpoint_path
    with tempfile.TemporaryDirectory() as folder:
        unseen = {"output": Path(folder) / "unseen.onnx", "checkpoint": checkpoint, "report": None, "time": False}
        try:
            convert_model(options.pop("model"), **{**options, **unseen})
        except DynormError as error:
            return error.exit_code  # the first process meets it too, and tells
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    defaults = {name: field.default for name, field in ConvertConfig.__dataclass_fields__.items()}
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Replace the norms of an ONNX transformer by an element-wise function.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--to", choices=TARGETS, default=defaults["to"], help="what replaces a norm (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.onnx", help="default: MODEL.TO.onnx beside MODEL")
    data = parser.add_argument_group("calibration")
    kinds = ".npz, a folder of .npz, .jsonl, .txt, or random; default: text that the model writes"
    data.add_argument("--data", type=Path, help=kinds)
    data.add_argument("--tokenizer", type=Path, metavar="tokenizer.json", help="default: the one beside MODEL")
    counts = f"{defaults['samples']}; {SAMPLES['distil']} to distil, {SAMPLES['rmsnorm']} to prove a rewrite"
    data.add_argument("--samples", type=int, help=f"samples used ({counts})")
    data.add_argument("--max-length", type=int, default=defaults["max_length"], help="tokens a sample (%(default)s)")
    data.add_argument("--method", choices=METHODS, default=defaults["method"], help="how (%(default)s)")
    data.add_argument(
        "--coupled",
        type=_coupled,
        metavar="{auto,N}",
        help="channels of each norm that stay in its sum, at most; auto: 32 where tokens are massive, else 0 (auto)",
    )
    data.add_argument("--steps", type=int, default=defaults["steps"], help="to distil, of 2,048 tokens (%(default)s)")
    first = "before, of each block by itself (%(default)s)"
    data.add_argument("--block-steps", type=int, default=defaults["block_steps"], metavar="N", help=first)
    rate = "of distil, relative to each weight's root mean square (%(default)s)"
    data.add_argument("--learning-rate", type=float, default=defaults["learning_rate"], metavar="X", help=rate)
    data.add_argument("--train", choices=TRAIN, default=defaults["train"], help="what to distil (%(default)s)")
    data.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="where a run that was cut goes on from: a folder (OUT.onnx.calibration), to distil a file "
        "(OUT.onnx.distil.pt)",
    )
    data.add_argument("--seed", type=int, default=defaults["seed"], help="of everything random (%(default)s)")
    sites = parser.add_argument_group("which norms")
    for knob, effect in (("--only", "replace only sites that match"), ("--keep", "leave sites that match")):
        sites.add_argument(
            knob, action="append", default=[], metavar="PATTERN", help=f"{effect}: a glob or re:..., repeatable"
        )
    sites.add_argument("--no-rotate", dest="rotate", action="store_false", help="leave the streams in their own bases")
    sites.add_argument("--no-fold", dest="fold", action="store_false", help="no exact folds of centring into weights")
    sites.add_argument(
        "--fold-weights", action="store_true", help="fold the replacements' weights into the layers that read them"
    )
    sites.add_argument(
        "--inline", action="store_true", help="write standard operators only, no functions: for other runtimes"
    )
    bounds = parser.add_argument_group("quality and speed")
    bounds.add_argument("--max-kl", type=float, metavar="X", help="write nothing above this mean KL, nats")
    bounds.add_argument("--max-error", type=float, metavar="X", help="write nothing above this relative error")
    bounds.add_argument(
        "--optimize",
        choices=OPTIMIZE,
        default=defaults["optimize"],
        help="ort: fuse attention and the like for ONNX Runtime first; the file then needs it. auto: where functions "
        "replace norms and no output changes by it. none: a portable file (%(default)s)",
    )
    add_option(bounds)
    bounds.add_argument("--provider", choices=PROVIDERS, default=defaults["provider"], help="(%(default)s)")
    bounds.add_argument("--no-validate", dest="validate", action="store_false", help="skip the comparison")
    bounds.add_argument("--no-time", dest="time", action="store_false", help="skip the timing")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    output.add_argument("--report", type=Path, metavar="OUT.html", help="also write a page to judge the result by")
    output.add_argument("--dry-run", action="store_true", help="list the norms, write nothing")
    output.add_argument("-v", "--verbose", action="count", default=0, help="log what is done; twice for all")
    output.add_argument("-q", "--quiet", action="store_true", help="no progress, no log")
    return parser


def _coupled(text: str) -> int | None:
    return None if text == "auto" else int(text)


def _log_to(console: Console, verbosity: int, quiet: bool) -> None:
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[log_handler(console)])
    logging.getLogger("dynorm_onnx").setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
