"""A model with what an exporter must know of it: example inputs, their names, which sizes are free."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import torch
import transformers

from models.zoo.architectures import ARCHITECTURES
from models.zoo.norms import randomise

BATCH, SEQUENCE = 2, 12
FIRST_TOKEN = 3  # below are the usual special tokens


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model to be exported; `inputs` in the order in which the positional arguments of `module` come."""

    name: str
    model: transformers.PreTrainedModel
    inputs: dict[str, torch.Tensor]
    free: dict[str, dict[int, str]]  # by input, the axes of any size, with their names
    output: str

    @property
    def module(self) -> torch.nn.Module:
        """The model as a function of the inputs alone that returns one tensor."""
        return _OneOutput(self.model, tuple(self.inputs), self.output).eval()

    @property
    def example(self) -> tuple[torch.Tensor, ...]:
        """The inputs as positional arguments."""
        return tuple(self.inputs.values())


class _OneOutput(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, names: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.model, self.names, self.output = model, names, output

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, args, strict=True)), **_no_cache(self.model))[self.output]


def _no_cache(model: torch.nn.Module) -> dict[str, bool]:
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def tiny(name: str) -> Subject:
    """One of ARCHITECTURES with its weights drawn, prepared as its exporters need it."""
    architecture = ARCHITECTURES[name]
    subject = of_model(name, architecture.build())
    randomise(subject.module, subject.example)
    return prepared(
        subject,
        attention=architecture.attention,
        experts=architecture.experts,
        fixed_length=architecture.fixed_length,
    )


def pretrained(source: str) -> Subject:
    """A model from a local folder or, where there is a network, by its name on the Hugging Face hub.

    Raises ValueError where its configuration names no architecture.
    """
    config = transformers.AutoConfig.from_pretrained(source)
    if not config.architectures:
        raise ValueError(f"{source}: its config.json names no architecture")
    # float32 whatever the checkpoint is in: ONNX Runtime's CPU kernels want it
    model = getattr(transformers, config.architectures[0]).from_pretrained(source, dtype=torch.float32)
    return of_model(Path(source).name, model.eval())


def prepared(
    subject: Subject, *, attention: str | None = None, experts: str | None = None, fixed_length: bool = False
) -> Subject:
    """The same model in a spelling that an exporter can read; it computes the same.

    Args:
        attention, experts: implementations by the names that transformers gives them ("eager", "batched_mm").
        fixed_length: give the sequence the length of the example, for models that cut it into chunks.
    """
    if attention is not None:
        subject.model.set_attn_implementation(attention)
    if experts is not None:
        subject.model.set_experts_implementation(experts)
    if not fixed_length:
        return subject
    batch = {name: {axis: free for axis, free in axes.items() if axis == 0} for name, axes in subject.free.items()}
    return dataclasses.replace(subject, free=batch)


def of_model(name: str, model: transformers.PreTrainedModel) -> Subject:
    """Example inputs by what the model's forward takes: token ids, pixels or audio features."""
    config, takes = model.config, inspect.signature(model.forward).parameters
    random = torch.Generator().manual_seed(0)
    vocabulary = getattr(config, "vocab_size", FIRST_TOKEN + 1)
    tokens = {0: "batch", 1: "sequence"}

    def ids(length: int = SEQUENCE) -> torch.Tensor:
        return torch.randint(FIRST_TOKEN, vocabulary, (BATCH, length), generator=random)

    inputs: dict[str, torch.Tensor] = {}
    free: dict[str, dict[int, str]] = {}
    if model.main_input_name == "pixel_values":
        size = config.image_size
        inputs["pixel_values"] = torch.randn(BATCH, config.num_channels, size, size, generator=random)
        free["pixel_values"] = {0: "batch"}
    elif model.main_input_name == "input_features":
        frames = 2 * config.max_source_positions
        inputs["input_features"] = torch.randn(BATCH, config.num_mel_bins, frames, generator=random)
        free["input_features"] = {0: "batch"}
    else:
        inputs["input_ids"] = ids()
        free["input_ids"] = tokens
        for extra, value in (("attention_mask", 1), ("token_type_ids", 0)):
            if extra in takes:
                inputs[extra] = torch.full((BATCH, SEQUENCE), value)
                free[extra] = tokens
        # given for every sample: ONNX Runtime's RotaryEmbedding (opset 23) takes no table shared by a batch
        if "position_ids" in takes and "token_type_ids" not in takes:
            inputs["position_ids"] = torch.arange(SEQUENCE).repeat(BATCH, 1)
            free["position_ids"] = tokens
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids(SEQUENCE - 3)
        free["decoder_input_ids"] = {0: "batch", 1: "decoder_sequence"}
    return Subject(name, model, inputs, free, _output_of(model, inputs))


def _output_of(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> str:
    with torch.no_grad():
        outputs: Any = model(**inputs, **_no_cache(model))
    return "logits" if "logits" in outputs else "last_hidden_state"
