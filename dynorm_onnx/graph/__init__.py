"""Models as graphs: read and written, their norms found, lowered to exact fused ones, folded, and replaced."""
