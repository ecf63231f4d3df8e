"""Two models run side by side, from point to point, with something found at each.

`plan` says where a graph is cut, `run_stages` runs both models between two cuts, on activations that the stage before
has left. `weights` says how much each token counts, `held_out` which samples only choose.
"""
