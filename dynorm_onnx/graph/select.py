"""Which of the sites found are to be replaced: the patterns of --only and --keep."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence

import onnx_ir as ir

from dynorm_onnx.errors import NoSiteError, UsageError
from dynorm_onnx.graph.fixed import follows_from_constants, is_fixed
from dynorm_onnx.graph.norm_site import NormSite, SitesFound
from dynorm_onnx.graph.sizes import sized_by_values


def select(
    found: SitesFound, only: Sequence[str], keep: Sequence[str], *, replaced: int = 0
) -> tuple[tuple[NormSite, ...], dict[str, str]]:
    """(the sites to replace, reason by name for those to keep); `replaced` norms were before, and are told of.

    A pattern is a glob over the site's name ("*q_norm*") or, after "re:", a regular expression that
    is searched in it. Raises UsageError for a pattern that is no regular expression or matches no
    site, NoSiteError where there is no site at all.
    """
    if not found.sites:
        reasons = [f"{refusal.name}: {refusal.reason}" for refusal in found.refused[:3]]
        hint = f"; recognised but not replaceable: {'; '.join(reasons)}" if reasons else ""
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


def leave_constants(
    chosen: Sequence[NormSite], kept: dict[str, str], graph: ir.Graph
) -> tuple[tuple[NormSite, ...], dict[str, str]]:
    """The same two without the sites whose input is one in every run, such as learned queries: a runtime computes
    them once, when it loads the model, and there is no data to fit a function to.

    Raises NoSiteError where none is left.
    """
    constant = follows_from_constants(graph)
    same = [site for site in chosen if site.x is not None and (is_fixed(site.x) or site.x in constant)]
    kept = kept | {site.name: "its input is the same in every run" for site in same}
    left = tuple(site for site in chosen if site not in same)
    if not left:
        names = ", ".join(site.name for site in same[:3])
        raise NoSiteError(f"the inputs of all norms are the same in every run ({names}): they cost nothing as they are")
    return left, kept


def leave_unpaired(
    chosen: Sequence[NormSite], kept: dict[str, str], graph: ir.Graph
) -> tuple[tuple[NormSite, ...], dict[str, str]]:
    """The same two without the sites that see as many tokens as values say which the other sites change: a token of the
    original has no counterpart by which a function could be fitted. (The first site is never one of them.)
    """
    sizes = sized_by_values(graph, (output for site in chosen for node in site.nodes for output in node.outputs))
    why = {site.name: sizes[x] for site in chosen if (x := _read_first(site)) in sizes}
    kept = kept | {
        name: f"how many tokens it sees follows from values ({by}) that the norms before it change, so that its tokens "
        "in the original and in the converted model cannot be paired"
        for name, by in why.items()
    }
    return tuple(site for site in chosen if site.name not in why), kept


def _read_first(site: NormSite) -> ir.Value | None:
    return site.x if site.x is not None else site.nodes[0].inputs[0]


def matcher(knob: str, pattern: str) -> Callable[[str], bool]:
    """What a pattern selects; UsageError, naming the knob, for one that is no regular expression."""
    if not pattern.startswith("re:"):
        return lambda name: fnmatch.fnmatchcase(name, pattern)
    try:
        expression = re.compile(pattern[3:])
    except re.error as error:
        raise UsageError(f"{knob} {pattern!r} is no regular expression: {error}") from error
    return lambda name: expression.search(name) is not None
