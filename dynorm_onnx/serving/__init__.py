"""What servers load: Triton model repositories, ONNX Runtime GenAI folders, Kubernetes manifests."""

from __future__ import annotations

from dynorm_onnx.serving.genai import convert_genai_folder
from dynorm_onnx.serving.kubernetes import Deployment, triton_manifest
from dynorm_onnx.serving.triton import write_triton_model

__all__ = ["Deployment", "convert_genai_folder", "triton_manifest", "write_triton_model"]
