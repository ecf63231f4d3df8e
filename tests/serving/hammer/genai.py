"""ONNX Runtime GenAI in this process: threads that generate with one model at once, among prompts that fit nothing."""

from __future__ import annotations

import os
import runpy
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai

from dynorm_onnx.errors import DynormError
from dynorm_onnx.serving.genai import convert_genai_folder
from dynorm_onnx.serving.speed import LoadedFolder
from tests.serving.greedy import Decoder
from tests.serving.hammer import crew
from tests.serving.hammer.http_good import Send
from tests.serving.hammer.tally import ANSWERED, CUT, REFUSED, Fault, Tally
from tests.serving.hammer.verdict import Hammered, judged
from tests.serving.hammer.watch import Watch
from tests.shipped import FOLDER, TEXT

QUICK: dict[str, Any] = {"samples": 16, "method": "fit", "rotate": False, "validate": False, "time": False}
PROMPTS, LONG_PROMPTS, COUNT = 96, 2, 24
LENGTHS = (8, 16, 32, 64)  # of prompts; those of one length go into one batch
CONTEXT, VOCABULARY = 2048, 256
# A choice between two tokens that are nearer than this may fall otherwise where sums are in another order
APART = 1e-3


def hammer(model: Path, seconds: float, mebibytes: int) -> Hammered:
    """Generate for so long with the shipped model as a GenAI folder, converted; the other arguments are not used."""
    with tempfile.TemporaryDirectory() as folder:
        original, converted = Path(folder) / "original", Path(folder) / "converted"
        runpy.run_path(str(FOLDER / "genai.py"))["write"](original)
        convert_genai_folder(original, converted, data=TEXT, **QUICK)
        return _hammered(Generations(converted), seconds)


def _hammered(generations: Generations, seconds: float) -> Hammered:
    tally, rng = Tally(), np.random.default_rng(0)
    everything = generations.good() | generations.malformed() | generations.cut() | generations.large()
    for name, send in everything.items():
        crew.one(tally, f"before: {name}", send, rng)
    watch = Watch({"process": os.getpid()}, None)
    watch.start()
    members = [generations.good, generations.good, generations.good, generations.malformed, generations.cut]
    pauses = [0.0, 0.0, 0.0, 0.01, 0.02, 1.0]
    crew.work(tally, [_member(kinds) for kinds in (*members, generations.large)], pauses, seconds)
    watch.stop()
    for name, send in generations.good().items():
        crew.one(tally, f"after: {name}", send, rng)
    watch.look()
    return judged(tally, watch)


def _member(kinds: Callable[[], Mapping[str, Send]]) -> crew.Member:
    return lambda: (kinds(), lambda: None)


