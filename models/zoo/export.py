"""Write a Hugging Face architecture as ONNX, by any of the exporters that people use.

    python -m models.zoo.export qwen3 --exporter dynamo --opset 20 -o qwen3.onnx
    python -m models.zoo.export FOLDER --exporter genai --precision int4 -o FOLDER.genai

The model is a name of models.zoo.architectures (tiny, random weights), a local folder with config.json and
weights, or a name on the Hugging Face hub (downloaded).
"""

from __future__ import annotations

import argparse
import functools
import shutil
import tempfile
from pathlib import Path

from models.zoo.architectures import ARCHITECTURES
from models.zoo.exporters import Export, dynamo, genai, optimizers, torchscript
from models.zoo.subject import Subject, prepared, pretrained, tiny

OPTIMISERS = {"optimizer": optimizers.onnxruntime_transformers, "optimize_for_ort": optimizers.onnxscript_ort}


def main() -> None:
    """Runs the command line above."""
    args = _arguments()
    subject = tiny(args.model) if args.model in ARCHITECTURES else pretrained(args.model)
    subject = prepared(subject, attention=args.attention, experts=args.experts, fixed_length=args.fixed_length)
    with tempfile.TemporaryDirectory(dir=args.output.resolve().parent) as folder:
        files = _exporter(args)(subject, Path(folder))
        if args.then is not None:
            files = [_optimised(path, args.then, subject) for path in files]
        for path in _placed(files, args.output):
            print(path)


def _exporter(args: argparse.Namespace) -> Export:
    if args.exporter == "genai":
        return functools.partial(genai.export, precision=args.precision)
    module = {"dynamo": dynamo, "torchscript": torchscript}[args.exporter]
    return functools.partial(module.export, opset=args.opset or (20 if args.exporter == "dynamo" else 17))


def _optimised(path: Path, step: str, subject: Subject) -> Path:
    optimised = path.with_name("optimised.onnx")
    OPTIMISERS[step](subject, path, optimised)
    return optimised


def _placed(files: list[Path], output: Path) -> list[Path]:
    """The files at their place: one file without external weights as `output`, else all in a folder of that name."""
    beside = sorted({path for file in files for path in file.parent.iterdir() if path.is_file()})
    others = [path for path in beside if path not in files and path.suffix != ".onnx"]
    if len(files) == 1 and not others:
        return [Path(shutil.move(files[0], output))]
    output.mkdir(exist_ok=True)
    for path in (*files, *others):
        shutil.move(path, output / path.name)
    return [output / path.name for path in files]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"{', '.join(ARCHITECTURES)}; a folder; or a name on the hub")
    parser.add_argument("--exporter", choices=("dynamo", "torchscript", "genai"), default="dynamo")
    parser.add_argument("--opset", type=int, help="default: 20 for dynamo, 17 for torchscript")
    parser.add_argument("--precision", choices=("fp32", "int4"), default="fp32", help="of the genai builder")
    parser.add_argument("--then", choices=tuple(OPTIMISERS), help="an optimiser to be run on the file")
    parser.add_argument("--attention", help='the attention to export ("eager", "sdpa")')
    parser.add_argument("--experts", help='the experts to export ("batched_mm" where the default cannot be)')
    parser.add_argument("--fixed-length", action="store_true", help="fix the sequence length to that of the example")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a file, or a folder for several")
    args = parser.parse_args()
    if args.model not in ARCHITECTURES and "/" not in args.model and not Path(args.model).is_dir():
        parser.error(f"{args.model!r} is no architecture of the zoo, no folder and no name on the hub (OWNER/NAME)")
    return args


if __name__ == "__main__":
    main()
