"""The public API: the modules that users are told to import, and every name that each of them gives.

What stands here keeps its name and meaning in patch versions. Everything else of the package may change at any time.
"""

from __future__ import annotations

PUBLIC: dict[str, tuple[str, ...]] = {
    "dynorm_onnx": ("__version__", "convert_model", "custom_ops", "errors", "find_sites", "session"),
    "dynorm_onnx.custom_ops": ("library_path", "library_providers", "register"),
    "dynorm_onnx.errors": (
        "BoundError",
        "DataError",
        "DynormError",
        "ModelError",
        "NoMemoryError",
        "NoSiteError",
        "ProviderError",
        "UsageError",
    ),
    "dynorm_onnx.functions": (
        "DOMAIN",
        "DOMAIN_VERSION",
        "FORMS",
        "FUNCTIONS",
        "OPERATORS",
        "REGISTRY",
        "Coupling",
        "Form",
        "Function",
        "NormParameters",
        "onnx_function",
    ),
    "dynorm_onnx.graph.files.model_io": (
        "clone",
        "left_out",
        "load",
        "prepare",
        "require_output",
        "require_weights",
        "save",
        "staged",
    ),
    "dynorm_onnx.pytorch": (
        "Derf",
        "DyISRU",
        "DyT",
        "NormModule",
        "NormReport",
        "as_dynorm",
        "export",
        "replace_norms",
    ),
    "dynorm_onnx.pytorch.distil": (
        "BlockProgress",
        "BlockRun",
        "Distillation",
        "Distilled",
        "StepProgress",
        "distil",
        "distil_model",
        "run_once",
    ),
    "dynorm_onnx.pytorch.graph": ("GraphModule",),
    "dynorm_onnx.report": (
        "CalibrationSummary",
        "Report",
        "SiteReport",
        "Verdict",
        "print_report",
    ),
    "dynorm_onnx.serving": (
        "Deployment",
        "RayDeployment",
        "convert_genai_folder",
        "inference_service",
        "triton_manifest",
        "write_ray_application",
        "write_triton_model",
    ),
}

PAPERS = {"DyISRU": "arXiv 2503.21708", "DyT": "arXiv 2503.10622", "Derf": "arXiv 2512.10938"}
"""Of each function, by its operator's name, its paper, as docstrings name it; README and CITATION.cff have it too."""
