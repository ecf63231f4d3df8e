"""Linear layers with constant weights, however they are spelled.

`find` has find_linear_layers(); a `linear_layer` reads and writes its weights whatever the spelling, `layer_label` is
what people call it, and `joined_weights` makes one weight of what a graph joins at run time.
"""
