"""Rows in a file are what they were, in half precision."""

from __future__ import annotations

import numpy as np
import pytest

from dynorm_onnx.calibration.rotation import kept_rows
from dynorm_onnx.calibration.rotation.kept_rows import KeptRows


def test_any_piece_is_read_as_it_was_written() -> None:
    rows = np.random.default_rng(0).standard_normal((23, 5)).astype(np.float32)
    kept, wanted = KeptRows(rows), rows.astype(np.float16).astype(np.float32)
    assert len(kept) == 23 and kept.channels == 5
    for start, stop in ((0, 23), (7, 9), (22, 23), (4, 4), (3, 11)):
        assert np.array_equal(kept.read(start, stop), wanted[start:stop])


@pytest.mark.parametrize("stop", [None, 0, 1, 8, 9, 23])
def test_pieces_make_up_the_whole(monkeypatch: pytest.MonkeyPatch, stop: int | None) -> None:
    monkeypatch.setattr(kept_rows, "BLOCK", 20)
    rows = np.random.default_rng(0).standard_normal((23, 5)).astype(np.float16)
    pieces = list(KeptRows(rows).blocks(stop))
    assert all(len(piece) <= 4 and np.array_equal(piece, rows[place]) for place, piece in pieces)
    assert sum(len(piece) for _, piece in pieces) == len(rows[:stop])
