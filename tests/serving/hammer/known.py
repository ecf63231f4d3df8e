"""Requests of which the right answers are known: made beforehand by plain ONNX Runtime in this process."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnxruntime as ort

from dynorm_onnx import custom_ops
from tests.serving.hammer.tally import Fault
from tests.tolerances import TOLERANCE, relative_error

INPUT, OUTPUT, VOCABULARY = "input_ids", "logits", 256
ROWS, LONGEST = 2, 48  # of most requests
BATCHED = 10 * TOLERANCE["float32"]  # a batch joined by the server sums in another order than a single request
APART = 100 * BATCHED  # answers of one shape are at least so far from each other: another's is told from one's own


class KnownAnswers:
    """Distinct inputs, each with its answer; handed out in turn, so that no two requests under way are the same."""

    def __init__(self, model: Path, count: int = 512, seed: int = 0, longest: tuple[int, ...] = ()) -> None:
        """`longest`: lengths of a few further inputs of one row."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        library = custom_ops.library_path()
        if library is not None:
            options.register_custom_ops_library(str(library))
        self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(seed)
        sizes = [(int(rng.integers(1, ROWS + 1)), int(rng.integers(2, LONGEST + 1))) for _ in range(count)]
        found = {ids.tobytes(): ids for ids in (rng.integers(0, VOCABULARY, size) for size in sizes)}
        self.inputs = list(found.values())
        self.inputs += [rng.integers(0, VOCABULARY, (1, length)) for length in longest]
        self.answers = [self.answer(ids) for ids in self.inputs]
        self._check_apart()
        self._turn = itertools.count()

    def answer(self, ids: np.ndarray) -> np.ndarray:
        """By the session of this process, which may be asked while no other thread asks it."""
        return self._session.run([OUTPUT], {INPUT: ids})[0]

    def next(self) -> int:
        """The number of an input that nobody has just been given."""
        return next(self._turn) % len(self.inputs)

    def check(self, number: int, answer: np.ndarray) -> None:
        """Raises Fault where the answer is not the one of that input."""
        wanted = self.answers[number]
        if answer.shape != wanted.shape:
            raise Fault(f"an answer of the shape {answer.shape} to a request whose answer has {wanted.shape}")
        error = relative_error(answer, wanted)
        if not error <= BATCHED:
            same = [n for n, other in enumerate(self.answers) if other.shape == answer.shape]
            whose = [n for n in same if relative_error(answer, self.answers[n]) <= BATCHED]
            raise Fault(
                f"a wrong answer, {error:.1e} from the right one" + (f": that of request {whose}" if whose else "")
            )

    def _check_apart(self) -> None:
        for one, other in itertools.combinations(self.answers, 2):
            if one.shape == other.shape:
                assert relative_error(one, other) > APART
