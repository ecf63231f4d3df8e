"""One conversion, from a file to a file: `convert_model()` and its steps.

`convert_model.py` has them in their order: load, find, data, fold, look, rotate, calibrate and rewrite, validate, time,
save. Each is a module that takes what it needs of the knobs, not all of them:

- `subject`: the model that is converted, and its norms;
- `data`: what it is calibrated, validated and timed on;
- `checkpoint`: where a conversion that was cut goes on;
- `folds`: exact folds of weights, before and after;
- `rotation/`: exact rotations of streams, before anything is fitted;
- `attempt`: one `Attempt` calibrates and rewrites any of the norms; three ways lead through it: `convert_all`, or
  `within_bounds`, which keeps norms until a bound is met (by `costliest` and `costs`), and around one of these
  `distilled`, which trains what came out (`training`; `trainable` asks beforehand whether that can be);
- `validator`: what came out against the original, `timed`: their times, `saved`: model and page in their place.

What the steps are done with lies below: `graph` finds and rewrites, `calibration` fits, `runtime` runs, `report` tells.
"""
