"""Train one small byte-level Llama from scratch with RMSNorm, DyISRU, DyT or Derf: what is lost or gained?

    python models/from_scratch/compare.py --norm dyisru      # trains, and writes into results.json
    python models/from_scratch/compare.py --table            # the table of docs/pytorch.md

Seed, data, batches, steps and optimiser are the same for all; the peak learning rate is tried at each of RATES.
The functions get the papers' initial values (`replace_norms` without data). The embedding begins with unit variance in
all four, since a model without norms has nothing that would bring small entries up to scale.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dynorm_onnx.pytorch import replace_norms

sys.path.insert(0, str(Path(__file__).parents[1] / "byte_llama"))
from text import split_text

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
NORMS = {"rmsnorm": "RMSNorm", "dyisru": "DyISRU", "dyt": "DyT", "derf": "Derf"}
RATES = (5e-3, 1e-2)
SEED, STEPS, BATCH, CONTEXT = 20250321, 300, 16, 128
WARMUP, WINDOWS = 50, 256


def build_model(norm: str) -> LlamaForCausalLM:
    """Three layers of 96 channels, seven norms, bytes for tokens; the same weights whatever the norm."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    if norm != "rmsnorm":
        replace_norms(model, to=norm)
    return model


def batch(data: np.ndarray, starts: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([data[s : s + CONTEXT] for s in starts]).astype(np.int64))


def loss_of(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-byte cross entropy, nats."""
    logits = model(input_ids=tokens).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: torch.nn.Module, data: np.ndarray) -> float:
    """Loss over WINDOWS windows spread evenly over data."""
    tokens = batch(data, np.linspace(0, data.size - CONTEXT, WINDOWS).astype(int))
    return float(np.mean([loss_of(model, part).item() for part in tokens.split(BATCH)]))


def rate(step: int, steps: int) -> float:
    """Linear warm-up, level, linear fall to zero over the second half."""
    return min(1.0, (step + 1) / WARMUP) * min(1.0, 2 * (steps - step) / steps)


def train(norm: str, peak: float, steps: int, text: np.ndarray, held_out: np.ndarray) -> dict:
    """One run: the losses on held-out text by step."""
    model = build_model(norm)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)
    rng = np.random.default_rng(SEED)
    curve = {}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * rate(step, steps)
        loss = loss_of(model, batch(text, rng.integers(0, text.size - CONTEXT, BATCH)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % (steps // 3) == 0:
            curve[step + 1] = round(evaluate(model, held_out), 4)
            print(f"{norm} {peak:g} {step + 1:5d}  train {loss.item():.4f}  held out {curve[step + 1]:.4f}", flush=True)
    return {
        "rate": peak,
        "steps": steps,
        "bytes": steps * BATCH * CONTEXT,
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out": curve,
    }


def table(results: dict) -> str:
    """Held-out loss by norm and by those learning rates that were tried with all, as Markdown."""
    final = {norm: {run["rate"]: [*run["held_out"].values()][-1] for run in results[norm]} for norm in NORMS}
    rates = [peak for peak in RATES if all(peak in losses for losses in final.values())]
    lines = ["| norm | " + " | ".join(f"peak rate {peak:g}" for peak in rates) + " | best, against RMSNorm's |"]
    lines.append("|---|" + "---:|" * (len(rates) + 1))
    best = {norm: min(losses[peak] for peak in rates) for norm, losses in final.items()}
    for norm, losses in final.items():
        cells = " | ".join(f"{losses[peak]:.3f}" for peak in rates)
        lines.append(f"| {NORMS[norm]} | {cells} | {best[norm] - best['rmsnorm']:+.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--norm", choices=NORMS, help="train with this one")
    what.add_argument("--table", action="store_true", help="print the results as a Markdown table")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of {BATCH * CONTEXT} bytes (%(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="peak learning rates (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the JSON file that runs are put into")
    arguments = parser.parse_args()
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    if arguments.table:
        print(table(results))
        return
    text, held_out = split_text()
    runs = [train(arguments.norm, peak, arguments.steps, text, held_out) for peak in arguments.rates]
    others = [run for run in results.get(arguments.norm, []) if run["rate"] not in arguments.rates]
    results[arguments.norm] = sorted(others + runs, key=lambda run: run["rate"])
    results["with"] = {"python": platform.python_version(), "torch": torch.__version__}
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
