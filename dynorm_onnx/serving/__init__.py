"""What servers load: Triton repositories, ONNX Runtime GenAI folders, Ray Serve applications, Kubernetes manifests."""

from __future__ import annotations

from dynorm_onnx.serving.genai import convert_genai_folder
from dynorm_onnx.serving.kserve import inference_service
from dynorm_onnx.serving.kubernetes import Deployment, triton_manifest
from dynorm_onnx.serving.ray_serve import RayDeployment, write_ray_application
from dynorm_onnx.serving.triton import write_triton_model

__all__ = [
    "Deployment",
    "RayDeployment",
    "convert_genai_folder",
    "inference_service",
    "triton_manifest",
    "write_ray_application",
    "write_triton_model",
]
