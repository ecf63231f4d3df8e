"""One command for all of them: `dynorm-onnx COMMAND`, or `python -m dynorm_onnx COMMAND`.

    dynorm-onnx convert model.onnx --to dyisru

A command is the `main` of another module, and only that one's packages are imported. Each can be run as
`python -m MODULE` too. Exit codes are those of the command.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from dynorm_onnx import __version__


class _Command(NamedTuple):
    module: str
    help: str


COMMANDS = {
    "convert": _Command("dynorm_onnx.convert", "replace the norms of an ONNX transformer by an element-wise function"),
    "serve": _Command("dynorm_onnx.serving.__main__", "write what servers load, and measure how fast they answer"),
    "bench": _Command("dynorm_onnx.bench.__main__", "time operators and models in ONNX Runtime"),
    "paper": _Command(
        "dynorm_onnx.paper.__main__", "which function follows a norm: the paper's experiment, or a model"
    ),
}


def main(arguments: Sequence[str] | None = None, prog: str = "dynorm-onnx") -> int:
    """Run a command; returns its exit code. `arguments` are those behind `prog`, the command's name first."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        name, rest = given[0], given[1:]
    else:
        name, rest = _parser(prog).parse_args(given).command, []  # leaves, but for `-- COMMAND`
    return importlib.import_module(COMMANDS[name].module).main(rest, prog=f"{prog} {name}")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Replace RMSNorm and LayerNorm in ONNX transformers by element-wise functions.",
        epilog=f"`{prog} COMMAND --help` tells of each.",
    )
    parser.add_argument("--version", action="version", version=f"dynorm-onnx {__version__}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, add_help=False)
    return parser


if __name__ == "__main__":
    sys.exit(main(prog="python -m dynorm_onnx"))
