"""Train and export a byte-level Qwen3: the shipped Llama's text and training, with norms of q and k in every head.

    python models/byte_qwen3/make.py

writes byte_qwen3.onnx and metrics.json; eight minutes on one busy CPU core (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "byte_llama"))

from export import export  # noqa: E402
from text import split_text  # noqa: E402
from train import BATCH, CONTEXT, SEED, evaluate, train  # noqa: E402


class ByteQwen3(Qwen3ForCausalLM):
    """input_ids [batch, sequence] int64 -> logits [batch, sequence, 256], with the model's own names."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids=input_ids).logits


def build_model() -> Qwen3ForCausalLM:
    """Three layers, 13 RMSNorms (6 of them of q and k, per head), 0.61 million parameters, bytes for tokens."""
    config = Qwen3Config(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    return Qwen3ForCausalLM(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE, help="the folder to write to (default: here)")
    parser.add_argument("--steps", type=int, default=600, help=f"steps of {BATCH * CONTEXT:,} bytes")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    train_text, held_out = split_text()
    started = time.monotonic()
    torch.manual_seed(SEED)
    trained = train(build_model(), args.steps, train_text, held_out)
    metrics = {
        "parameters": sum(p.numel() for p in trained.parameters()),
        "bytes_seen": args.steps * BATCH * CONTEXT,
        "nats_per_byte": round(evaluate(trained, held_out, 512), 4),
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(metrics))
    model = ByteQwen3(trained.config)
    model.load_state_dict(trained.state_dict())
    export(model, args.output / "byte_qwen3.onnx")
    (args.output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
