"""What a conversion leaves of a byte-level model, as a Markdown table: by method, by function, with norms kept.

    python models/byte_llama/quality.py models/byte_llama/byte_llama.onnx --keep model.norm

Each row is a conversion, calibrated and validated on held_out.txt.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from dynorm_onnx import convert_model
from dynorm_onnx.functions import REGISTRY

HERE = Path(__file__).parent
HEAD = ("conversion", "tokens", "loss before", "loss after", "KL, mean", "KL, 99 %", "top-1 agreement")


def row(label: str, model: Path, output: Path, **knobs: Any) -> str:
    """One line of the table; the knobs are those of convert_model()."""
    report = convert_model(
        model,
        data=HERE / "held_out.txt",
        tokenizer=HERE / "tokenizer.json",
        max_length=256,
        time=False,
        output=output,
        **knobs,
    ).as_dict()
    found = report["validation"]
    loss = found.get("loss", {})  # none where tokens change those before them, as x quantised in one piece does
    numbers = (loss.get("original"), loss.get("converted"), found["kl"]["mean"])
    shown = " | ".join("" if number is None else f"{number:.3f}" for number in numbers)
    tokens = report["calibration"]["tokens"]
    return f"| {label} | {tokens:,} | {shown} | {found['kl']['p99']:.2f} | {found['top1_agreement']:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, default=196, help="windows of 256 bytes (%(default)s)")
    parser.add_argument("--methods", nargs="*", default=["fit", "reconstruct"])
    parser.add_argument("--to", nargs="*", default=list(REGISTRY), choices=list(REGISTRY))
    parser.add_argument("--no-rotate", dest="rotate", action="store_false", help="in the stream's own basis")
    parser.add_argument("--keep", nargs="*", default=[], help="a row more for each pattern, by reconstruct and dyisru")
    args = parser.parse_args()
    cases = [(f"`{method}`, {to}", {"method": method, "to": to}) for method in args.methods for to in args.to]
    cases += [(f"`reconstruct`, dyisru, `--keep '{keep}'`", {"keep": keep}) for keep in args.keep]
    print(f"| {' | '.join(HEAD)} |\n|---|" + "---:|" * (len(HEAD) - 1))
    with tempfile.TemporaryDirectory() as folder:
        for label, knobs in cases:
            output = Path(folder) / "out.onnx"
            print(row(label, args.model, output, samples=args.samples, rotate=args.rotate, **knobs), flush=True)


if __name__ == "__main__":
    main()
