"""The spellings of a norm: each a module that reads a site of its form, or says why it is none.

Single nodes: `fused` (A1 to A9); `leave` names operators that normalise and are no norm of a token. Norms in pieces
begin at the reduction of a square (`anchors`); `region` walks on from there with the `algebra` of what each of the
`operators` computes, and `decomposed` puts the site together: `rms` (B1 to B15) or `layer` (C1 to C9), whose parts are
the `inverse_root`, weight and bias (`affine`), Reshapes (`layout`) and what is `centred` before; `batchnorm` and
`instance` are LayerNorms by other operators, `quantised` ones are named and left. `diagnosis` says why what looked
like a norm is none.
"""
