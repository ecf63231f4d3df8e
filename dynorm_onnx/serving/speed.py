"""Tokens per second of ONNX Runtime GenAI folders, generating greedily."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dynorm_onnx.errors import DataError, ModelError, UsageError
from dynorm_onnx.runtime.arrays import first_line
from dynorm_onnx.serving.genai import CONFIG

_LARGEST = 2**31 - 1  # tokens are int32


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


class LoadedFolder:
    """A GenAI folder in memory. Threads may generate with it at once: each call has a generator of its own.

    Raises UsageError where onnxruntime-genai is not installed, ModelError where it cannot load the folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._genai = onnxruntime_genai()
        self.model = _load(self._genai, self.folder)
        described = json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))["model"]
        self._vocabulary = int(described.get("vocab_size") or _LARGEST)
        self._context = int(described.get("context_length") or _LARGEST)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, by the folder's own tokenizer."""
        return [int(token) for token in self._genai.Tokenizer(self.model).encode(text)]

    def generate(self, prompt: Sequence[int], count: int) -> list[int]:
        """The tokens put greedily behind a prompt: at most `count`, fewer at the end of a text.

        Raises UsageError for a count below 1; DataError where the prompt is empty, a token is none of the vocabulary,
        or prompt and tokens are longer than the context; ModelError where onnxruntime-genai fails.
        """
        return self.timed(prompt, count)[0]

    def timed(self, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        """(tokens, seconds that each of them took, the first one with the prompt); raises what generate() raises."""
        self._check(prompt, count)
        try:
            return _run(self._genai, self.model, list(prompt), count)
        except Exception as error:  # plain RuntimeErrors of the binding
            raise ModelError(f"onnxruntime-genai cannot generate with {self.folder}: {first_line(error)}") from error

    def _check(self, prompt: Sequence[int], count: int) -> None:
        """onnxruntime-genai 0.18 takes negative tokens, and fractions as what is before the point."""
        if count < 1:
            raise UsageError(f"tokens to generate must be at least 1, not {count}")
        if len(prompt) == 0:
            raise DataError(f"{self.folder}: the prompt is empty")
        for token in prompt:
            if not isinstance(token, int | np.integer) or not 0 <= token < self._vocabulary:
                raise DataError(
                    f"{self.folder}: {str(token)[:40]} in the prompt is no token: they lie in 0..{self._vocabulary - 1}"
                )
        if len(prompt) + count > self._context:
            raise DataError(
                f"{self.folder}: a prompt of {len(prompt)} tokens and {count} more are longer than its context, "
                f"{self._context}"
            )


def generate(folder: str | os.PathLike[str], prompt: Sequence[int], count: int) -> list[int]:
    """The tokens that onnxruntime-genai puts greedily behind a prompt; raises what LoadedFolder and its method do."""
    return LoadedFolder(folder).generate(prompt, count)


def measure_speed(
    folders: Sequence[str | os.PathLike[str]], prompt: str, *, tokens: int = 128, runs: int = 7
) -> list[GenerationSpeed]:
    """Generate greedily with each folder in turn, `runs` times, after one run to warm up.

    Raises what LoadedFolder and its generate() raise, and ModelError where fewer than two tokens are generated.
    """
    models = {str(folder): LoadedFolder(folder) for folder in folders}
    prompts = {name: model.encode(prompt) for name, model in models.items()}
    measured: dict[str, list[list[float]]] = {name: [] for name in models}
    for turn in range(runs + 1):
        for name, model in models.items():
            _, times = model.timed(prompts[name], tokens)
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
        raise ModelError(f"onnxruntime-genai cannot load {folder}: {first_line(error)}") from error


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
