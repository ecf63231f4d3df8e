"""Tokens per second of ONNX Runtime GenAI folders, generating greedily."""

from __future__ import annotations

import dataclasses
import importlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dynorm_onnx.errors import ModelError, UsageError


@dataclasses.dataclass(frozen=True)
class GenerationSpeed:
    """How fast a folder generates."""

    folder: str
    prompt: int  # tokens
    generated: int  # tokens, of one run
    runs: int
    prompt_ms: float  # median time to read the prompt and to give the first token
    per_second: float  # median over runs of the further tokens per second
    per_second_p10: float
    per_second_p90: float


def generate(folder: str | os.PathLike[str], prompt: Sequence[int], count: int) -> list[int]:
    """The tokens that onnxruntime-genai puts greedily behind a prompt: at most `count`, fewer at the end of a text.

    Raises UsageError where onnxruntime-genai is not installed, ModelError where it cannot load the folder.
    """
    genai = onnxruntime_genai()
    tokens, _ = _run(genai, _load(genai, Path(folder)), list(prompt), count)
    return tokens


def measure_speed(
    folders: Sequence[str | os.PathLike[str]], prompt: str, *, tokens: int = 128, runs: int = 7
) -> list[GenerationSpeed]:
    """Generate greedily with each folder in turn, `runs` times, after one run to warm up.

    Raises UsageError where onnxruntime-genai is not installed, ModelError where it cannot load a folder or generates
    fewer than two tokens.
    """
    genai = onnxruntime_genai()
    models = {str(folder): _load(genai, Path(folder)) for folder in folders}
    prompts = {name: [int(token) for token in genai.Tokenizer(model).encode(prompt)] for name, model in models.items()}
    measured: dict[str, list[list[float]]] = {name: [] for name in models}
    for turn in range(runs + 1):
        for name, model in models.items():
            _, times = _run(genai, model, prompts[name], tokens)
            if len(times) < 2:
                raise ModelError(f"{name}: the text ends after {len(times)} tokens; try another prompt")
            if turn:
                measured[name].append(times)
    return [_speed(name, len(prompts[name]), measured[name]) for name in models]


def onnxruntime_genai() -> ModuleType:
    """The module; raises UsageError, with what to install, where it is not there."""
    try:
        return importlib.import_module("onnxruntime_genai")
    except ImportError as error:
        hint = "pip install 'dynorm-onnx[serving]'"
        raise UsageError(f"generating needs onnxruntime-genai ({error}): {hint}") from None


def _load(genai: ModuleType, folder: Path) -> Any:
    try:
        return genai.Model(str(folder))
    except Exception as error:  # plain RuntimeErrors of the binding
        words = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"onnxruntime-genai cannot load {folder}: {words}") from error


def _run(genai: ModuleType, model: Any, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """(tokens generated, seconds that each of them took, the first one with the prompt)."""
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = genai.Generator(model, parameters)
    times = []
    start = time.perf_counter()
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
        now = time.perf_counter()
        times.append(now - start)
        start = now
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]], times


def _speed(folder: str, prompt: int, runs: list[list[float]]) -> GenerationSpeed:
    rates = [(len(times) - 1) / sum(times[1:]) for times in runs]
    p10, median, p90 = (float(q) for q in np.quantile(rates, (0.1, 0.5, 0.9)))
    first = float(1e3 * np.median([times[0] for times in runs]))
    return GenerationSpeed(folder, prompt, len(runs[0]), len(runs), first, median, p10, p90)
