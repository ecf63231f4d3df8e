"""The residual stream's basis: `basis` finds every weight that writes a stream or reads its norms, `turn` multiplies a
rotation out into them.
"""
