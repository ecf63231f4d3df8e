"""A look at the original before any norm is replaced: what each function may do, and what the norms in bodies see."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from dynorm_onnx.calibration.checkpoint import Tree
from dynorm_onnx.calibration.norms.fit import Fit
from dynorm_onnx.calibration.norms.fit_rows import Leeway
from dynorm_onnx.calibration.norms.in_bodies import seen_in_bodies
from dynorm_onnx.calibration.norms.leeway import leeways
from dynorm_onnx.calibration.norms.solved import fit_of, fit_tree
from dynorm_onnx.errors import NoSiteError
from dynorm_onnx.functions import Function
from dynorm_onnx.graph.lower import LoweredNorm
from dynorm_onnx.runtime.arrays import Feeds


@dataclasses.dataclass(frozen=True)
class Look:
    """What the original's own activations tell.

    `norms` are those that can be replaced, `kept` the reason by site for the others; `leeway` is that of every norm's
    fit; `in_bodies` has the fits of the norms in bodies of If, Loop and Scan.
    """

    norms: tuple[LoweredNorm, ...]
    leeway: Mapping[str, Leeway] = dataclasses.field(default_factory=dict)
    in_bodies: Mapping[str, Fit] = dataclasses.field(default_factory=dict)
    kept: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def tree(self) -> Tree:
        """For a checkpoint."""
        return {
            "norms": [norm.site_name for norm in self.norms],
            "leeway": {name: dataclasses.asdict(own) for name, own in self.leeway.items()},
            "in_bodies": {name: fit_tree(fit) for name, fit in self.in_bodies.items()},
            "kept": self.kept,
        }

    @classmethod
    def of(cls, tree: Tree, norms: Sequence[LoweredNorm]) -> Look:
        """What tree() gave of a look at these norms."""
        return cls(
            tuple(norm for norm in norms if norm.site_name in tree["norms"]),
            {name: Leeway(**own) for name, own in tree["leeway"].items()},
            {name: fit_of(fit) for name, fit in tree["in_bodies"].items()},
            tree["kept"],
        )


def look(
    lowered: ir.Model,
    norms: Sequence[LoweredNorm],
    function: Function,
    batches: Sequence[Feeds],
    progress: Callable[[int, int], None],
    *,
    coupled: int | None,
    fades: bool,
) -> Look:
    """Runs the lowered model, which is not changed; `coupled` and `fades` as for leeways_of().

    Raises NoSiteError where no norm can be replaced, DataError where no token at a norm in a body is finite.
    """
    with seen_in_bodies(lowered, norms, batches) as bodies:
        left = tuple(norm for norm in norms if norm.site_name not in bodies.kept)
        if not left:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in bodies.kept.items())
            raise NoSiteError(f"no norm is left to replace: {reasons}")
        massive = bodies.massive_sites()
        leeway = leeways(coupled, lowered, left, batches, progress, fades=fades, in_bodies=massive)
        if fades and coupled is not None:  # no training changes a function in a body
            inside = {norm.site_name for norm in bodies.norms}
            leeway |= {name: dataclasses.replace(leeway[name], most_coupled=coupled) for name in inside}
        return Look(left, leeway, bodies.fits(function, leeway), bodies.kept)
