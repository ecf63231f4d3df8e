"""The folder for Ray Serve: what is in it, what Serve's own schema says of it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import parser

from dynorm_onnx.errors import ModelError, UsageError
from dynorm_onnx.serving.ray_serve import RayDeployment, write_ray_application
from tests.shipped import MODEL

DEPLOYMENTS = {
    "default": RayDeployment(),
    "many": RayDeployment(cpus=4, threads=0, replicas=(2, 9), queue_length=0.5, library=False, listen=("::1", 9000)),
    "gpu": RayDeployment(provider="cuda", cpus=0.5),
}


def read(path: Path) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="pip install pyyaml")
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("deployment", DEPLOYMENTS.values(), ids=DEPLOYMENTS)
def test_serve_takes_the_file_and_knows_all_of_its_fields(tmp_path: Path, deployment: RayDeployment) -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="pip install 'dynorm-onnx[ray]'")
    from ray.serve.config import AutoscalingConfig

    given = read(write_ray_application(MODEL, tmp_path / "app", "lm", deployment=deployment))
    taken = schema.ServeDeploySchema.model_validate(given).model_dump(exclude_unset=True, mode="json")
    (application,) = taken["applications"]
    (replicas,) = application["deployments"]
    (asked,) = given["applications"][0]["deployments"]
    # Serve passes over fields that it does not know: what it took must be what was asked for
    assert taken == given
    scaling = AutoscalingConfig.model_validate(asked["autoscaling_config"])
    assert asked["autoscaling_config"].items() <= scaling.model_dump().items()
    assert (scaling.min_replicas, scaling.max_replicas) == deployment.replicas
    assert replicas["max_ongoing_requests"] >= 2 * scaling.target_ongoing_requests


def test_arguments_are_those_of_the_application(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="pip install 'dynorm-onnx[ray]'")
    from dynorm_onnx.serving.ray_app import Settings

    config = write_ray_application(MODEL, tmp_path / "app", host_folder="/srv/lm", max_batch_size=3, max_length=99)
    settings = Settings(**read(config)["applications"][0]["args"])
    assert (settings.model, settings.name, settings.max_batch_size) == ("/srv/lm/model.onnx", "byte_llama", 3)
    assert (settings.provider, settings.threads, settings.library, settings.max_length) == ("cpu", 1, True, 99)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    config = write_ray_application(MODEL, tmp_path / "app")
    before = config.read_text()
    with pytest.raises(UsageError, match="is there already"):
        write_ray_application(MODEL, tmp_path / "app", "other")
    assert config.read_text() == before


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"provider": "tpu"}, "--provider 'tpu' is not one of cpu, cuda"),
        ({"replicas": (3, 2)}, "--replicas 3 2: there must be at least 1, and no fewer"),
        ({"cpus": 0.0}, r"--cpus must be above 0, not 0\.0"),
        ({"queue_length": float("inf")}, "--queue-length must be above 0, not inf"),
        ({"threads": -1}, "--threads must be at least 0, not -1"),
        ({"max_delay_us": -1}, "--max-delay-us must be at least 0, not -1"),
    ],
)
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RayDeployment(**knobs)


def test_a_longest_axis_that_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--max-length must be at least 0, not -1"):
        write_ray_application(MODEL, tmp_path / "app", max_length=-1)


def test_a_folder_on_the_nodes_is_absolute(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--host-folder 'lm' must be an absolute path: replicas open"):
        write_ray_application(MODEL, tmp_path / "app", host_folder="lm")


@pytest.mark.parametrize("kind", ["bfloat16", "string"])
def test_what_has_no_numbers_in_numpy_is_named(tmp_path: Path, kind: str) -> None:
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({kind}[N] x) => ({kind}[N] y) {{ y = Identity(x) }}'
    onnx.save(parser.parse_model(text), tmp_path / "g.onnx")
    with pytest.raises(ModelError, match=r"'x' is (BF16|STRING): a Ray application takes numbers and booleans"):
        write_ray_application(tmp_path / "g.onnx", tmp_path / "app")
    assert not (tmp_path / "app").exists()
