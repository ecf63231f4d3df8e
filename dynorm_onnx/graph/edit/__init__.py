"""Graphs changed: `emit` puts nodes and initializers in and takes dead ones out, under `unique_names`.

`give_out` makes values of bodies outputs of the main graph, `pieces` makes models of parts of a graph.
"""
