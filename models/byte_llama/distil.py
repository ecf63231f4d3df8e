"""Convert the shipped model with `--method distil`, and measure it on text that it has not seen.

    python models/byte_llama/distil.py --output FOLDER [--train norms] [--entrance pytorch] [--rounds 5]

writes to FOLDER the text to distil on (from the training split), the converted model, and for each run
NAME.json and NAME.png with the loss curve. The original trained on the same split; what is measured on is
held_out.txt, of files that neither has seen. An interrupted run goes on when called again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from text import PIECE, split_text

from dynorm_onnx.conversion.convert_model import convert_model
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.graph.linear.find import find_linear_layers
from dynorm_onnx.runtime.session import make_session
from dynorm_onnx.runtime.validate import validate

matplotlib.use("Agg")
HERE = Path(__file__).parent
MODEL = HERE / "byte_llama.onnx"
CONTEXT = 256
BATCH = 8  # windows of CONTEXT bytes: what the converter takes for one step
STEPS = 975  # of 2,048 bytes: just under 2 million
FITTED = 32  # batches that the PyTorch entrance fits the functions on
CHECKED = 300  # windows more, for the converter's own check
RATE = 0.012  # small models stand more than the default
SEED = 0


def training_text(size: int) -> bytes:
    """`size` bytes of the training split: pieces of PIECE bytes from all its files, in an order drawn once."""
    train, _ = split_text()
    pieces = np.split(train, range(PIECE, len(train), PIECE))
    order = np.random.default_rng(1).permutation(len(pieces))
    joined = b"".join(pieces[i].tobytes() for i in order)[:size]
    return joined.decode(errors="ignore").encode()


def held_out_batches(every: int) -> list[dict[str, np.ndarray]]:
    """Windows of held_out.txt, one in `every`, as feeds."""
    data = np.frombuffer((HERE / "held_out.txt").read_bytes(), np.uint8).astype(np.int64)
    rows = data[: data.size // CONTEXT * CONTEXT].reshape(-1, CONTEXT)[::every]
    return [{"input_ids": rows[start : start + BATCH]} for start in range(0, len(rows), BATCH)]


def distil_file(folder: Path, name: str, steps: int, rounds: int, train: str) -> dict[str, Any]:
    """The first entrance: the ONNX file alone. FOLDER/NAME.onnx is the converted model."""
    text = folder / "training.txt"
    samples = steps * BATCH
    text.write_bytes(training_text((samples + CHECKED) * CONTEXT))
    report = convert_model(
        MODEL, method="distil", steps=steps * rounds, learning_rate=RATE, train=train, data=text, samples=samples,
        max_length=CONTEXT, time=False, seed=SEED, output=folder / f"{name}.onnx",
    ).as_dict()  # fmt: skip
    return {"distillation": report["distillation"], "seconds": report["seconds"]}


def distil_module(folder: Path, name: str, steps: int, rounds: int, train: str) -> dict[str, Any]:
    """The second entrance: the PyTorch model, its norms replaced (fitted on data), exported at the end."""
    import torch
    from export import Logits
    from train import build_model

    from dynorm_onnx.pytorch.distil import distil
    from dynorm_onnx.pytorch.export import export
    from dynorm_onnx.pytorch.replace import replace_norms

    started = time.monotonic()
    teacher = Logits(build_model().config)
    load_initializers(teacher)
    student = copy.deepcopy(teacher)
    data = np.frombuffer(training_text(steps * BATCH * CONTEXT), np.uint8).astype(np.int64)
    rows = torch.from_numpy(data[: data.size // CONTEXT * CONTEXT].reshape(-1, CONTEXT))
    mixed = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))]
    batches = [{"input_ids": batch} for batch in mixed.split(BATCH)]
    replace_norms(student, "dyisru", batches[:: max(1, len(batches) // FITTED)][:FITTED])
    fitted = time.monotonic()
    run = distil(
        student, teacher, batches, steps=steps * rounds, learning_rate=RATE, train=train, logits="output", seed=SEED,
        checkpoint=folder / f"{name}.pt",
    )  # fmt: skip
    export(student, (batches[0]["input_ids"],), folder / f"{name}.onnx", input_names=["input_ids"],
           output_names=["logits"], dynamic_shapes=({0: "batch", 1: "sequence"},))  # fmt: skip
    seconds = {"calibrate": round(fitted - started, 3), "distil": run.seconds}
    return {"distillation": run.as_dict(), "seconds": seconds}


def load_initializers(model: Any) -> None:
    """The weights of the shipped ONNX file, which is the only copy, into the model of train.py.

    torch.onnx kept the names of norms and embedding; the matrices are in the order in which Llama uses them.
    """
    import torch

    graph = model_io.load(MODEL).graph
    state = {
        name: torch.from_numpy(value.const_value.numpy().copy())
        for name, value in graph.initializers.items()
        if name in model.state_dict()
    }
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
             "mlp.up_proj", "mlp.down_proj"]  # fmt: skip
    names = [f"model.layers.{i}.{part}.weight" for i in range(model.config.num_hidden_layers) for part in parts]
    layers = find_linear_layers(graph).layers
    for name, layer in zip([*names, "lm_head.weight"], layers, strict=True):
        state[name] = torch.from_numpy(layer.matrix().T.astype(np.float32))
    model.load_state_dict(state)


def measure(converted: Path, every: int) -> dict[str, float]:
    """KL and losses in nats per byte on held-out windows, in ONNX Runtime."""
    quality = validate(make_session(MODEL), make_session(converted), held_out_batches(every)).quality
    assert quality is not None and quality.loss_original is not None and quality.loss_converted is not None
    return {
        "tokens": quality.tokens, "kl": quality.kl_mean, "kl_p99": quality.kl_p99, "top1": quality.top1_agreement,
        "loss_original": quality.loss_original, "loss_converted": quality.loss_converted,
    }  # fmt: skip


def draw(curve: list[dict[str, float]], held_out: float, path: Path) -> None:
    """The loss over the steps, and where it ended on text that was not seen."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    axes.semilogy([p["step"] for p in curve], [p["loss"] for p in curve], lw=1, label="text distilled on")
    axes.axhline(held_out, ls="--", lw=1, color="tab:red", label=f"held-out text, at the end: {held_out:.4f}")
    axes.set(xlabel=f"step of {BATCH * CONTEXT} bytes", ylabel="KL to the original, nats per byte")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    parser.add_argument("--train", choices=("all", "norms"), default="all")
    parser.add_argument("--entrance", choices=("onnx", "pytorch"), default="onnx")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of {BATCH * CONTEXT} bytes a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="times that the text is gone through (%(default)s)")
    parser.add_argument("--every", type=int, default=4, help="measure on one held-out window in so many (%(default)s)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    entrance = "" if args.entrance == "onnx" else "pytorch-"
    name = entrance + args.train + (f"-{args.rounds}" if args.rounds > 1 else "")
    distilled = distil_module if entrance else distil_file
    run = distilled(args.output, name, args.steps, args.rounds, args.train)
    run["held_out"] = measure(args.output / f"{name}.onnx", args.every)
    (args.output / f"{name}.json").write_text(json.dumps(run, indent=1) + "\n")
    draw(run["distillation"]["losses"], run["held_out"]["kl"], args.output / f"{name}.png")
    print(json.dumps({key: value for key, value in run.items() if key != "distillation"}, indent=1))


if __name__ == "__main__":
    main()
