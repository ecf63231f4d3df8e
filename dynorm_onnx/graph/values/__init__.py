"""What is known of values and nodes without running the model.

`index` is a graph with producers and readers at hand, `node_kinds` and `reads` what a node is and what it reads;
`fixed` values are the same in every run: `constant_folding` computes weights, `small_constants` axes, shapes and
epsilons. `shapes` are inferred, `sizes` may follow values, `magnitude` bounds values, `output_kind` tells scores from
vectors, `outputs` compares what two runs gave, `mapped` tensors lie in files.
"""
