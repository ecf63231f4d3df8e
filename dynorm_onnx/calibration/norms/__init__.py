"""A function fitted to each norm, on what reaches it in the model converted so far.

`calibrate` goes through a model; `fit` solves for one function from `moments`, `fit_rows` decides before which
channels stay in the norm's sum (`coupling`). How many may, `leeway` tells from a `look` at the original: its `massive`
activations as the norms `observe` them, and the norms that lie `in_bodies`. `solved` is what a checkpoint keeps of it.
`one_parameter` is what the papers compare.
"""
