"""What people run on an exported file before they deploy it: two optimisers that fuse operators for ONNX Runtime."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx_ir as ir

from models.zoo.subject import Subject

# The model types of ONNX Runtime's optimiser by those of transformers; decoders without one of their own
# are treated like GPT-2, as Qwen3 is.
_TYPES = {"bert": "bert", "gpt2": "gpt2", "t5": "t5", "vit": "vit", "qwen3": "qwen3", "whisper": "bart"}
_OTHER_TYPE = "gpt2"


def onnxruntime_transformers(subject: Subject, path: Path, optimised: Path) -> None:
    """`python -m onnxruntime.transformers.optimizer`: Skip norms, attention and activations in one operator each."""
    from onnxruntime.transformers.optimizer import optimize_model

    config = subject.model.config
    heads = getattr(config, "num_attention_heads", 0)  # a model without attention has none
    logging.getLogger("onnxruntime.transformers").setLevel(logging.ERROR)
    model = optimize_model(
        str(path),
        model_type=_TYPES.get(config.model_type, _OTHER_TYPE),
        num_heads=heads,
        hidden_size=config.hidden_size if heads else 0,
        opt_level=0,  # its own fusions alone: ONNX Runtime's are made when the file is loaded
    )
    model.save_model_to_file(str(optimised))


def onnxscript_ort(subject: Subject, path: Path, optimised: Path) -> None:
    """onnxscript's optimize_for_ort, the fusions for files of the dynamo exporter."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model, _ = optimize_for_ort(ir.load(path))
    ir.save(model, optimised)
