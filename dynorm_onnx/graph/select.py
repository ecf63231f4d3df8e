"""Which of the sites found are to be replaced: the patterns of --only and --keep."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence

from dynorm_onnx.errors import NoSiteError, UsageError
from dynorm_onnx.graph.norm_site import NearMiss, NormSite, Refusal, SitesFound

_SHOWN = 3  # near misses and the like in a sentence


def select(
    found: SitesFound, only: Sequence[str], keep: Sequence[str], *, replaced: int = 0
) -> tuple[tuple[NormSite, ...], dict[str, str]]:
    """(the sites to replace, reason by name for those to keep); `replaced` norms were before, and are told of.

    A pattern is a glob over the site's name ("*q_norm*") or, after "re:", a regular expression that
    is searched in it. Raises UsageError for a pattern that is no regular expression or matches no
    site, NoSiteError where there is no site at all.
    """
    if not found.sites:
        hint = _listed("recognised but not replaceable", found.refused)
        hint += _listed("near misses", found.near_misses)
        if replaced:
            hint = f": {replaced} dynorm nodes stand in their places already{hint}"
        raise NoSiteError(f"the model has no norm that could be replaced{hint}")
    wanted = {pattern: matcher("--only", pattern) for pattern in only}
    unwanted = {pattern: matcher("--keep", pattern) for pattern in keep}
    for knob, matchers in (("--only", wanted), ("--keep", unwanted)):
        for pattern, matches in matchers.items():
            if not any(matches(site.name) for site in found.sites):
                names = ", ".join(site.name for site in found.sites[:3])
                raise UsageError(f"{knob} {pattern!r} matches none of the {len(found.sites)} sites ({names}, ...)")
    kept: dict[str, str] = {}
    for site in found.sites:
        hit = next((pattern for pattern, matches in unwanted.items() if matches(site.name)), None)
        if hit is not None:
            kept[site.name] = f"--keep {hit}"
        elif wanted and not any(matches(site.name) for matches in wanted.values()):
            kept[site.name] = "not named by --only"
    chosen = tuple(site for site in found.sites if site.name not in kept)
    if not chosen:
        raise NoSiteError(f"--only and --keep leave none of the {len(found.sites)} sites to replace")
    return chosen, kept


def _listed(what: str, findings: Sequence[Refusal | NearMiss]) -> str:
    """The first few for a sentence, each with its reason."""
    if not findings:
        return ""
    reasons = "; ".join(f"{finding.name}: {finding.reason}" for finding in findings[:_SHOWN])
    more = f"; and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else ""
    return f"; {what}: {reasons}{more}"


def matcher(knob: str, pattern: str) -> Callable[[str], bool]:
    """What a pattern selects; UsageError, naming the knob, for one that is no regular expression."""
    if not pattern.startswith("re:"):
        return lambda name: fnmatch.fnmatchcase(name, pattern)
    try:
        expression = re.compile(pattern[3:])
    except re.error as error:
        raise UsageError(f"{knob} {pattern!r} is no regular expression: {error}") from error
    return lambda name: expression.search(name) is not None