def prompts(decoder: Decoder) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt, its continuation) by plain ONNX Runtime, distinct in both, without choices that rounding may turn."""
    text, rng, seen = TEXT.read_bytes(), np.random.default_rng(0), set()
    while len(seen) < PROMPTS + LONG_PROMPTS:
        length = CONTEXT - COUNT if len(seen) < LONG_PROMPTS else int(rng.choice(LENGTHS))
        start = int(rng.integers(len(text) - CONTEXT))
        prompt = list(text[start : start + length])
        steps = list(decoder.steps(prompt, COUNT))
        tokens = tuple(token for token, _ in steps)
        if tokens not in seen and 0 not in tokens and min(margin for _, margin in steps) > APART:
            seen.add(tokens)
            yield prompt, list(tokens)


class Generations:
    """Everything that can be asked of one loaded folder, rightly and wrongly."""

    def __init__(self, folder: Path) -> None:
        self._known = list(prompts(Decoder(folder / "model.onnx")))
        self._loaded = LoadedFolder(folder)
        self._model = self._loaded.model
        self._turn, self._lock = 0, threading.Lock()

    def good(self) -> dict[str, Send]:
        """By name."""
        return {
            "good generate": self._generate,
            "good two in turn": self._two_in_turn,
            "good after a rewind": self._rewound,
            "good after a stop": self._stopped_and_resumed,
            "good batch": self._batch,
        }

    def malformed(self) -> dict[str, Send]:
        """By name: of ours, which must be sentences, and of the library's own interface."""
        text = list(b"def main():\n")
        prompts: dict[str, tuple[Any, int]] = {
            "empty": ([], 4),
            "beyond the vocabulary": ([*text, VOCABULARY], 4),
            "negative": ([*text, -1], 4),
            "vast id": ([2**62], 4),
            "fraction": ([1.5], 4),
            "too long": (text * 200, 4),
            "too many tokens": (text, CONTEXT),
            "no tokens": (text, 0),
        }
        options: dict[str, dict[str, Any]] = {
            "unknown": {"nonsense": 1},
            "max_length 0": {"max_length": 0},
            "max_length beyond the context": {"max_length": CONTEXT + 1},
            "max_length text": {"max_length": "x"},
            "num_beams 0": {"num_beams": 0},
            "batch_size 0": {"batch_size": 0},
            "batch_size vast": {"batch_size": 10**6},
            "top_k negative": {"do_sample": True, "top_k": -5},
            "top_p 7": {"do_sample": True, "top_p": 7.0},
            "num_return_sequences": {"num_return_sequences": 5},
        }
        raw: dict[str, Any] = {
            "beyond the vocabulary": [*text, VOCABULARY],
            "vast id": [2**31 - 1],
            "below the vocabulary": [-VOCABULARY - 1],
            "empty": [],
            "text": "def",
            "too long": text * 10,
        }
        kinds: dict[str, Send] = {f"prompt {name}": self._sentence(*given) for name, given in prompts.items()}
        kinds |= {f"option {name}": self._refused(text, changed) for name, changed in options.items()}
        kinds |= {f"GenAI {name}": self._refused(given, {"max_length": 40}) for name, given in raw.items()}
        return kinds | {"GenAI no prompt": self._refused(None, {}), "GenAI past the end": self._past_the_end}

    def cut(self) -> dict[str, Send]:
        """By name."""
        return {
            "cut dropped": self._dropped,
            "cut dropped at once": self._dropped_at_once,
            "cut stopped": self._stopped,
        }

    def large(self) -> dict[str, Send]:
        """By name."""
        return {"good long": self._long, "large batch": self._large_batch}

    def _next(self, count: int = 1) -> list[tuple[list[int], list[int]]]:
        """Prompts that no other request has just been given, each with its continuation; none of the long ones."""
        with self._lock:
            self._turn += count
            turns = range(self._turn - count, self._turn)
        return [self._known[LONG_PROMPTS + turn % PROMPTS] for turn in turns]

    def _generator(self, prompt: Any, count: int = COUNT, **options: Any) -> Any:
        parameters = genai.GeneratorParams(self._model)
        parameters.set_search_options(**{"max_length": len(prompt or ()) + count, "do_sample": False} | options)
        return genai.Generator(self._model, parameters)

    def _generate(self, rng: np.random.Generator) -> str:
        ((prompt, wanted),) = self._next()
        return _right(self._loaded.generate(prompt, COUNT), wanted)

    def _two_in_turn(self, rng: np.random.Generator) -> str:
        """Two generators of one thread, a token of each in turn."""
        pairs = self._next(2)
        made = [self._generator(prompt) for prompt, _ in pairs]
        for generator, (prompt, _) in zip(made, pairs, strict=True):
            generator.append_tokens(prompt)
        for _ in range(COUNT):
            for generator in made:
                generator.generate_next_token()
        for generator, (prompt, wanted) in zip(made, pairs, strict=True):
            _right(_behind(generator, prompt), wanted)
        return ANSWERED

    def _rewound(self, rng: np.random.Generator) -> str:
        ((prompt, wanted),) = self._next()
        generator = self._generator(prompt)
        generator.append_tokens(prompt)
        for _ in range(int(rng.integers(1, COUNT))):
            generator.generate_next_token()
        generator.rewind_to(len(prompt) - 1)
        generator.append_tokens(prompt[-1:])
        return _right(_finished(generator, prompt), wanted)

    def _stopped_and_resumed(self, rng: np.random.Generator) -> str:
        """Stopped between two tokens, and told to go on."""
        ((prompt, wanted),) = self._next()
        generator = self._generator(prompt)
        generator.append_tokens(prompt)
        generator.generate_next_token()
        generator.set_runtime_option("terminate_session", "1")
        try:
            generator.generate_next_token()
        except RuntimeError:
            generator.set_runtime_option("terminate_session", "0")
            return _right(_finished(generator, prompt), wanted)
        raise Fault("a generator that was stopped goes on")

    def _batch(self, rng: np.random.Generator) -> str:
        """Prompts of one length side by side."""
        length = len(self._next()[0][0])
        alike = [pair for pair in self._known if len(pair[0]) == length]
        pairs = [alike[row] for row in rng.permutation(len(alike))[:4]]
        generator = self._generator(pairs[0][0], batch_size=len(pairs))
        generator.append_tokens(np.array([prompt for prompt, _ in pairs], np.int32))
        _finished(generator, pairs[0][0])
        for row, (prompt, wanted) in enumerate(pairs):
            _right(_behind(generator, prompt, row), wanted)
        return ANSWERED

    def _long(self, rng: np.random.Generator) -> str:
        prompt, wanted = self._known[int(rng.integers(LONG_PROMPTS))]
        return _right(self._loaded.generate(prompt, COUNT), wanted)

    def _large_batch(self, rng: np.random.Generator) -> str:
        """As many keys and values as the library allows: 32 rows of the whole context."""
        generator = self._generator([65], CONTEXT - 1, batch_size=32)
        generator.append_tokens(np.full((32, 4), 65, np.int32))
        for _ in range(3):
            generator.generate_next_token()
        return CUT

    def _sentence(self, prompt: Any, count: int) -> Send:
        def send(rng: np.random.Generator) -> str:
            try:
                tokens = self._loaded.generate(prompt, count)
            except DynormError as error:
                if len(str(error)) > 400:
                    raise Fault(f"{len(str(error))} letters are no sentence") from None
                return f"{REFUSED}: {type(error).__name__}"
            raise Fault(f"no error, but {tokens[:8]}")

        return send

    def _refused(self, prompt: Any, options: Mapping[str, Any]) -> Send:
        def send(rng: np.random.Generator) -> str:
            try:
                generator = self._generator(prompt if isinstance(prompt, list) else [65], **options)
                if prompt is not None:
                    generator.append_tokens(prompt)
                generator.generate_next_token()
            except (RuntimeError, TypeError) as error:
                return f"{REFUSED}: {type(error).__name__}"
            raise Fault("no error")

        return send

    def _past_the_end(self, rng: np.random.Generator) -> str:
        ((prompt, wanted),) = self._next()
        generator = self._generator(prompt)
        generator.append_tokens(prompt)
        _right(_finished(generator, prompt), wanted)
        try:
            generator.generate_next_token()
        except RuntimeError:
            _right(_behind(generator, prompt), wanted)
            return f"{REFUSED}: RuntimeError"
        raise Fault("a generator that is done goes on")

    def _dropped(self, rng: np.random.Generator) -> str:
        ((prompt, wanted),) = self._next()
        generator, count = self._generator(prompt), int(rng.integers(COUNT))
        generator.append_tokens(prompt)
        for _ in range(count):
            generator.generate_next_token()
        _right(_behind(generator, prompt), wanted[:count])
        return CUT

    def _dropped_at_once(self, rng: np.random.Generator) -> str:
        self._generator(self._next()[0][0])
        return CUT

    def _stopped(self, rng: np.random.Generator) -> str:
        """By another thread, at some moment of a long text."""
        ((prompt, wanted),) = self._next()
        generator = self._generator(prompt, CONTEXT - len(prompt))
        timer = threading.Timer(rng.random() / 5, generator.set_runtime_option, ("terminate_session", "1"))
        timer.start()
        try:
            generator.append_tokens(prompt)
            while not generator.is_done():
                generator.generate_next_token()
        except RuntimeError as error:
            if "erminated" not in str(error):
                raise
        finally:
            timer.join()
        tokens = _behind(generator, prompt)[:COUNT]
        _right(tokens, wanted[: len(tokens)])
        return CUT


def _finished(generator: Any, prompt: list[int]) -> list[int]:
    while not generator.is_done():
        generator.generate_next_token()
    return _behind(generator, prompt)


def _behind(generator: Any, prompt: list[int], row: int = 0) -> list[int]:
    return [int(token) for token in generator.get_sequence(row)[len(prompt) :]]


def _right(tokens: list[int], wanted: list[int]) -> str:
    if tokens != wanted:
        raise Fault(f"generated {tokens}, and should have {wanted}")
    return ANSWERED
