"""Calibration data: what a model takes, and batches of it from files, Python or the model itself.

`load.py` is where it begins. What is asked on the way:

- what the model takes: `signature`, by the `roles` of its inputs; its `embedding` tables, the `index_ranges` of
  integers that are computed with before, `free_sizes` that weights settle, `cache_size`, `fed_weights`, `settings`
  beside the file;
- what is given: `text`, `arrays` and `records`, and whether that is `fitting`;
- what nobody gives: inputs that are `missing` (masks, positions, empty caches), samples of the model's own text
  (`sampling`, `sampling_cached`, `sampling_whole`, with `drafts` and `drawing`), or `drawn_inputs`;
- how it is divided: `windows`, `batches`, a `part`, and by a `trial` whether several samples go at once.
"""

from __future__ import annotations

from dynorm_onnx.calibration.data.load import CalibrationData, load_calibration
from dynorm_onnx.calibration.data.part import part_like
from dynorm_onnx.calibration.data.signature import InputSpec, ModelSignature, signature

__all__ = ["CalibrationData", "InputSpec", "ModelSignature", "load_calibration", "part_like", "signature"]
