"""Train the byte-level Llama that this repository ships.

    python models/byte_llama/train.py --checkpoint byte_llama.pt

AdamW, as the models that people bring were trained; the rate falls linearly to zero over the second
half. Seeded, on two CPU cores in about half an hour; metrics.json tells what came out.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from text import byte_entropy, split_text, trigram_loss
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 20250321
CONTEXT = 256
BATCH = 32
PEAK_RATE = 5e-3
HERE = Path(__file__).parent

Model = TypeVar("Model", bound=torch.nn.Module)


def build_model() -> LlamaForCausalLM:
    """Four layers, nine RMSNorms, 1.33 million parameters, bytes for tokens."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=4,
        num_attention_heads=5,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def batches(data: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    starts = rng.integers(0, data.size - CONTEXT, BATCH)
    return torch.from_numpy(np.stack([data[s : s + CONTEXT] for s in starts]).astype(np.int64))


def loss_of(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-byte cross entropy, nats."""
    logits = model(input_ids=tokens).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: torch.nn.Module, data: np.ndarray, windows: int) -> float:
    """Loss over `windows` windows spread evenly over data."""
    starts = np.linspace(0, data.size - CONTEXT, windows).astype(int)
    tokens = torch.from_numpy(np.stack([data[s : s + CONTEXT] for s in starts]).astype(np.int64))
    parts = [loss_of(model, part) * len(part) for part in tokens.split(BATCH)]
    return float(torch.stack(parts).sum() / len(tokens))


def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW; matrices decay, norm weights do not."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)


def rate(step: int, steps: int) -> float:
    warmup = min(1.0, (step + 1) / 100)
    return warmup * min(1.0, 2 * (steps - step) / steps)


def train(model: Model, steps: int, train_text: np.ndarray, held_out: np.ndarray) -> Model:
    """Train in place and return it in evaluation mode; prints the losses as it goes."""
    rng = np.random.default_rng(SEED)
    forward = torch.compile(model)
    opt = optimizer(model)
    started = time.monotonic()
    for step in range(steps):
        for group in opt.param_groups:
            group["lr"] = PEAK_RATE * rate(step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(forward, batches(train_text, rng))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == steps - 1:
            seen = evaluate(model, held_out, 64) if step % 400 == 0 else math.nan
            spent = time.monotonic() - started
            print(f"{step:6d}  train {loss.item():.4f}  held out {seen:.4f}  {spent:.0f} s", flush=True)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="where the weights go (.pt)")
    parser.add_argument("--steps", type=int, default=2800, help="steps of 8,192 bytes")
    args = parser.parse_args()
    train_text, held_out = split_text()
    started = time.monotonic()
    torch.manual_seed(SEED)
    model = train(build_model(), args.steps, train_text, held_out)
    torch.save(model.state_dict(), args.checkpoint)
    metrics = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_bytes": train_text.size,
        "held_out_bytes": held_out.size,
        "bytes_seen": args.steps * BATCH * CONTEXT,
        "context": CONTEXT,
        "nats_per_byte": {
            "byte_frequencies": round(byte_entropy(train_text, held_out), 4),
            "trigram": round(trigram_loss(train_text, held_out), 4),
            "model": round(evaluate(model, held_out, 512), 4),
        },
        "seconds": round(time.monotonic() - started),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    (HERE / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
