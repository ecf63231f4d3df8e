"""Some dozen composed graphs (thousands of them: docs/limits.md), and the seeds that once came out wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.differential.checks import check_conversion, check_replacement, check_rewrite
from tests.differential.composer import compose

FOUND = (41, 46, 96, 103, 127, 10491)
"""A norm in float16 before one in float32, which then read what had gone with the first, or whose scale of 1.0005 was
taken for a rounded 1."""


@pytest.mark.parametrize("seed", [*range(12), *FOUND])
def test_every_norm_is_found_and_outputs_stay(seed: int) -> None:
    check_rewrite(compose(seed))


@pytest.mark.parametrize("seed", [*range(12), *FOUND])
def test_the_converted_graph_is_the_one_built_by_hand(seed: int) -> None:
    check_replacement(seed)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whole_conversions(seed: int, tmp_path: Path) -> None:
    check_conversion(seed, tmp_path)
