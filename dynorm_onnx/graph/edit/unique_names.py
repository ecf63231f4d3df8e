"""Names that are given once."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir


class Names:
    """The names in use; a new one that is taken gets a number, from `first` on."""

    def __init__(self, used: Iterable[str] = (), *, first: int = 1) -> None:
        self._used = set(used)
        self._first = first

    @classmethod
    def of(cls, model: ir.Model) -> Names:
        """All names in a model: of nodes and values, in bodies too."""
        names = cls()
        for graph in model.graphs():
            names._used.update(str(value.name) for value in graph.inputs)
            names._used.update(graph.initializers)
            for node in graph:
                names._used.update(str(value.name) for value in node.outputs)
                if node.name:
                    names._used.add(node.name)
        return names

    def unique(self, stem: str) -> str:
        """`stem`, or `stem_1` and so on if that is taken; it is taken from now on."""
        name, count = stem, self._first
        while name in self._used:
            name = f"{stem}_{count}"
            count += 1
        self._used.add(name)
        return name
