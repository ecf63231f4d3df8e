"""What a conversion costs against layers, tokens and channels: seconds by step and peak memory, as a Markdown table.

    python models/byte_llama/scaling.py

The shipped architecture with random weights; every conversion is a process of its own.
"""

from __future__ import annotations

import argparse
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
CHANNELS, CHANNEL_LAYERS = (128, 256, 512, 1024), 4
HEAD_SIZE = 32
STEPS = ("find", "data", "calibrate", "rewrite", "validate", "save")


def random_model(path: Path, layers: int, channels: int | None = None) -> None:
    """The shipped architecture with this many layers, and with other widths if `channels` is given."""
    torch.manual_seed(layers)
    config = build_model().config
    config.num_hidden_layers = layers
    if channels is not None:
        config.hidden_size, config.intermediate_size = channels, channels * 27 // 10
        config.num_attention_heads = config.num_key_value_heads = channels // HEAD_SIZE
        config.head_dim = HEAD_SIZE
    export(Logits(config), path)


def cost(model: Path, samples: int, method: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        return converted(model, samples, method, Path(folder) / "converted.onnx")


def converted(model: Path, samples: int, method: str, output: Path) -> dict:
    command = [sys.executable, "-m", "dynorm_onnx.convert", str(model), "--data", str(HERE / "held_out.txt")]
    command += ["--tokenizer", str(HERE / "tokenizer.json"), "--samples", str(samples), "--max-length", str(CONTEXT)]
    command += ["--method", method, "--no-time", "--json", "-o", str(output)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def row(label: str, report: dict) -> str:
    seconds = " | ".join(f"{report['seconds'][step]:.1f}" for step in STEPS)
    return f"| {label} | {report['calibration']['tokens']:,} | {seconds} | {report['peak_memory_mib']:.0f} |"


def shipped() -> None:
    for method in ("fit", "reconstruct"):
        print(row(f"shipped, `{method}`", cost(HERE / "byte_llama.onnx", 196, method)), flush=True)


def by_layers(folder: Path) -> None:
    for layers in LAYERS:
        path = folder / f"layers{layers}.onnx"
        random_model(path, layers)
        print(row(f"{layers} layers", cost(path, SAMPLES[-1], "reconstruct")), flush=True)


def by_tokens(folder: Path) -> None:
    path = folder / "layers8.onnx"
    random_model(path, 8)
    for samples in SAMPLES[:-1]:
        print(row("8 layers", cost(path, samples, "reconstruct")), flush=True)


def by_channels(folder: Path) -> None:
    for channels in CHANNELS:
        path = folder / f"channels{channels}.onnx"
        random_model(path, CHANNEL_LAYERS, channels)
        label = f"{CHANNEL_LAYERS} layers, {channels:,} channels"
        print(row(label, cost(path, SAMPLES[0], "reconstruct")), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    series = {"layers": by_layers, "tokens": by_tokens, "channels": by_channels}
    parser.add_argument("--against", nargs="+", choices=["shipped", *series], default=["shipped", *series])
    chosen = parser.parse_args().against
    print(f"| model | tokens | {' | '.join(STEPS)} | peak MiB |")
    print("|---|" + "---:|" * (len(STEPS) + 2))
    if "shipped" in chosen:
        shipped()
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            if name in series:
                series[name](Path(folder))


if __name__ == "__main__":
    main()
