"""Parameters for functions that take the place of norms, found on data.

A calibration runs the original and the model converted so far side by side, in stages that end where something is to
be found, and finds it there before it goes on:

- `data/`: what the models are run on: read, written by the model itself, or drawn, and complete for its inputs;
- `stages/`: where a graph is cut, and the two models run from cut to cut; which tokens count, and which only choose;
- `norms/`: a function fitted to each norm, method "fit": `norms/calibrate.py`;
- `layers/`: the linear layers behind solved again as well, method "reconstruct": `layers/reconstruct.py`;
- `tail/`: the end of a language model, fitted by the KL of its words;
- `rotation/`: rotations of streams that make the fit of all their norms better, sought before;
- `checkpoint.py`: what has been found, in a folder, for a run that was cut.

Higher ones build on lower: layers > tail, rotation > norms > stages > data > checkpoint. "distil" is in
`pytorch/distil`.
"""
