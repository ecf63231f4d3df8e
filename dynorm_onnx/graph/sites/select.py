"""Which of the sites found are to be replaced: the patterns of --only and --keep."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from dynorm_onnx.errors import NoSiteError, UsageError
from dynorm_onnx.graph.forms.fused import SUM_BIAS
from dynorm_onnx.graph.norm_site import NearMiss, NormSite, Refusal, SitesFound
from dynorm_onnx.graph.values.fixed import constant_values
from dynorm_onnx.graph.values.sizes import sized_by_values

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


def leave_constants(
    chosen: Sequence[NormSite], kept: dict[str, str], graph: ir.Graph
) -> tuple[tuple[NormSite, ...], dict[str, str]]:
    """The same two without the sites whose input no calibration data changes: it follows from constants, and from
    inputs with a default. A runtime computes what follows from constants once, when it loads the model.

    `graph` has its nodes in topological order. Raises NoSiteError where no site is left.
    """
    constant = constant_values(graph)
    same = [site for site in chosen if constant.issuperset(_normalised(site))]
    kept = kept | {site.name: "its input is the same in every run" for site in same}
    left = tuple(site for site in chosen if site not in same)
    if not left:
        names = ", ".join(site.name for site in same[:3])
        raise NoSiteError(f"the inputs of all norms are the same in every run ({names}): they cost nothing as they are")
    return left, kept


def _normalised(site: NormSite) -> Iterable[ir.Value]:
    """What the norm's input is made of: its x, or what goes in where x exists only inside the operator."""
    if site.x is not None:
        return (site.x,)
    node = site.nodes[0]
    summands = {0, 1, SUM_BIAS[node.op_type]} if node.op_type in SUM_BIAS else range(len(node.inputs))
    return [value for place, value in enumerate(node.inputs) if place in summands and value is not None]


def leave_unpaired(
    chosen: Sequence[NormSite], kept: dict[str, str], graph: ir.Graph
) -> tuple[tuple[NormSite, ...], dict[str, str]]:
    """The same two without the sites that see as many tokens as values say which the other sites change: a token of the
    original has no counterpart by which a function could be fitted. (The first site is never one of them, nor are sites
    in bodies, which are fitted to the original alone.)
    """
    sizes = sized_by_values(graph, (output for site in chosen for node in site.nodes for output in node.outputs))
    outside = [site for site in chosen if site.graph is graph]
    first = {site.name: next(iter(_normalised(site)), None) for site in outside}
    why = {name: sizes[x] for name, x in first.items() if x in sizes}
    kept = kept | {
        name: f"how many tokens it sees follows from values ({by}) that the norms before it change, so that its tokens "
        "in the original and in the converted model cannot be paired"
        for name, by in why.items()
    }
    return tuple(site for site in chosen if site.name not in why), kept


def matcher(knob: str, pattern: str) -> Callable[[str], bool]:
    """What a pattern selects; UsageError, naming the knob, for one that is no regular expression."""
    if not pattern.startswith("re:"):
        return lambda name: fnmatch.fnmatchcase(name, pattern)
    try:
        expression = re.compile(pattern[3:])
    except re.error as error:
        raise UsageError(f"{knob} {pattern!r} is no regular expression: {error}") from error
    return lambda name: expression.search(name) is not None
