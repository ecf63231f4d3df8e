"""Greedy generation by a loop over a session: what a server of the same decoder must generate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dynorm_onnx.calibration.data.missing import complete
from dynorm_onnx.calibration.data.signature import signature
from dynorm_onnx.graph.files import model_io
from dynorm_onnx.runtime.arrays import run
from dynorm_onnx.runtime.session import make_session


class Decoder:
    """A session of a decoder with keys and values of the past, and what feeds it takes."""

    def __init__(self, model: Path, *, kernels: bool | None = None) -> None:
        self._signature = signature(model_io.load(model))
        self._session = make_session(model, kernels=kernels, threads=1)
        self._rng = np.random.default_rng(0)

    def continued(self, prompt: Sequence[int], count: int) -> list[int]:
        """The tokens behind a prompt."""
        return [token for token, _ in self.steps(prompt, count)]

    def steps(self, prompt: Sequence[int], count: int) -> Iterator[tuple[int, float]]:
        """(token, by how much its logit is above the next one's), one run of the session each."""
        feeds = {"input_ids": np.array([list(prompt)], np.int64)}
        for _ in range(count):
            outputs = run(self._session, complete(feeds, self._signature, self._rng))
            logits = outputs["logits"][0, -1]
            second, first = np.sort(logits)[-2:]
            token = int(logits.argmax())
            yield token, float(first - second)
            feeds = {past: outputs[present] for past, present in self._signature.presents.items()}
            feeds["input_ids"] = np.array([[token]])
