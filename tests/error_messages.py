"""Every error message by file and by a fragment of it: which test provokes it (tests/test_error_messages.py).

TABLE names a test: "FILE::test", of tests/. What no test of its part provokes is in provoked_errors.py. UNPROVOKED is
what cannot be provoked on every machine, and why.
"""
# ruff: noqa: E501  a row is a line

from __future__ import annotations

TABLE: dict[str, dict[str, str]] = {
    "bench/__main__.py": {
        "--cuda-graph needs --provider cuda, not": "test_bench.py::test_wrong_use",
    },
    "bench/operators.py": {
        "is not one of": "test_bench.py::test_an_unknown_function",
        "coupled channels are more than there": "test_bench.py::test_coupled_forms_have_rows_beside_the_plain_ones",
    },
    "calibration/checkpoint.py": {
        "its folder is not there, or is read-only": "calibration/test_checkpoint.py::test_a_folder_that_cannot_be_made_is_refused_where_it_was_named",
        "is no checkpoint of a calibration:": "calibration/test_checkpoint.py::test_a_folder_of_something_else_is_left_alone",
        "…: delete it, or name another folder": "conversion/test_checkpoint.py::test_another_runs_results_are_not_used",
    },
    "calibration/data/arrays.py": {
        "holds no .npz files": "calibration/data/test_arrays.py::test_empty_folder",
        "is no data: expected a path, an": "calibration/data/test_arrays.py::test_an_object_that_is_no_iterable",
        "the data is empty": "calibration/data/test_arrays.py::test_empty_iterable",
        "has different numbers of samples:": "calibration/data/test_arrays.py::test_different_numbers_of_samples",
        "holds no samples": "calibration/data/test_arrays.py::test_no_samples_at_all",
        "that the model takes at once": "calibration/data/test_arrays.py::test_fewer_samples_than_the_model_takes_at_once",
        ", not a dict of arrays by input name": "calibration/data/test_arrays.py::test_items_that_are_no_feeds",
        "is a single array, not an .npz of": "calibration/data/test_arrays.py::test_a_single_array_under_the_name_of_npz",
        "cannot be read as an .npz of plain": "calibration/data/test_arrays.py::test_pickled_objects_are_never_loaded",
        ", but the model's inputs are": "calibration/data/test_arrays.py::test_unknown_name",
    },
    "calibration/data/batches.py": {
        "the data is text, but none of the": "calibration/data/test_load.py::test_text_for_a_model_without_tokens",
        "tokens and no mask; the data has": "calibration/data/test_load.py::test_fewer_tokens_than_a_fixed_length",
    },
    "calibration/data/drawing.py": {
        "the model's logits are not finite, so": "calibration/data/test_sampling.py::test_logits_that_are_not_finite",
    },
    "calibration/data/drawn_inputs.py": {
        "is too large to be drawn": "end_to_end/test_foreign_data.py::test_an_input_that_is_too_large_to_be_drawn_is_named",
    },
    "calibration/data/fitting.py": {
        "; the data has one …": "end_to_end/test_foreign_data.py::test_one_tensor_is_no_sequence",
        "; the data has …": "calibration/data/test_missing.py::test_casts_that_lose",
        "rows, so it must lie in 0..": "calibration/data/test_load.py::test_token_ids_beyond_the_vocabulary",
    },
    "calibration/data/load.py": {
        "must be .npz, .jsonl, .txt or a folder": "calibration/data/test_load.py::test_a_file_of_another_kind",
        "--samples and --max-length must be at": "calibration/data/test_load.py::test_knobs_that_make_no_sense",
        "does not exist": "calibration/data/test_load.py::test_a_file_that_is_not_there",
        "drawn at random the model does not run": "end_to_end/test_foreign_data.py::test_a_model_that_runs_on_no_drawn_input_says_so",
    },
    "calibration/data/missing.py": {
        ", which the model takes as": "calibration/data/test_missing.py::test_missing_and_unknown",
        "leaves its size open": "calibration/data/test_missing.py::test_a_cache_of_unknown_size",
        ", but the model's inputs are": "calibration/data/test_missing.py::test_unknown_name",
        ", and none could be made:": "calibration/data/test_missing.py::test_missing_and_of_a_size_that_cannot_be_made",
    },
    "calibration/data/signature.py": {
        "data can be given for tensors and for": "calibration/data/test_signature.py::test_inputs_that_take_no_data",
    },
    "calibration/data/text.py": {
        'must be an object with "text" or with': "calibration/data/test_text.py::test_bad_jsonl_line",
        "): name its tokenizer.json with": "calibration/data/test_text.py::test_no_tokenizer",
        "holds no text": "calibration/data/test_text.py::test_bad_txt",
        "holds no samples": "calibration/data/test_text.py::test_empty_jsonl",
        "leaves no room: the tokenizer puts": "calibration/data/test_text.py::test_no_room_between_special_tokens",
        "text needs the tokenizers package: pip": "calibration/data/test_text.py::test_without_the_extra",
        "is not a tokenizer.json:": "calibration/data/test_text.py::test_a_file_that_is_no_tokenizer",
        "is not UTF-8 text:": "calibration/data/test_text.py::test_bad_txt",
        "is not JSON:": "calibration/data/test_text.py::test_bad_jsonl_line",
    },
    "calibration/norms/fit_rows.py": {
        ": ": "end_to_end/test_foreign_files.py::test_data_without_a_finite_token_is_refused_at_the_norm",
        "no token of the calibration data is": "end_to_end/test_foreign_files.py::test_data_without_a_finite_token_is_refused_at_the_norm",
    },
    "calibration/norms/look.py": {
        "no norm is left to replace": "end_to_end/test_foreign_bodies.py::test_a_body_that_never_ran_stays",
    },
    "config.py": {
        "is not one of": "conversion/test_convert_model.py::test_unknown_arguments_and_targets_are_named",
        "must be at least": "serving/test_genai.py::test_nothing_is_written_over_nor_left_half",
        "is the file of a model; name another": "report/test_html.py::test_the_page_does_not_write_over_a_model",
    },
    "custom_ops.py": {
        "dynorm-onnx was installed without its": "custom_ops/test_library.py::test_a_package_without_library_says_so",
        "the environment variable DYNORM_LIBRARY": "custom_ops/test_library.py::test_a_missing_library_is_named",
    },
    "conversion/trainable.py": {
        "--train norms: all norms lie in bodies": "end_to_end/test_foreign_bodies.py::test_a_distillation_of_functions_that_all_lie_in_bodies",
        "--method distil needs PyTorch: pip": "pytorch/test_distil.py::test_without_pytorch_the_command_says_what_to_install",
        ". --method reconstruct and fit do": "pytorch/graph/test_operators_of_others.py::test_what_fails_by_an_attribute_is_found_before_calibration",
    },
    "graph/lower/lowered_norm.py": {
        "; mend the model, or leave this norm": "end_to_end/test_foreign_files.py::test_what_is_not_finite_in_a_norm_is_named",
    },
    "calibration/rotation/tokens.py": {
        ", holds numbers that are not finite": "conversion/test_rotation.py::test_a_reader_that_is_not_finite_is_named",
    },
    "calibration/stages/run_stages.py": {
        "tokens cannot be paired by position": "end_to_end/test_foreign_results.py::test_sizes_that_lie_are_met_when_the_models_run",
    },
    "graph/files/damage.py": {
        ": is not a valid ONNX model: …": "graph/files/test_damage.py::test_data_that_a_shape_does_not_fit_is_named",
        "a name in it is no UTF-8 text": "graph/files/test_damage.py::test_names_that_are_no_text",
    },
    "graph/files/malformed.py": {
        "lacks the attribute": "graph/sites/test_find_foreign.py::test_an_attribute_or_input_of_another_type_is_named",
        "has type …; its operator wants …": "graph/sites/test_find_foreign.py::test_an_attribute_or_input_of_another_type_is_named",
        "; its operator wants integers": "graph/sites/test_find_foreign.py::test_an_attribute_or_input_of_another_type_is_named",
    },
    "graph/files/model_io.py": {
        "is a map or holds maps": "end_to_end/test_foreign_files.py::test_maps_are_refused_by_name",
        ": is not an ONNX model: it holds no": "graph/files/test_model_io.py::TestLoad::test_not_onnx",
        ": cannot be written: it is a folder;": "graph/files/test_model_io.py::TestSave::test_cannot_be_written",
        ": is the input model itself; choose": "graph/files/test_model_io.py::TestSave::test_output_is_the_input",
        ", which has only": "graph/files/test_model_io.py::TestWeights::test_short_file",
        ": there is no such file.": "serving/test_main.py::test_errors_are_sentences",
        ": cannot be read:": "graph/files/test_model_io.py::TestLoad::test_folder",
        ": is not an ONNX model, or is cut short.": "graph/files/test_model_io.py::TestLoad::test_not_onnx",
        ": is not a valid ONNX model:": "graph/files/test_model_io.py::TestLoad::test_graph_of_a_cycle",
        "holds no data.": "graph/files/test_model_io.py::TestWeights::test_stripped_weights",
        ": holds weights of the input model;": "graph/files/test_model_io.py::TestSave::test_output_holds_the_inputs_weights",
        ", and there is no such file.": "graph/files/test_model_io.py::TestSave::test_weights_lost_in_between",
        "The weight … cannot be read: …": "graph/files/test_model_io.py::TestWeights::test_weights_outside_the_folder",
    },
    "graph/files/prepare.py": {
        "a function of the file cannot be inlined:": "graph/replace/test_inline.py::test_a_function_that_calls_itself",
    },
    "graph/sites/select.py": {
        "--only and --keep leave none of the": "graph/sites/test_select.py::test_nothing_left_and_nothing_there",
        "the inputs of all norms are the same in": "end_to_end/test_foreign_files.py::test_a_norm_of_what_is_the_same_in_every_run_is_kept",
        "is no regular expression:": "pytorch/test_replace.py::test_errors",
    },
    "graph/files/sparse.py": {
        "The sparse tensor": "end_to_end/test_foreign_files.py::test_a_sparse_tensor_with_a_place_outside_it_is_named",
    },
    "paper/real_model.py": {
        "all norms lie in bodies": "end_to_end/test_foreign_bodies.py::test_the_paper_compares_norms_of_the_main_graph",
    },
    "paper/__main__.py": {
        "needs --model: the paper's experiment": "paper/test_main.py::test_wrong_use_is_told_in_a_sentence",
        "--coupled … needs --model": "paper/test_main.py::test_wrong_use_is_told_in_a_sentence",
        ": a number of channels, 0 for none": "paper/test_main.py::test_wrong_use_is_told_in_a_sentence",
        ": nothing can be written in that folder": "paper/test_main.py::test_wrong_use_is_told_in_a_sentence",
    },
    "plotting.py": {
        "needs matplotlib: `pip install": "paper/test_main.py::test_a_missing_extra_is_named",
        ": cannot be written:": "paper/test_main.py::test_wrong_use_is_told_in_a_sentence",
    },
    "pytorch/calibrate.py": {
        "a batch must be a tensor, a tuple or a": "pytorch/test_replace.py::test_errors",
        "data holds no batch: nothing can be": "pytorch/test_replace.py::test_errors",
    },
    "pytorch/distil/batches.py": {
        "processes: give larger batches": "pytorch/distil/test_distil_messages.py::test_what_cannot_be_is_named",
    },
    "pytorch/distil/blocks.py": {
        ": try a smaller learning rate, or": "pytorch/distil/test_blocks.py::test_a_loss_that_is_not_finite_is_named",
    },
    "pytorch/distil/checkpoint.py": {
        "is the checkpoint of another run (": "pytorch/test_distil.py::test_an_interrupted_run_goes_on_to_the_same_weights",
        "cannot be written:": "pytorch/distil/test_distil_messages.py::test_a_checkpoint_that_cannot_be_written_is_named",
        "is no checkpoint of a distillation:": "pytorch/test_distil.py::test_an_interrupted_run_goes_on_to_the_same_weights",
    },
    "pytorch/distil/gradual.py": {
        "has no such module": "pytorch/test_distil.py::test_norms_give_way_in_the_order_asked_for",
    },
    "pytorch/distil/losses.py": {
        "the model returned no float tensor that": "pytorch/distil/test_distil_messages.py::test_what_cannot_be_is_named",
        "student and teacher have no output in": "pytorch/test_distil.py::test_outputs_without_logits_are_compared_by_their_unlikeness",
        ", which holds no outputs that could be": "pytorch/distil/test_distil_messages.py::test_what_cannot_be_is_named",
    },
    "conversion/subject.py": {
        "--optimize ort: ": "conversion/test_convert_model.py::test_fusions_that_change_the_outputs_are_refused",
    },
    "pytorch/distil/optimizer.py": {
        "is not one of": "pytorch/test_distil.py::test_arguments_that_make_no_sense_are_named",
        ": the student has no such parameter;": "pytorch/test_distil.py::test_training_the_norms_alone_leaves_the_weights_of_a_graph",
    },
    "pytorch/distil/trainer.py": {
        "learning_rate must be above 0, not": "pytorch/test_distil.py::test_arguments_that_make_no_sense_are_named",
        "steps must be at least 1, not": "pytorch/test_distil.py::test_arguments_that_make_no_sense_are_named",
        "data holds no batch: nothing can be": "pytorch/distil/test_distil_messages.py::test_what_cannot_be_is_named",
        "coupled must be 0 or more, not": "pytorch/distil/test_fading.py::test_how_many_stay_cannot_be_less_than_none",
        "order needs a teacher that is an": "pytorch/distil/test_distil_messages.py::test_what_cannot_be_is_named",
        "is not one of auto, float32, bfloat16": "pytorch/test_distil.py::test_arguments_that_make_no_sense_are_named",
        ": try a smaller learning rate, or": "pytorch/distil/test_distil_messages.py::test_what_cannot_be_is_named",
    },
    "pytorch/export.py": {
        "is too old: torch.onnx writes": "pytorch/test_export.py::test_opsets_that_torch_does_not_write",
        "cannot write this model at opset": "pytorch/test_export.py::test_opsets_that_torch_does_not_write",
    },
    "pytorch/graph/known.py": {
        "the graph cannot run in PyTorch:": "pytorch/graph/test_operators_of_others.py::test_all_unknown_operators_are_named_at_once_before_any_work",
        "the graph cannot run in PyTorch, which": "pytorch/graph/test_operators_of_others.py::test_types_that_torch_has_not_are_named",
    },
    "pytorch/graph/module.py": {
        ", which was not given": "pytorch/graph/test_known.py::test_inputs_that_are_missing_or_do_not_fit_are_named",
        "holds no data.": "pytorch/graph/test_known.py::test_a_weight_without_data_is_named",
    },
    "pytorch/graph/operators/attention.py": {
        "the output of the scores": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
        "do_rotary or past_present_share_buffer": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
        "a batch of rows with pasts of different": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
        "a mask of shape": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
    },
    "pytorch/graph/operators/base.py": {
        "is not supported when the graph runs in": "pytorch/graph/test_operators_of_others.py::test_what_fails_by_an_attribute_is_found_before_calibration",
        "the type": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
    },
    "pytorch/graph/operators/control.py": {
        "a loop without trips whose outputs are": "pytorch/graph/test_known.py::test_a_loop_without_trips_has_nothing_to_stack",
    },
    "pytorch/graph/operators/experts.py": {
        "a sparse mixer or a third layer": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
        "swiglu_fusion": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
        "the activation": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
    },
    "pytorch/graph/operators/indexing.py": {
        "the reduction": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
    },
    "pytorch/graph/operators/linear.py": {
        "a convolution over": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
        "axes, or with output_shape or auto_pad,": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
    },
    "pytorch/graph/operators/norms.py": {
        "training_mode": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
    },
    "pytorch/graph/operators/pooling.py": {
        "storage_order": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
    },
    "pytorch/graph/operators/quantised.py": {
        "rounding to": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
        "another gather_axis than 0, or another": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
        "a table of another type than int4": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
    },
    "pytorch/graph/operators/rotary.py": {
        "is_packed_batching": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
        "the scale": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
    },
    "pytorch/graph/operators/shape.py": {
        "the mode": "pytorch/graph/test_known.py::test_what_is_not_supported_is_named",
    },
    "pytorch/graph/program.py": {
        "failed in PyTorch on shapes": "pytorch/graph/test_known.py::test_inputs_that_are_missing_or_do_not_fit_are_named",
    },
    "pytorch/graph/tensors.py": {
        ", which PyTorch cannot hold": "pytorch/graph/test_known.py::test_a_type_that_torch_has_not_is_named",
    },
    "pytorch/nn.py": {
        "strengths is not of k each": "pytorch/test_nn.py::test_couplings_that_make_no_sense_are_named",
        "the coupled channels": "pytorch/test_nn.py::test_couplings_that_make_no_sense_are_named",
        "are not all numbers from 0 on": "pytorch/test_nn.py::test_couplings_that_make_no_sense_are_named",
        "channels, the parameters to load couple": "pytorch/test_nn.py::test_channels_are_coupled_and_let_go",
    },
    "pytorch/replace.py": {
        ": channels are chosen on data, and at": "pytorch/distil/test_distil_messages.py::test_what_cannot_be_is_named",
        "is not one of": "pytorch/test_replace.py::test_errors",
        "per_channel=False and initial are for": "pytorch/test_replace.py::test_errors",
        "the model has no norm that could be": "pytorch/test_replace.py::test_a_model_without_norms",
        "matches none of the": "pytorch/test_replace.py::test_errors",
        "takes no such value (": "pytorch/test_replace.py::test_errors",
    },
    "report/html/__init__.py": {
        ": is a folder; name a file": "report/test_html.py::test_a_folder_that_is_not_there_is_named_before_the_work",
        ": the folder": "report/test_html.py::test_a_folder_that_is_not_there_is_named_before_the_work",
    },
    "runtime/apart.py": {
        "ONNX Runtime": "runtime/test_apart.py::test_a_crash_is_an_error_that_names_it",
    },
    "runtime/library.py": {
        "): install it with `pip install": "runtime/test_session.py::test_without_onnxruntime_the_error_says_what_to_install",
    },
    "runtime/opset.py": {
        "knows none above": "end_to_end/test_opsets.py::test_an_opset_that_onnx_runtime_does_not_know_is_named",
    },
    "runtime/arrays.py": {
        "not enough memory to run the model": "large/test_large.py::test_what_onnx_runtime_lacks_is_said",
    },
    "runtime/session.py": {
        "not enough memory to load": "large/test_large.py::test_what_onnx_runtime_lacks_is_said",
        "optimization": "runtime/test_session.py::test_knobs_out_of_range",
        "ONNX Runtime cannot load": "runtime/test_session.py::test_files_that_are_no_models",
        ": there is no such file": "runtime/test_session.py::test_files_that_are_no_models",
    },
    "runtime/user_libraries.py": {
        ": there is no such file": "runtime/test_user_libraries.py::test_a_file_that_is_not_there_or_no_library",
        ": ONNX Runtime cannot load it:": "runtime/test_user_libraries.py::test_a_file_that_is_not_there_or_no_library",
    },
    "runtime/validate.py": {
        "there is no held-out sample to validate": "runtime/test_validate.py::test_no_data_is_an_error",
    },
    "serving/folders.py": {
        ": is there already; choose another": "serving/test_genai.py::test_nothing_is_written_over_nor_left_half",
    },
    "serving/genai.py": {
        "can name only one library, and these": "serving/test_serving_own_libraries.py::test_a_genai_folder_that_names_one_is_converted_with_it",
        ": the decoder is a pipeline of several": "serving/test_genai.py::test_folders_that_cannot_be_converted",
        "names no model.decoder.filename": "serving/test_genai.py::test_folders_that_cannot_be_converted",
        ": there is no such file, though": "serving/test_genai.py::test_folders_that_cannot_be_converted",
        "as the decoder, which lies outside the": "serving/test_genai.py::test_folders_that_cannot_be_converted",
        ", and should be an object": "end_to_end/test_foreign_lost.py::test_what_a_genai_config_has_in_another_form_is_named",
        ": model.decoder.session_options.provider_options is": "end_to_end/test_foreign_lost.py::test_what_a_genai_config_has_in_another_form_is_named",
        "already, and can name only one: convert": "serving/test_genai.py::test_folders_that_cannot_be_converted",
        "is no ONNX Runtime GenAI folder:": "serving/test_main.py::test_errors_are_sentences",
    },
    "serving/kserve.py": {
        ": KServe scales on": "serving/test_kserve.py::test_what_kserve_cannot_do_is_refused",
    },
    "serving/kubernetes.py": {
        "is no model repository: it holds no": "serving/test_main.py::test_errors_are_sentences",
        "is not cpu=PERCENT or METRIC=QUANTITY": "serving/test_main.py::test_errors_are_sentences",
        ": there must be at least 1, and no": "serving/test_kubernetes.py::test_knobs_are_checked",
        "--gpus must be at least 0, not": "serving/test_kubernetes.py::test_knobs_are_checked",
        "wants a GPU: give each replica some by": "serving/test_kubernetes.py::test_a_repository_must_fit_the_pods",
        ": write it with that --host-repository": "serving/test_kubernetes.py::test_a_repository_must_fit_the_pods",
    },
    "serving/load.py": {
        "the server at": "serving/test_triton_server.py::test_latency_under_load",
        "asking a Triton server needs": "serving/test_main.py::test_a_missing_extra_is_named",
        "no Triton server answers at": "serving/test_main.py::test_no_server_is_a_sentence",
    },
    "serving/model_files.py": {
        "another file of the folder is called": "serving/test_serving_own_libraries.py::test_two_files_of_one_name",
        "--max-batch-size must be at least 0, not": "serving/test_triton.py::test_knobs_are_checked",
    },
    "serving/open_inference.py": {
        ", and the body has": "serving/test_open_inference.py::test_a_length_that_is_none",
        "the body is no request of the Open": "serving/test_open_inference.py::test_what_makes_no_sense_is_named",
        "the model has no output": "serving/test_open_inference.py::test_what_makes_no_sense_is_named",
        "the inputs have different numbers of": "serving/test_open_inference.py::test_samples_that_no_batch_can_hold",
        "samples are more than max_batch_size": "serving/test_open_inference.py::test_samples_that_no_batch_can_hold",
        "is not finite, which JSON cannot say": "serving/test_open_inference.py::test_json_cannot_say_what_is_not_finite",
        "the model has no input": "serving/test_open_inference.py::test_what_makes_no_sense_is_named",
        "bytes are left": "serving/test_open_inference.py::test_what_makes_no_sense_is_named",
        "is given twice": "serving/test_open_inference.py::test_what_makes_no_sense_is_named",
        "bytes behind the JSON are of no input's": "serving/test_open_inference.py::test_bytes_that_are_of_no_input",
        ", and no axis may be longer than": "serving/test_open_inference.py::test_axes_that_are_too_long",
        "the request lacks the input": "serving/test_open_inference.py::test_what_makes_no_sense_is_named",
        "is …, and the model takes …": "serving/test_open_inference.py::test_what_makes_no_sense_is_named",
        "is no shape": "serving/test_open_inference.py::test_what_makes_no_sense_is_named",
        "has the shape …, and the model": "serving/test_open_inference.py::test_what_makes_no_sense_is_named",
        "its data is no array of": "serving/test_open_inference.py::test_what_makes_no_sense_is_named",
        "values do not make the shape": "serving/test_open_inference.py::test_what_makes_no_sense_is_named",
    },
    "serving/ray_serve.py": {
        "is not one of": "serving/test_ray_serve.py::test_knobs_are_checked",
        ": there must be at least 1, and no": "serving/test_ray_serve.py::test_knobs_are_checked",
        "must be above 0, not": "serving/test_ray_serve.py::test_knobs_are_checked",
        "… must be at least 0, not …": "serving/test_ray_serve.py::test_knobs_are_checked",
        "--max-length must be at least 0, not": "serving/test_ray_serve.py::test_a_longest_axis_that_makes_no_sense",
        "must be an absolute path: replicas open": "serving/test_ray_serve.py::test_a_folder_on_the_nodes_is_absolute",
        ": a Ray application takes numbers and": "serving/test_ray_serve.py::test_what_has_no_numbers_in_numpy_is_named",
    },
    "serving/speed.py": {
        "onnxruntime-genai cannot load": "serving/test_genai.py::test_speed_is_measured_in_turn",
        "onnxruntime-genai cannot generate with": "serving/test_genai.py::test_what_genai_itself_raises_is_a_sentence",
        "tokens to generate must be at least 1": "serving/test_genai.py::test_prompts_that_make_no_sense_are_named",
        ": the prompt is empty": "serving/test_genai.py::test_prompts_that_make_no_sense_are_named",
        "in the prompt is no token": "serving/test_genai.py::test_prompts_that_make_no_sense_are_named",
        "more are longer than its context": "serving/test_genai.py::test_prompts_that_make_no_sense_are_named",
    },
    "serving/tensors.py": {
        "has no inputs: there is nothing that a": "serving/test_triton.py::test_what_cannot_be_served_is_named",
        "): Triton serves tensors only.": "serving/test_triton.py::test_what_cannot_be_served_is_named",
        ", which Triton does not have.": "serving/test_triton.py::test_what_cannot_be_served_is_named",
        "has no shape in the model, and Triton": "serving/test_triton.py::test_what_cannot_be_served_is_named",
    },
    "serving/triton.py": {
        "--threads must be at least 0, not": "serving/test_triton.py::test_knobs_are_checked",
        "… must be at least 0, not …": "serving/test_triton.py::test_knobs_are_checked",
        "needs --backend python: Triton's own": "serving/test_triton.py::test_knobs_are_checked",
        "is of --provider cpu, not of": "serving/test_triton.py::test_knobs_are_checked",
        "is not one of": "serving/test_triton.py::test_knobs_are_checked",
        "… must be at least …, not …": "serving/test_triton.py::test_knobs_are_checked",
        ", which cannot be handed to Python: use": "serving/test_triton.py::test_what_numpy_cannot_hand_over_is_named",
    },
}

UNPROVOKED = {
    "runtime/fuse.py": {"onnxscript cannot fuse the model": "no model is known that onnxscript's rewriter fails on"},
    "runtime/session.py": {
        "but ONNX Runtime gave a session on": "CUDA's libraries must be broken",
        "but this ONNX Runtime (": "ONNX Runtime must have been built without CUDA",
    },
}
