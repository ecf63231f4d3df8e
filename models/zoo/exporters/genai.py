"""ONNX Runtime GenAI's model builder, which writes fused operators from the weights (pip install onnxruntime-genai)."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models.zoo.subject import Subject

_SPECIAL = 3  # tokens: padding, beginning, end
_OPTIONS = {"int4": ["accuracy_level=1"]}


def export(subject: Subject, folder: Path, *, precision: str) -> list[Path]:
    """Writes what the builder makes for the CPU: model.onnx, or an encoder and a decoder.

    Args:
        precision: "fp32", or "int4" for quantised matrices. Activations stay float32 (accuracy level 1): the
            builder's own choice rounds them to int8 within every product, and what differs by 1e-7 before
            such a step differs by 1e-3 behind it, so that no exact rewrite could be told from a wrong one.
    """
    from onnxruntime_genai.models import builder  # type: ignore[import-untyped]

    source, target = folder / "source", folder / "built"
    where = (str(source), str(source), str(target), precision, "cpu", str(folder / "cache"))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        subject.model.save_pretrained(source)
        _tokenizer(subject).save_pretrained(source)
        options = builder.parse_extra_options(*where, _OPTIONS.get(precision, []))
        builder.create_model(*where, **options)
    return sorted(target.glob("*.onnx"), key=lambda path: "decoder" in path.name)


def _tokenizer(subject: Subject) -> PreTrainedTokenizerFast:
    """One word for every row of the embedding: the builder insists on a tokenizer, whatever it is."""
    words = {f"w{row}": row for row in range(getattr(subject.model.config, "vocab_size", _SPECIAL))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", bos_token="w1", eos_token="w2")
