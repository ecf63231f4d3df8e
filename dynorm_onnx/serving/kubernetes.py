"""A Kubernetes manifest for a Triton model repository: Deployment, Service and HorizontalPodAutoscaler.

Fields as in the Kubernetes API reference (apps/v1, v1, autoscaling/v2); probes and ports as Triton documents them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynorm_onnx.errors import UsageError
from dynorm_onnx.serving.triton import HOST_REPOSITORY, LIBRARY_NAME

IMAGE = "nvcr.io/nvidia/tritonserver:25.12-py3"
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}

_SHARED_MEMORY = "1Gi"  # /dev/shm, through which Python models are fed
_USER = 1000  # triton-server in NVIDIA's images


@dataclasses.dataclass(frozen=True)
class ScaleOn:
    """What the autoscaler watches: "cpu", in percent of what was requested, or a metric of the pods by its name."""

    metric: str = "cpu"
    target: str = "70"

    def as_dict(self) -> dict[str, Any]:
        """A MetricSpec of autoscaling/v2."""
        if self.metric == "cpu":
            target = {"type": "Utilization", "averageUtilization": int(self.target)}
            return {"type": "Resource", "resource": {"name": "cpu", "target": target}}
        target = {"type": "AverageValue", "averageValue": self.target}
        return {"type": "Pods", "pods": {"metric": {"name": self.metric}, "target": target}}

    @classmethod
    def parse(cls, text: str) -> ScaleOn:
        """From "cpu=70" or "METRIC=QUANTITY". Raises UsageError for anything else."""
        metric, _, target = text.partition("=")
        quantity = r"[1-9]\d*" if metric == "cpu" else r"\d+(\.\d+)?(m|k|M|G)?"
        if not metric or not re.fullmatch(quantity, target):
            raise UsageError(f"--scale-on {text!r} is not cpu=PERCENT or METRIC=QUANTITY")
        return cls(metric, target)


@dataclasses.dataclass(frozen=True)
class Deployment:
    """The knobs of a manifest; the command line's options by the same names."""

    name: str = "triton"
    namespace: str | None = None
    image: str = IMAGE
    claim: str | None = None  # the PersistentVolumeClaim with the repository; None: it is in the image
    host_repository: str = HOST_REPOSITORY
    replicas: tuple[int, int] = (1, 4)  # least and most
    cpu: str = "2"
    memory: str = "4Gi"
    gpus: int = 0  # of each replica
    scale_on: ScaleOn = dataclasses.field(default_factory=ScaleOn)

    def __post_init__(self) -> None:
        for knob, name in (("--name", self.name), ("--namespace", self.namespace), ("--claim", self.claim)):
            if name is not None and not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name):
                raise UsageError(f"{knob} {name!r}: a name in Kubernetes is lower-case letters, digits and hyphens")
        for knob, quantity in (("--cpu", self.cpu), ("--memory", self.memory)):
            if not re.fullmatch(r"\d+(\.\d+)?(m|[KMGT]i?)?", quantity):
                raise UsageError(f"{knob} {quantity!r} is no quantity such as 2, 500m or 4Gi")
        least, most = self.replicas
        if not 1 <= least <= most:
            raise UsageError(f"--replicas {least} {most}: there must be at least 1, and no fewer than the least")
        if self.gpus < 0:
            raise UsageError(f"--gpus must be at least 0, not {self.gpus}")


def triton_manifest(repository: Path, deployment: Deployment) -> list[dict[str, Any]]:
    """The objects that serve a model repository as `deployment` says: Deployment, Service, HorizontalPodAutoscaler.

    Raises UsageError where the repository holds no model, a model needs more than the replicas have, or one names its
    library by a path that the pods do not have.
    """
    check_repository(repository, deployment)
    return [_deployment(deployment), _service(deployment), _autoscaler(deployment)]


