"""What 8 and 4 bits leave of the shipped model: quantised as it is, after its conversion, and before it.

    python models/byte_llama/quantised.py -o FOLDER

writes every file into the folder and prints the tables of docs/quantisation.md; files that are there already are
measured as they are. Conversions and ranges see the first 200,000 bytes of held_out.txt, the tables others.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod
from quantise import HERE, LENGTH, WAYS, dynamic, static

import dynorm_onnx
from dynorm_onnx.functions import DOMAIN, OPERATORS
from dynorm_onnx.runtime.measures import TokenSums

ORIGINAL = HERE / "byte_llama.onnx"
CALIBRATION = 200_000  # bytes
EVALUATED = 128  # windows
SAMPLES = 196
METHODS = {"MinMax": CalibrationMethod.MinMax, "Percentile": CalibrationMethod.Percentile,
           "Entropy": CalibrationMethod.Entropy}  # fmt: skip


class Files:
    """The files of one folder, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._text = folder / "calibration.txt"
        self._text.write_bytes((HERE / "held_out.txt").read_bytes()[:CALIBRATION])

    def made(self, name: str, make: Callable[[Path], object]) -> Path:
        path, partial = self._folder / f"{name}.onnx", self._folder / f"{name}.partial.onnx"
        if not path.exists():
            with contextlib.redirect_stdout(sys.stderr):  # where the quantisers talk
                make(partial)
            partial.rename(path)
        return path

    def converted(self, name: str, model: Path, **knobs: Any) -> Path:
        """By --method reconstruct, calibrated on the first part of the text."""
        given = {"data": self._text, "tokenizer": HERE / "tokenizer.json", "samples": SAMPLES, "max_length": LENGTH}
        return self.made(
            name, lambda path: dynorm_onnx.convert_model(model, output=path, time=False, rotate=False, **given, **knobs)
        )  # fmt: skip


class Judge:
    """Compares files with the original of floats, a window at a time, as a request would come."""

    def __init__(self, baseline: Path) -> None:
        text = (HERE / "held_out.txt").read_bytes()[CALIBRATION : CALIBRATION + EVALUATED * LENGTH]
        self._windows = np.frombuffer(text, np.uint8).astype(np.int64).reshape(-1, 1, LENGTH)
        self._baseline = self._logits(baseline)

    def _logits(self, model: Path) -> list[np.ndarray]:
        session = dynorm_onnx.session(model)
        return [session.run(["logits"], {"input_ids": ids})[0] for ids in self._windows]

    def row(self, label: str, model: Path) -> str:
        """KL to the original, its 99 % quantile, loss in nats and top-1 agreement, as a line of a table."""
        triples = zip(self._baseline, self._logits(model), self._windows, strict=True)
        sums = [TokenSums.of(before, after, None, ids) for before, after, ids in triples]
        kl, agree, loss = (
            np.concatenate([getattr(part, name) for part in sums]) for name in ("kl", "agree", "loss_converted")
        )
        numbers = f"{kl.mean():.5f} | {np.quantile(kl, 0.99):.3f} | {loss.mean():.4f} | {agree.mean():.4f}"
        return f"| {label} | {numbers} |"


def ways(files: Files, judge: Judge, converted: dict[str, Path]) -> None:
    """Quantised after, quantised before."""
    head("file", "KL, mean", "KL, 99 %", "loss", "top-1 agreement")
    print(judge.row("original", ORIGINAL))
    for label, model in converted.items():
        print(judge.row(label, model), flush=True)
    for way, quantise in WAYS.items():
        before = files.made(f"original-{way}", lambda path, quantise=quantise: quantise(ORIGINAL, path))
        print(judge.row(f"`{way}`: original", before))
        for label, model in converted.items():
            after = files.made(f"{model.stem}-{way}", lambda path, m=model, quantise=quantise: quantise(m, path))
            print(judge.row(f"`{way}`: {label}, then quantised", after))
        print(judge.row(f"`{way}`: quantised, then converted", files.converted(f"{way}-converted", before)), flush=True)


def ranges(files: Files, models: dict[str, Path], converted: Path) -> None:
    """The layers behind norms alone, by every source of ranges; each against the model that was quantised."""
    head("model", "ranges of x", "KL, mean", "KL, 99 %", "loss", "top-1 agreement")
    nodes = layers_behind(converted)
    for label, model in models.items():
        judge = Judge(model)
        for name, method in METHODS.items():
            path = files.made(f"{model.stem}-{name}", lambda p, m=model, how=method: static(m, p, how, nodes=nodes))
            print(judge.row(f"{label} | {name}", path), flush=True)
        path = files.made(f"{model.stem}-none", lambda p, m=model: dynamic(m, p, nodes))
        print(judge.row(f"{label} | at run time", path), flush=True)
        if model != ORIGINAL:
            overrides = bounds(model)
            path = files.made(
                f"{model.stem}-bounds", lambda p, m=model, o=overrides: static(m, p, overrides=o, nodes=nodes)
            )
            print(judge.row(f"{label} | bounds", path), flush=True)


def bounds(converted: Path) -> dict[str, list[dict[str, np.float32]]]:
    """By the name of each function's output, between what it lies for every input: y_i = w_i f(x_i) + b_i, |f| <= 1."""
    graph = onnx.load(converted).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.domain == DOMAIN:
            first = 1 + OPERATORS[node.op_type][1].skip
            weight, bias = (arrays[name] for name in node.input[first : first + 2])
            reach = np.abs(weight)
            found[node.output[0]] = [{"rmin": (bias - reach).min(), "rmax": (bias + reach).max()}]
    return found


def layers_behind(converted: Path) -> list[str]:
    """The names of the layers that read what a function puts out."""
    bounded = bounds(converted)
    nodes = onnx.load(converted).graph.node
    return [node.name for node in nodes if node.op_type == "MatMul" and node.input[0] in bounded]


def head(*columns: str) -> None:
    words = sum(column in ("file", "model", "ranges of x") for column in columns)
    print(f"\n| {' | '.join(columns)} |\n|" + "---|" * words + "---:|" * (len(columns) - words))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", "-o", type=Path, required=True, help="a folder")
    files = Files(parser.parse_args().output)
    converted = {
        "converted": files.converted("converted", ORIGINAL),
        "converted, `--fold-weights`": files.converted("folded", ORIGINAL, fold_weights=True),
    }
    ranges(files, {"original": ORIGINAL, **converted}, converted["converted"])
    ways(files, Judge(ORIGINAL), converted)


if __name__ == "__main__":
    main()
