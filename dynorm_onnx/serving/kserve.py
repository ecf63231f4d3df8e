"""A KServe InferenceService for a Triton model repository: the pods of kubernetes.py as a predictor.

Fields as in KServe's API reference (serving.kserve.io/v1beta1). The predictor is a container of its own and no model
format of the cluster's, so that it does not depend on which serving runtimes are installed there; the deployment mode
is KServe's RawDeployment: a Deployment with an autoscaler, without Knative.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynorm_onnx.errors import UsageError
from dynorm_onnx.serving.kubernetes import PORTS, Deployment, check_repository, metadata, pod_spec

_MODE = {"serving.kserve.io/deploymentMode": "RawDeployment"}
_CONTAINER = "kserve-container"  # the name by which KServe knows the one that answers
_METRICS = ("cpu", "memory")  # that KServe's own autoscaler of a RawDeployment watches, in percent


def inference_service(repository: Path, deployment: Deployment) -> list[dict[str, Any]]:
    """The InferenceService that serves a model repository as `deployment` says, in a list as of triton_manifest().

    Raises what triton_manifest() raises, and UsageError for a metric that KServe does not scale on.
    """
    check_repository(repository, deployment)
    scale_on = deployment.scale_on
    if scale_on.metric not in _METRICS or not scale_on.target.isdecimal():
        raise UsageError(
            f"--scale-on {scale_on.metric}={scale_on.target}: KServe scales on {' or '.join(_METRICS)}, in percent"
        )
    least, most = deployment.replicas
    scaling = {
        "minReplicas": least,
        "maxReplicas": most,
        "scaleMetric": scale_on.metric,
        "scaleTarget": int(scale_on.target),
    }
    return [
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {**metadata(deployment), "annotations": _MODE},
            "spec": {"predictor": {**scaling, **_predictor(deployment)}},
        }
    ]


def _predictor(deployment: Deployment) -> dict[str, Any]:
    """The PodSpec with what KServe expects of it: one port, and probes that name it by number."""
    pod = pod_spec(deployment)
    (container,) = pod["containers"]
    container["name"] = _CONTAINER
    container["ports"] = [{"containerPort": PORTS["http"], "protocol": "TCP"}]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        container[kind]["httpGet"]["port"] = PORTS["http"]
    return pod
