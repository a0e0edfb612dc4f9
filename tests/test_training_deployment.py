"""The files that deploy training, against the schemas of what reads them."""

import pathlib

import kubernetes_validate
import pytest
import yaml

import configs
from configs import digits
from hne_tf.bin import app

ROOT = pathlib.Path(configs.__file__).parents[1]
KUBERNETES = ROOT / "training/kubernetes"

# Fields of kubeflow.org/v1, which the schemas of Kubernetes do not hold.
TFJOB = {"runPolicy", "successPolicy", "tfReplicaSpecs", "enableDynamicWorker"}
RUN_POLICY = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "cleanPodPolicy",
    "managedBy",
    "schedulingPolicy",
    "suspend",
    "ttlSecondsAfterFinished",
}
REPLICAS = {"replicas", "restartPolicy", "template"}


@pytest.fixture(scope="module")
def tfjob():
    return yaml.safe_load((KUBERNETES / "tfjob.yaml").read_text())


@pytest.fixture(scope="module")
def replicas(tfjob):
    return tfjob["spec"]["tfReplicaSpecs"]


def pod(replica):
    return replica["template"]["spec"]


def container(replica):
    (only,) = pod(replica)["containers"]
    return only


def test_the_job_has_the_fields_of_a_tfjob(tfjob, replicas):
    assert (tfjob["apiVersion"], tfjob["kind"]) == ("kubeflow.org/v1", "TFJob")
    assert tfjob["spec"].keys() <= TFJOB
    assert tfjob["spec"]["runPolicy"].keys() <= RUN_POLICY
    assert replicas.keys() == {"Chief", "Worker"}
    assert replicas["Chief"]["replicas"] == 1
    for replica in replicas.values():
        assert replica.keys() == REPLICAS


def test_pods_and_volume_fit_their_schemas(replicas):
    for replica in replicas.values():
        as_pod = {"apiVersion": "v1", "kind": "Pod", **replica["template"]}
        kubernetes_validate.validate(as_pod, "1.33", strict=True)
    claim = yaml.safe_load((KUBERNETES / "volume.yaml").read_text())
    kubernetes_validate.validate(claim, "1.33", strict=True)
    # All pods write to it or read from it.
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for replica in replicas.values():
        (volume,) = pod(replica)["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (mount,) = container(replica)["volumeMounts"]
        assert mount["name"] == volume["name"]


def test_the_image_is_run_by_the_user_of_the_pods(replicas):
    lines = (ROOT / "training/Dockerfile").read_text().splitlines()
    users = [line.removeprefix("USER ") for line in lines if line.startswith("USER ")]
    assert users == ["65534:65534"]
    # After everything that is installed.
    assert lines.index(f"USER {users[0]}") > max(
        index for index, line in enumerate(lines) if line.startswith(("RUN", "COPY"))
    )
    for replica in replicas.values():
        security = pod(replica)["securityContext"]
        assert f"{security['runAsUser']}:{security['fsGroup']}" == users[0]


def test_the_operator_finds_container_and_port(replicas):
    for replica in replicas.values():
        assert container(replica)["name"] == "tensorflow"
        assert [port["name"] for port in container(replica)["ports"]] == ["tfjob-port"]


def test_an_interrupted_run_is_restarted_and_a_refused_one_is_not(replicas):
    # With this policy, the operator restarts what ends with 128 or more.
    assert {replica["restartPolicy"] for replica in replicas.values()} == {"ExitCode"}
    assert app.EXIT_INTERRUPTED >= 128


def test_all_run_the_command_of_one_machine_with_a_batch_that_divides(replicas):
    chief, worker = (container(replicas[kind]) for kind in ("Chief", "Worker"))
    assert chief == worker
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in chief["args"])
    assert (ROOT / flags["config"]).samefile(digits.__file__)
    (mount,) = chief["volumeMounts"]
    assert pathlib.PurePath(flags["workdir"]).is_relative_to(mount["mountPath"])
    workers = sum(replica["replicas"] for replica in replicas.values())
    assert digits.get_config().training.batch_size % workers == 0
