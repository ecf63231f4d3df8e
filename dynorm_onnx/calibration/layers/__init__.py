"""Method "reconstruct": every norm fitted, and the linear layers behind each solved again, in closed form.

`reconstruct` goes through a model; `layer_groups` says which layers are solved together, `layer_sums` gathers what
for, `ridge` solves. Quantised layers are rounded to their grid again (`on_grid`), and `store` keeps what was solved.
"""
