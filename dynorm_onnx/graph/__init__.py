"""Models as graphs: read and written, their norms found, lowered to exact fused ones, folded, and replaced.

In the order that a model takes through them:

- `files/`: a model read, refused where it is damaged, prepared to be worked on, written and put in its place;
- `sites/`: its norms found: candidates are read by `forms/`, one module for each spelling, proved by running them,
  chosen;
- `lower/`: each becomes standard operators and one canonical norm node;
- `fold/`: exact changes of weights before and after; `streams/`: a stream's basis, and turning it;
- `linear/`: the linear layers around norms, `quantised/` ones in each of their spellings;
- `replace/`: a function in the place of a canonical node, and the model as its file holds it.

Below lie `values/`, what is known of values and nodes, and `edit/`, changing a graph. `norm_site.py` says what a norm
is; `quiet.py` keeps onnx-ir from stderr. tests/test_layout.py has the order of imports.
"""
