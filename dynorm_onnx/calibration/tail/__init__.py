"""The end of a language model, fitted by the KL of its words to the original's.

`fit_tail` finds the end and fits its parts in turn, `last_layer` the layer that makes the logits, both by `least_kl`:
steps of `lbfgs` that know the KL's `curvature`. `divergence` is the KL itself, and its gradient.
"""
