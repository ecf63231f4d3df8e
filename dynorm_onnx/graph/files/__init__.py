"""Models in and out of files, with nothing lost.

`model_io` loads and saves; on the way in, what is `damage` or `malformed` is refused with its reason, `value_names`
that are not unique too, `sparse` tensors become dense, and weights stay in the file (`data_in_file`). `prepare` makes
of what is found in the wild what finding and lowering can work on. On the way out, `placing` puts model and weights in
the place of older ones together. `protos` walks through protobuf messages.
"""
