"""The files that deploy servers that answer together, beside those of one kind of server."""

import pathlib
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from serving import server_config

_SERVING = pathlib.Path(server_config.__file__).parent
_COMPOSE = _SERVING / "docker-compose.spread.yaml"
_FOLDER = _SERVING / "kubernetes" / "spread"
_RESOURCES = sorted(path for path in _FOLDER.glob("*.yaml") if path.stem != "kustomization")


def _load(path):
    return yaml.safe_load(path.read_text())


def _pod(resource):
    return resource["spec"]["template"]["spec"]


def _compose():
    return _load(_COMPOSE)["services"]


def _upstreams(text):
    """The servers of the gateway that a comment tells of."""
    return re.search(r"--upstream=(\S+)", text)[1].split(",")


@pytest.mark.parametrize("path", _RESOURCES, ids=lambda path: path.name)
def test_kubernetes_resources_fit_their_schemas(path):
    kubernetes_validate.validate(_load(path), "1.33", strict=True)


def test_kustomize_applies_every_resource():
    kustomization = _load(_FOLDER / "kustomization.yaml")
    assert sorted(kustomization["resources"]) == [path.name for path in _RESOURCES]
    # What its comment has applied beside it is there.
    applied = re.findall(r"-f (\S+)", (_FOLDER / "kustomization.yaml").read_text())
    assert len(applied) == 2
    assert all((_SERVING.parent / path).is_file() for path in applied)


def test_pods_are_those_of_the_deployment_each_on_a_machine_of_its_own():
    pod, other = (
        _pod(_load(path))
        for path in (_FOLDER / "statefulset.yaml", _SERVING / "kubernetes" / "deployment.yaml")
    )
    # Clients look up every pod by its own name, which does not change.
    arguments = other["containers"][0]["args"]
    own = [each for each in arguments if not each.startswith("--grpc_channel_arguments")]
    other["containers"][0]["args"] = own
    assert len(own) == len(arguments) - 1
    (constraint,) = pod.pop("topologySpreadConstraints")
    other.pop("topologySpreadConstraints")
    assert pod == other
    assert constraint["topologyKey"] == "kubernetes.io/hostname"
    assert constraint["whenUnsatisfiable"] == "DoNotSchedule"
    assert constraint["labelSelector"]["matchLabels"] == {"app": "hne-spread"}


def test_the_parts_refer_to_each_other():
    pods, service, disruption = (
        _load(_FOLDER / f"{name}.yaml") for name in ("statefulset", "service", "disruption")
    )
    assert pods["spec"]["serviceName"] == service["metadata"]["name"]
    labels = pods["spec"]["template"]["metadata"]["labels"]
    assert pods["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert disruption["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["clusterIP"] == "None"
    # One at a time may be away, of several.
    assert disruption["spec"]["maxUnavailable"] == 1 < pods["spec"]["replicas"]
    # Names that its comment tells clients.
    example = (_FOLDER / "service.yaml").read_text()
    name = pods["metadata"]["name"]
    assert f'f"{name}-{{i}}.{service["metadata"]["name"]}:8500"' in example
    assert f"range({pods['spec']['replicas']})" in example
    addresses = [f"{name}-{i}.{name}:8500" for i in range(pods["spec"]["replicas"])]
    assert _upstreams(example) == addresses


def test_the_compose_file_fits_the_compose_specification():
    schema = ["--builtin-schema", "vendor.compose-spec"]
    command = [sys.executable, "-m", "check_jsonschema", *schema, str(_COMPOSE)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_compose_runs_the_server_that_is_configured_several_times():
    one = _load(_SERVING / "docker-compose.yaml")["services"]["tf-serving"]
    one.pop("ports")
    ports = []
    for service in _compose().values():
        ports += service.pop("ports")
        assert service == one
    assert len(ports) == len(set(ports)) == 3
    # On this machine only, and those that its comment tells clients.
    addresses = re.search(r"--server=(\S+)", _COMPOSE.read_text())[1].split(",")
    assert [f"{address}:8500" for address in addresses] == ports
    assert _upstreams(_COMPOSE.read_text()) == addresses
    assert f"--spread={len(ports)}" in _COMPOSE.read_text()
