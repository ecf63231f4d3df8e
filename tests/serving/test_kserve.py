"""The InferenceService: what KServe's and Kubernetes' own descriptions say of it, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from dynorm_onnx.errors import UsageError
from dynorm_onnx.serving.kserve import inference_service
from dynorm_onnx.serving.kubernetes import Deployment, ScaleOn, triton_manifest
from dynorm_onnx.serving.triton import write_triton_model
from tests.serving import kserve_schema

KIND = "V1beta1InferenceService"
needs_kserve = pytest.mark.skipif(not kserve_schema.is_installed(), reason=kserve_schema.INSTALL)

DEPLOYMENTS = {
    "default": Deployment(),
    "memory": Deployment(name="lm", namespace="text", claim="lm-models", scale_on=ScaleOn.parse("memory=80")),
    "gpu": Deployment(gpus=2, replicas=(2, 9), image="registry.example/triton:1"),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, converted: Path) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_triton_model(converted, folder, "converted")
    return folder


@needs_kserve
@pytest.mark.parametrize("deployment", DEPLOYMENTS.values(), ids=DEPLOYMENTS)
def test_the_object_fits_what_kserve_says(repository: Path, deployment: Deployment) -> None:
    (service,) = inference_service(repository, deployment)
    assert not kserve_schema.faults(KIND, service)


@needs_kserve
@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("spec", "predictor", "maxReplicas"), "4", ".spec.predictor.maxReplicas: '4' is no int"),
        (("spec", "predictor", "maxReplica"), 4, ".spec.predictor.maxReplica: there is no such field"),
        (
            ("spec", "predictor", "model"),
            {"modelFormat": {"nam": "x"}},
            ".spec.predictor.model.modelFormat.nam: there is",
        ),
        (("spec",), {}, ".spec.predictor: must be there"),
        (("spec", "predictor", "containers"), {}, ".spec.predictor.containers: is no list"),
    ],
    ids=["type", "name", "inner", "required", "list"],
)
def test_what_kserve_says_does_refuse(repository: Path, path: tuple[str, ...], value: Any, said: str) -> None:
    service = copy.deepcopy(inference_service(repository, Deployment())[0])
    parent = service
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    assert any(fault.startswith(said) for fault in kserve_schema.faults(KIND, service))


@pytest.mark.parametrize("deployment", DEPLOYMENTS.values(), ids=DEPLOYMENTS)
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_the_predictor_is_a_pod_of_kubernetes(repository: Path, deployment: Deployment, version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    (service,) = inference_service(repository, deployment)
    ours = {"containers", "volumes", "securityContext"}
    pod = {name: value for name, value in service["spec"]["predictor"].items() if name in ours}
    assert pod.keys() == ours
    validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": service["metadata"], "spec": pod}, version, strict=True
    )


@pytest.mark.parametrize("deployment", DEPLOYMENTS.values(), ids=DEPLOYMENTS)
def test_the_container_is_that_of_the_deployment(repository: Path, deployment: Deployment) -> None:
    (service,) = inference_service(repository, deployment)
    predictor = service["spec"]["predictor"]
    pod = triton_manifest(repository, deployment.__class__(**{**vars(deployment), "scale_on": ScaleOn()}))[0]
    (container,), (known,) = predictor["containers"], pod["spec"]["template"]["spec"]["containers"]
    assert container["name"] == "kserve-container"
    for field in ("image", "args", "resources", "securityContext", "volumeMounts"):
        assert container[field] == known[field]
    (port,) = container["ports"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == port["containerPort"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == deployment.replicas
    assert service["metadata"]["annotations"] == {"serving.kserve.io/deploymentMode": "RawDeployment"}


def test_what_kserve_cannot_do_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--scale-on queue_ms=50m: KServe scales on cpu or memory, in percent"):
        inference_service(repository, Deployment(scale_on=ScaleOn.parse("queue_ms=50m")))
    with pytest.raises(UsageError, match="is no model repository"):
        inference_service(tmp_path, Deployment())
