"""Weights that lie in a file of their own, of which the memory holds what was read until it is let go of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir


def let_go(*values: ir.Value | None) -> None:
    """Lets go of the pages of external weights that were read; they are read again when used.

    To be called when no array of them is left: pages that one still shows stay.
    """
    for value in values:
        if value is not None:
            let_go_of_tensor(value.const_value)


def let_go_of_tensor(tensor: ir.TensorProtocol | None) -> None:
    """let_go() of one tensor."""
    if isinstance(tensor, ir.ExternalTensor):
        with contextlib.suppress(BufferError):
            tensor.release()


def computed(
    name: str, shape: Sequence[int], sources: Sequence[ir.TensorProtocol], compute: Callable[..., np.ndarray]
) -> ir.Tensor | ir.LazyTensor:
    """A tensor of the type of its sources, which compute() makes of their arrays: at once, or, where one of them is not
    in memory, anew each time that it is read, so that nothing of the size of a model is held.

    compute() must return an array of its own, for what it was given may be let go of. `shape` is what it returns.
    """
    dtype = sources[0].dtype

    def made() -> ir.Tensor:
        array = compute(*(source.numpy() for source in sources))
        for source in sources:
            let_go_of_tensor(source)
        return ir.Tensor(array, dtype=dtype, name=name)

    if any(isinstance(source, ir.ExternalTensor | ir.LazyTensor) for source in sources):
        return ir.LazyTensor(made, dtype, ir.Shape(shape), name=name)
    return made()
