"""Functions in the place of norms, and the model as its file then holds it.

`rewrite` puts a function in; `written` makes what is saved: with functions whose bodies are as short as can be
(`trim_bodies`), or with standard operators only (`inline`), attention as ONNX Runtime is fastest with it
(`separate_attention`, `flat_rows`).
"""
