"""What a conversion costs against layers and tokens: seconds by step and peak memory, as Markdown tables.

    python models/byte_llama/scaling.py

The shipped architecture with random weights and 2, 4, 8, 16 layers; every conversion is a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from export import HERE, Logits, export
from train import CONTEXT, build_model

LAYERS = (2, 4, 8, 16)
SAMPLES = (48, 96, 192)
STEPS = ("find", "data", "calibrate", "rewrite", "validate", "save")


def random_model(layers: int, path: Path) -> None:
    torch.manual_seed(layers)
    config = build_model().config
    config.num_hidden_layers = layers
    export(Logits(config), path)


def cost(model: Path, samples: int, method: str) -> dict:
    command = [sys.executable, "-m", "dynorm_onnx.convert", str(model), "--data", str(HERE / "held_out.txt")]
    command += ["--tokenizer", str(HERE / "tokenizer.json"), "--samples", str(samples), "--max-length", str(CONTEXT)]
    command += ["--method", method, "--no-time", "--json", "-o", str(model.with_suffix(".out.onnx"))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def row(label: str, report: dict) -> str:
    seconds = " | ".join(f"{report['seconds'][step]:.1f}" for step in STEPS)
    return f"| {label} | {report['calibration']['tokens']:,} | {seconds} | {report['peak_memory_mib']:.0f} |"


def main() -> None:
    print(f"| model | tokens | {' | '.join(STEPS)} | peak MiB |")
    print("|---|" + "---:|" * (len(STEPS) + 2))
    for method in ("fit", "reconstruct"):
        print(row(f"shipped, `{method}`", cost(HERE / "byte_llama.onnx", 196, method)), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for layers in LAYERS:
            path = Path(folder) / f"layers{layers}.onnx"
            random_model(layers, path)
            print(row(f"{layers} layers", cost(path, SAMPLES[-1], "reconstruct")), flush=True)
        for samples in SAMPLES[:-1]:
            path = Path(folder) / "layers8.onnx"
            print(row("8 layers", cost(path, samples, "reconstruct")), flush=True)


if __name__ == "__main__":
    main()
