"""ONNX files that published packages carry, each converted as its users would, with a table of what became of it."""
