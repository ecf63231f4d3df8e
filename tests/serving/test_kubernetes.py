"""The manifest: what Kubernetes' own schemas say of it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynorm_onnx.errors import UsageError
from dynorm_onnx.serving.kubernetes import Deployment, ScaleOn, triton_manifest
from dynorm_onnx.serving.triton import write_triton_model
from dynorm_onnx.serving.yaml_text import yaml_documents
from tests.shipped import MODEL


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, converted: Path) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_triton_model(MODEL, folder, "original")
    write_triton_model(converted, folder, "converted")
    return folder


DEPLOYMENTS = [
    Deployment(),
    Deployment(name="lm", namespace="text", claim="lm-models", replicas=(2, 9), cpu="500m", memory="1.5Gi"),
    Deployment(gpus=2, scale_on=ScaleOn.parse("queue_time_ms=50m"), image="registry.example/triton:1"),
]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=["default", "cpu", "gpu"])
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_the_objects_fit_the_schemas(repository: Path, deployment: Deployment, version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for each in triton_manifest(repository, deployment):
        validate.validate(each, version, strict=True)


def test_the_schemas_do_refuse(repository: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    scaler = triton_manifest(repository, Deployment())[2]
    scaler["spec"]["maxReplicas"] = "4"
    with pytest.raises(validate.ValidationError):
        validate.validate(scaler, "1.37", strict=True)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=["default", "cpu", "gpu"])
def test_the_objects_belong_together(repository: Path, deployment: Deployment) -> None:
    pods, service, scaler = triton_manifest(repository, deployment)
    template = pods["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert labels.items() >= service["spec"]["selector"].items()
    assert labels.items() >= pods["spec"]["selector"]["matchLabels"].items()
    assert scaler["spec"]["scaleTargetRef"]["name"] == pods["metadata"]["name"] == deployment.name
    container = template["spec"]["containers"][0]
    named = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == named
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}
    assert ("models" in mounted) == (deployment.claim is not None)
    assert (container["resources"]["limits"].get("nvidia.com/gpu") is not None) == bool(deployment.gpus)


def test_a_repository_must_fit_the_pods(repository: Path, converted: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no model repository"):
        triton_manifest(tmp_path, Deployment())
    if any((repository / "converted" / "1").glob("*.so")):
        with pytest.raises(UsageError, match=r"/models/converted/1/libdynorm_ops\.so, but .* at /srv"):
            triton_manifest(repository, Deployment(host_repository="/srv"))
    write_triton_model(converted, tmp_path, "lm", provider="cuda")
    with pytest.raises(UsageError, match="wants a GPU"):
        triton_manifest(tmp_path, Deployment())
    assert triton_manifest(tmp_path, Deployment(gpus=1))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"name": "LM"}, "--name 'LM'"),
        ({"claim": "a/b"}, "--claim 'a/b'"),
        ({"memory": "4 GB"}, "--memory '4 GB'"),
        ({"cpu": "many"}, "--cpu 'many'"),
        ({"replicas": (3, 2)}, "--replicas 3 2"),
        ({"gpus": -1}, "--gpus must be at least 0"),
    ],
)
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Deployment(**knobs)


@pytest.mark.parametrize("text", ["cpu", "cpu=", "cpu=70%", "cpu=0", "=5", "queue=fast"])
def test_what_to_scale_on_is_checked(text: str) -> None:
    with pytest.raises(UsageError, match="--scale-on"):
        ScaleOn.parse(text)


text = st.text(st.characters(min_codepoint=32, max_codepoint=0x24FF, exclude_categories=["Cc", "Cs", "Zl", "Zp"]))
scalars = text | st.integers() | st.booleans() | st.none() | st.sampled_from(["no", "1e3", "0x1f", "~", "a: b", "- c"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=12
)


@settings(max_examples=60)
@given(st.lists(st.dictionaries(text, values, min_size=1, max_size=3), min_size=1, max_size=3))
def test_yaml_reads_back(objects: list[dict[str, Any]]) -> None:
    yaml = pytest.importorskip("yaml", reason="pip install pyyaml")
    assert list(yaml.safe_load_all(yaml_documents(objects))) == objects
