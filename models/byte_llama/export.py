"""Write the trained byte-level Llama as ONNX, with its tokenizer and a sample of text it never saw.

python models/byte_llama/export.py --checkpoint byte_llama.pt
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from text import held_out_sample
from train import build_model
from transformers import LlamaForCausalLM

HERE = Path(__file__).parent
SAMPLE_BYTES = 300_000


class Logits(LlamaForCausalLM):
    """input_ids [batch, sequence] int64 -> logits [batch, sequence, 256], with the model's own names."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids=input_ids).logits


def export(model: torch.nn.Module, path: Path) -> None:
    example = torch.randint(0, 256, (2, 32))
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    program = torch.onnx.export(
        model.eval(),
        (example,),
        input_names=["input_ids"],
        output_names=["logits"],
        dynamic_shapes=(dims,),
        dynamo=True,
    )
    # Stack traces and paths of the exporting machine are half a megabyte that nobody needs.
    ClearMetadataAndDocStringPass()(program.model)
    ir.save(program.model, path)


def byte_tokenizer() -> dict:
    """A tokenizer.json in which the id of a token is its byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # The byte-level alphabet writes printable Latin-1 bytes as themselves and the rest from U+0100 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte): byte for byte in printable}
    vocabulary |= {chr(256 + place): byte for place, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return json.loads(tokenizer.to_str())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights from train.py (.pt)")
    args = parser.parse_args()
    model = Logits(build_model().config)
    model.load_state_dict(torch.load(args.checkpoint, weights_only=True))
    export(model, HERE / "byte_llama.onnx")
    (HERE / "tokenizer.json").write_text(json.dumps(byte_tokenizer(), ensure_ascii=False))
    (HERE / "held_out.txt").write_bytes(held_out_sample(SAMPLE_BYTES))


if __name__ == "__main__":
    main()