def check_repository(repository: Path, deployment: Deployment) -> None:
    """Raises UsageError where the pods of a deployment could not serve a model repository: see triton_manifest()."""
    configs = sorted(repository.glob("*/config.pbtxt"))
    if not configs:
        raise UsageError(f"{repository} is no model repository: it holds no MODEL/config.pbtxt")
    for path in configs:
        text = path.read_text(encoding="utf-8")
        if "KIND_GPU" in text and not deployment.gpus:
            raise UsageError(f"{path} wants a GPU: give each replica some by --gpus")
        for library in _libraries(text):
            if not library.startswith(f"{deployment.host_repository.rstrip('/')}/"):
                raise UsageError(
                    f"{path} names the library {library}, but the repository will be at {deployment.host_repository}: "
                    "write it with that --host-repository"
                )


def _libraries(config: str) -> Iterator[str]:
    yield from re.findall(rf'"([^"]*/{re.escape(LIBRARY_NAME)})"', config)


def metadata(deployment: Deployment) -> dict[str, Any]:
    """Name, namespace and labels of every object."""
    place = {"namespace": deployment.namespace} if deployment.namespace else {}
    return {"name": deployment.name, **place, "labels": _labels(deployment)}


def _labels(deployment: Deployment) -> dict[str, str]:
    return {"app.kubernetes.io/name": "triton", "app.kubernetes.io/instance": deployment.name}


def _deployment(deployment: Deployment) -> dict[str, Any]:
    annotations = {"prometheus.io/scrape": "true", "prometheus.io/port": str(PORTS["metrics"])}
    pod = pod_spec(deployment)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(deployment),
        "spec": {  # no replicas: the autoscaler sets them, and applying the file again must not set them back
            "selector": {"matchLabels": _labels(deployment)},
            "template": {"metadata": {"labels": _labels(deployment), "annotations": annotations}, "spec": pod},
        },
    }


def pod_spec(deployment: Deployment) -> dict[str, Any]:
    """A PodSpec of one container, Triton."""
    pod: dict[str, Any] = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": _USER, "fsGroup": _USER},
        "containers": [_container(deployment)],
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY}}],
    }
    if deployment.claim:
        pod["volumes"].append(
            {"name": "models", "persistentVolumeClaim": {"claimName": deployment.claim, "readOnly": True}}
        )
    return pod


def _container(deployment: Deployment) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    if deployment.claim:
        mounts.append({"name": "models", "mountPath": deployment.host_repository, "readOnly": True})
    limits: dict[str, Any] = {"memory": deployment.memory}
    if deployment.gpus:
        limits["nvidia.com/gpu"] = str(deployment.gpus)
    return {
        "name": "triton",
        "image": deployment.image,
        "args": ["tritonserver", f"--model-repository={deployment.host_repository}"],
        "ports": [{"name": name, "containerPort": port} for name, port in PORTS.items()],
        "resources": {"requests": {"cpu": deployment.cpu, "memory": deployment.memory}, "limits": limits},
        "startupProbe": _probe("ready", period=5, failures=120),  # ten minutes for large models to load
        "readinessProbe": _probe("ready", period=5, failures=3),
        "livenessProbe": _probe("live", period=10, failures=3),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }


def _probe(what: str, period: int, failures: int) -> dict[str, Any]:
    get = {"path": f"/v2/health/{what}", "port": "http"}
    return {"httpGet": get, "periodSeconds": period, "failureThreshold": failures}


def _service(deployment: Deployment) -> dict[str, Any]:
    ports = [{"name": name, "port": port, "targetPort": name} for name, port in PORTS.items()]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(deployment),
        "spec": {"selector": _labels(deployment), "ports": ports},
    }


def _autoscaler(deployment: Deployment) -> dict[str, Any]:
    least, most = deployment.replicas
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(deployment),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment.name},
            "minReplicas": least,
            "maxReplicas": most,
            "metrics": [deployment.scale_on.as_dict()],
        },
    }
