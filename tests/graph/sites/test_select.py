"""The patterns of --only and --keep."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from dynorm_onnx.errors import NoSiteError, UsageError
from dynorm_onnx.graph.norm_site import NormSite, Refusal, SitesFound
from dynorm_onnx.graph.sites.select import select


def found(*names: str, refused: tuple[Refusal, ...] = ()) -> SitesFound:
    sites = tuple(
        NormSite(name, "rms", "B1", (), None, None, None, None, 1e-6, (-1,), 8, ir.DataType.FLOAT) for name in names
    )
    return SitesFound(sites, refused, ())


NAMES = ("layers.0.norm", "layers.0.q_norm", "layers.1.norm", "norm")


def test_all_without_patterns() -> None:
    chosen, kept = select(found(*NAMES), [], [])
    assert tuple(site.name for site in chosen) == NAMES and kept == {}


def test_only_and_keep_together() -> None:
    chosen, kept = select(found(*NAMES), ["layers.*"], ["*q_norm"])
    assert [site.name for site in chosen] == ["layers.0.norm", "layers.1.norm"]
    assert kept == {"layers.0.q_norm": "--keep *q_norm", "norm": "not named by --only"}


def test_regular_expressions_are_searched() -> None:
    chosen, _ = select(found(*NAMES), [r"re:layers\.\d+\.norm$"], [])
    assert [site.name for site in chosen] == ["layers.0.norm", "layers.1.norm"]


@pytest.mark.parametrize("knob", ["--only", "--keep"])
def test_a_pattern_without_a_match_is_an_error(knob: str) -> None:
    only, keep = (["nothing*"], []) if knob == "--only" else ([], ["nothing*"])
    with pytest.raises(UsageError, match=rf"{knob} 'nothing\*'"):
        select(found(*NAMES), only, keep)


def test_nothing_left_and_nothing_there() -> None:
    with pytest.raises(NoSiteError, match="leave none of the 4"):
        select(found(*NAMES), [], ["*"])
    refusal = Refusal("n", "layer", "A3", 8, None, "its mean is used elsewhere")
    with pytest.raises(NoSiteError, match="its mean is used elsewhere"):
        select(found(refused=(refusal,)), [], [])
