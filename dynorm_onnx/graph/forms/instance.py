"""InstanceNormalization in pieces: its mean runs over the places, and what scales it lies along the channels."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dynorm_onnx.graph.forms.affine import is_parameter
from dynorm_onnx.graph.norm_site import NormSite
from dynorm_onnx.graph.values.index import GraphIndex
from dynorm_onnx.graph.values.node_kinds import is_op

OTHER_AXES = 2  # besides the places: batch and channels


def instance_norm(index: GraphIndex, site: NormSite) -> str | None:
    """Why a site read so far is the norm of a channel over its places; None if it is not.

    A norm that has its own weight along the axes is none: what it is multiplied by next is a mask of places. Of one
    without, a scale or shift that is one number along all normalised axes, and several along another, tells: if it is
    a weight, for x of shape [batch, channels, places...] or [batch, places..., channels]; whatever it follows from (a
    style, a time step), where nothing says how many elements are normalised: an element-wise function of them would
    need parameters for each.
    """
    if site.weight is not None and index.shape(site.weight) not in ((), (1,)):
        return None
    rank = index.rank(site.x)
    for value, alone in _scales(index, site):
        along = _axes_of(index, value)
        if not along or along & set(site.axes):
            continue
        if site.channels is None:
            return "its scale is per channel while its mean runs over places whose number varies: an " + _NAME
        weight = alone and is_parameter(index, value) and len(along) == 1
        if weight and rank == len(site.axes) + OTHER_AXES and -rank not in along:
            return "its weight is per channel while its mean runs over the places: an " + _NAME
    return None


_NAME = "InstanceNormalization"


def _scales(index: GraphIndex, site: NormSite) -> Iterator[tuple[ir.Value, bool]]:
    """What the result is multiplied by, or what is added to it; and whether nothing else reads the result, and it is
    multiplied."""
    assert site.y is not None
    value, readers = site.y, index.consumers(site.y)
    while len(readers) == 1 and is_op(readers[0], "Cast", "Identity") and readers[0] in index:
        value, readers = readers[0].outputs[0], index.consumers(readers[0].outputs[0])
    for node in readers:
        if is_op(node, "Mul", "Add"):
            alone = len(readers) == 1 and node.op_type == "Mul" and not index.is_output(value)
            yield from ((other, alone) for other in node.inputs if other is not None and other is not value)


def _axes_of(index: GraphIndex, value: ir.Value) -> set[int]:
    """The axes, negative, along which a value certainly varies; none where it may vary along others too."""
    shape = index.shape(value)
    if shape is None or None in shape:
        return set()
    return {axis for axis in range(-len(shape), 0) if shape[axis] != 1}
