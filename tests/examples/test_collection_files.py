"""The Ray job, the manifest of KubeRay and the image agree with each other, with the command and with the extras."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from transformers_owl.cli import app


ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "examples/collections"


@pytest.fixture(scope="module")
def job() -> dict:
    return yaml.safe_load((FOLDER / "job.yaml").read_text())


@pytest.fixture(scope="module")
def manifest() -> dict:
    return yaml.safe_load((FOLDER / "kuberay.yaml").read_text())


def parsed(entrypoint: str) -> dict:
    """The options as the command reads them."""
    program, name, *words = shlex.split(entrypoint)
    assert program == "transformers-owl"
    command = typer.main.get_command(app).commands[name]
    return command.make_context(name, words).params


def test_the_job_is_a_command_for_the_cluster_that_it_runs_in(job):
    options = parsed(job["entrypoint"])
    assert options["ray"] == "auto" and options["output"].endswith(".parquet")
    assert options["images"] == ["/data/shards/{00000..00099}.tar"]


def test_the_manifest_runs_that_job_on_as_many_gpus_as_workers(job, manifest):
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    spec = manifest["spec"]
    assert spec["entrypoint"] == job["entrypoint"]
    options = parsed(spec["entrypoint"])
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    (container,) = group["template"]["spec"]["containers"]
    gpus = {container["resources"][kind]["nvidia.com/gpu"] for kind in ("requests", "limits")}
    assert gpus == {group["rayStartParams"]["num-gpus"]}
    assert group["replicas"] * int(gpus.pop()) == options["workers"]
    # Whoever works, and the driver, see the volumes under the names that the command uses.
    for pod in (group["template"]["spec"], spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]):
        (each,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in each["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
        for path in (*options["images"], options["output"], options["model"]):
            assert any(path.startswith(f"{mount}/") for mount in mounts.values()), path
        assert each["image"] == "REGISTRY/mplug-owl-ray"


def test_the_image_has_the_version_of_the_manifest_and_our_extra(manifest):
    docker = (FOLDER / "Dockerfile").read_text()
    version = manifest["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"FROM rayproject/ray:{version}-" in docker
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.search(r"\[([a-z,]+)\]", docker.splitlines()[-1])[1].split(",")
    assert set(named) <= set(extras) and "ray" in named
    least = next(re.search(r">=([\d.]+)", each)[1] for each in extras["ray"] if each.startswith("ray"))
    assert tuple(map(int, least.split("."))) <= tuple(map(int, version.split(".")))
