"""The files that deploy TF Serving, against the schemas of what reads them."""

import http.server
import json
import pathlib
import re
import subprocess
import sys
import threading

import grpc
import kubernetes_validate
import prometheus_client
import pytest
import yaml

from hne_tf.client.metrics import ClientMetrics
from hne_tf.gateway.metrics import GatewayMetrics
from hne_tf.server.metrics import ServerMetrics
from serving import config_protos, server_config

_SERVING = pathlib.Path(server_config.__file__).parent
_KUBERNETES = _SERVING / "kubernetes"
_COMPOSE = _SERVING / "docker-compose.yaml"
_CONFIG = (server_config.MODELS, server_config.BATCHING, server_config.MONITORING)
_RESOURCES = sorted(path for path in _KUBERNETES.glob("*.yaml") if path.stem != "kustomization")

# What TF Serving 2.21 exports and the dashboard uses; a histogram has three series.
_TF_SERVING_COUNTERS = {":tensorflow:serving:request_count"}
_TF_SERVING_HISTOGRAMS = {
    ":tensorflow:serving:request_latency",
    ":tensorflow:serving:runtime_latency",
    ":tensorflow:serving:batching_session:queuing_latency",
    ":tensorflow:serving:batching_session:input_batch_size",
    ":tensorflow:serving:batching_session:processed_batch_size",
}


def _kubernetes(kind):
    """The one resource of a kind."""
    documents = [d for path in _RESOURCES for d in yaml.safe_load_all(path.read_text())]
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def _pod():
    return _kubernetes("Deployment")["spec"]["template"]["spec"]


def _tf_serving_flags(arguments):
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments)


@pytest.mark.parametrize("path", _RESOURCES, ids=lambda path: path.name)
def test_kubernetes_resources_fit_their_schemas(path):
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    for document in documents:
        kubernetes_validate.validate(document, "1.33", strict=True)


def test_the_schemas_refuse_an_unknown_field():
    deployment = _kubernetes("Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.33", strict=True)


def test_kustomize_applies_every_resource():
    kustomization = yaml.safe_load((_KUBERNETES / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == [path.name for path in _RESOURCES]


def test_the_config_map_holds_the_configuration_files():
    files = {name: (_SERVING / "config" / name).read_text() for name in _CONFIG}
    data = _kubernetes("ConfigMap")["data"]
    assert {name: data[name] for name in _CONFIG} == files
    environment = (_SERVING / "config" / server_config.ENVIRONMENT).read_text()
    assert {name: data[name] for name in data.keys() - files.keys()} == server_config.environment(
        environment
    )
    files[server_config.ENVIRONMENT] = environment
    # What serving.configure writes, to the byte.
    assert (_KUBERNETES / "configmap.yaml").read_text() == server_config.config_map(files)


def test_probes_ask_the_health_service_that_the_flags_turn_on():
    (container,) = _pod()["containers"]
    flags = _tf_serving_flags(container["args"])
    assert flags["enable_grpc_healthcheck_service"] == "true"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] == int(flags["port"])
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "grpc": int(flags["port"]),
        "rest": int(flags["rest_api_port"]),
    }


def test_the_parts_of_the_deployment_refer_to_each_other():
    deployment, pod = _kubernetes("Deployment"), _pod()
    (container,) = pod["containers"]
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    assert labels >= deployment["spec"]["selector"]["matchLabels"].items()
    assert labels >= _kubernetes("Service")["spec"]["selector"].items()
    assert labels >= _kubernetes("PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items()
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes.keys() == {mount["name"] for mount in container["volumeMounts"]}
    assert volumes["config"]["configMap"]["name"] == _kubernetes("ConfigMap")["metadata"]["name"]
    claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
    assert claim == _kubernetes("PersistentVolumeClaim")["metadata"]["name"]
    scaled = _kubernetes("HorizontalPodAutoscaler")["spec"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert 1 < scaled["minReplicas"] < scaled["maxReplicas"]
    assert "replicas" not in deployment["spec"]
    for kind in ("requests", "limits"):
        assert container["resources"][kind].keys() == {"cpu", "memory"}


def test_clients_see_every_pod():
    assert _kubernetes("Service")["spec"]["clusterIP"] == "None"


# Flags of TF Serving and the variables that they are given by.
_FROM_ENVIRONMENT = {
    "grpc_max_threads": "GRPC_MAX_THREADS",
    "tensorflow_intra_op_parallelism": "INTRA_OP_PARALLELISM",
    "tensorflow_inter_op_parallelism": "INTER_OP_PARALLELISM",
}


def test_the_compose_file_fits_the_compose_specification():
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            str(_COMPOSE),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_both_deployments_run_the_same_server_with_the_files_in_config():
    compose = yaml.safe_load(_COMPOSE.read_text())["services"]["tf-serving"]
    (container,) = _pod()["containers"]
    assert compose["image"] == container["image"]
    flags = [_tf_serving_flags(args) for args in (compose["command"], container["args"])]
    # Both take them from the environment, compose through a shell.
    for flag, name in _FROM_ENVIRONMENT.items():
        assert flags[1].pop(flag) == f"$({name})"
    own = {"model_config_file_poll_wait_seconds", "grpc_channel_arguments"}
    assert {k: v for k, v in flags[0].items() if k not in own} == {
        k: v for k, v in flags[1].items() if k not in own
    }
    files = {value for value in flags[0].values() if value.startswith("/config/")}
    assert files == {f"/config/{name}" for name in _CONFIG}
    batching = config_protos.batching_parameters(
        (_SERVING / "config" / server_config.BATCHING).read_text()
    )
    threads = str(batching.num_batch_threads.value)
    variables = server_config.environment(
        (_SERVING / "config" / server_config.ENVIRONMENT).read_text()
    )
    assert variables["INTRA_OP_PARALLELISM"] in ("1", threads)
    assert variables["INTER_OP_PARALLELISM"] == threads
    assert container["resources"]["limits"]["cpu"] == threads


def test_pods_take_every_variable_from_the_config_map():
    (container,) = _pod()["containers"]
    taken = {entry["name"]: entry["valueFrom"]["configMapKeyRef"] for entry in container["env"]}
    for name, source in taken.items():
        assert (source["name"], source["key"]) == (
            _kubernetes("ConfigMap")["metadata"]["name"],
            name,
        )
    text = (_SERVING / "config" / server_config.ENVIRONMENT).read_text()
    assert taken.keys() >= server_config.environment(text).keys()


def test_compose_gives_the_server_as_many_threads_as_configured(tmp_path):
    compose = yaml.safe_load(_COMPOSE.read_text())["services"]["tf-serving"]
    assert (_SERVING / compose["env_file"]).samefile(
        _SERVING / "config" / server_config.ENVIRONMENT
    )
    variables = server_config.environment((_SERVING / compose["env_file"]).read_text())
    program = tmp_path / "tensorflow_model_server"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    # Compose makes one dollar of two.
    command = [part.replace("$$", "$") for part in compose["entrypoint"]] + compose["command"]
    ran = subprocess.run(
        command,
        env={**variables, "PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.splitlines() == [
        *(f"--{flag}={variables[name]}" for flag, name in _FROM_ENVIRONMENT.items()),
        *compose["command"],
    ]


def test_no_container_runs_as_root_and_every_image_has_a_version():
    services = yaml.safe_load(_COMPOSE.read_text())["services"]
    # The images of the others have users of their own.
    assert services["tf-serving"]["user"] == "65534:65534"
    assert all(services[name].get("user") != "0" for name in services)
    pod = _pod()["securityContext"]
    assert pod["runAsNonRoot"]
    assert pod["runAsUser"] == 65534
    images = [service["image"] for service in services.values()]
    images += [container["image"] for container in _pod()["containers"]]
    for image in images:
        assert re.fullmatch(r"[a-z/]+:v?\d+(\.\d+)+(@sha256:[0-9a-f]{64})?", image), image


def test_what_compose_mounts_exists():
    for service in yaml.safe_load(_COMPOSE.read_text())["services"].values():
        for volume in service["volumes"]:
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if "$" not in source:
                assert (_SERVING / source).exists()
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize(("state", "code"), [("AVAILABLE", 0), ("LOADING", 1)])
def test_the_health_check_reads_the_model_status(state, code):
    class Status(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/v1/models/digits"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f'{{"state": "{state}"}}\n'.encode())

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Status)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        compose = yaml.safe_load(_COMPOSE.read_text())["services"]["tf-serving"]
        kind, *command = compose["healthcheck"]["test"]
        assert kind == "CMD"
        command[-1] = (
            command[-1]
            .replace("${MODEL:-digits}", "digits")
            .replace("/8501", f"/{server.server_port}")
        )
        assert subprocess.run(command, timeout=10, check=False).returncode == code
    finally:
        server.shutdown()
        server.server_close()


def test_prometheus_scrapes_the_path_that_the_server_exports():
    jobs = yaml.safe_load((_SERVING / "prometheus" / "prometheus.yaml").read_text())
    paths = {job["job_name"]: job.get("metrics_path") for job in jobs["scrape_configs"]}
    monitoring = config_protos.monitoring_config(
        (_SERVING / "config" / server_config.MONITORING).read_text()
    )
    assert paths["tf-serving"] == monitoring.prometheus_config.path
    annotations = _kubernetes("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == monitoring.prometheus_config.path


def test_prometheus_scrapes_hne_serve_where_the_docs_start_it():
    jobs = yaml.safe_load((_SERVING / "prometheus" / "prometheus.yaml").read_text())
    (targets,) = (
        job["static_configs"][0]["targets"]
        for job in jobs["scrape_configs"]
        if job["job_name"] == "hne-serve"
    )
    page = (_SERVING.parent / "docs" / "serving.md").read_text()
    assert targets == [
        f"host.docker.internal:{port}" for port in re.findall(r"--metrics_port=(\d+)", page)
    ]


def _dashboard():
    return json.loads((_SERVING / "grafana" / "dashboards" / "hne.json").read_text())


def _client_series():
    """The series that the client exports, from its own registry."""
    registry = prometheus_client.CollectorRegistry()
    metrics = ClientMetrics(registry)
    metrics.call("digits", "ensemble_1", "OK", 1.0)
    metrics.answer("digits", 1)
    metrics.missed("digits")
    metrics.retry("digits")
    return {sample.name for metric in registry.collect() for sample in metric.samples}


def _server_series():
    """The series that hne-serve exports, from its own registry."""
    metrics = ServerMetrics()
    metrics.begins("ensemble_1")
    metrics.answered("ensemble_1", grpc.StatusCode.CANCELLED, 1.0)
    metrics.computes("ensemble_1", 1)
    metrics.answered_anytime(1)
    return {sample.name for metric in metrics.registry.collect() for sample in metric.samples}


def _gateway_series():
    """The series that a gateway exports, from its own registry."""
    metrics = GatewayMetrics()
    metrics.answered("ensemble_1", grpc.StatusCode.OK, 1.0)
    metrics.answered_anytime(1)
    return {sample.name for metric in metrics.registry.collect() for sample in metric.samples}


def test_panels_ask_only_for_metrics_that_are_exported():
    histograms = {
        f"{name}_{series}"
        for name in _TF_SERVING_HISTOGRAMS
        for series in ("bucket", "sum", "count")
    }
    exported = (
        _TF_SERVING_COUNTERS | histograms | _client_series() | _server_series() | _gateway_series()
    )
    asked = set()
    for panel in _dashboard()["panels"]:
        assert panel["type"] == "row" or panel["targets"]
        for target in panel.get("targets", ()):
            # Metrics are what is selected from or has a range; functions and labels are not.
            names = set(re.findall(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?=[{\[])", target["expr"]))
            assert names, target["expr"]
            assert names <= exported, target["expr"]
            asked |= names
            for opening, closing in ("()", "{}", "[]"):
                assert target["expr"].count(opening) == target["expr"].count(closing)
    # Latency, rate and errors, of the server and of its clients.
    assert asked >= {
        ":tensorflow:serving:request_count",
        ":tensorflow:serving:request_latency_bucket",
        "hne_client_answers_total",
        "hne_client_latency_seconds_bucket",
        "hne_client_budget_missed_total",
        "hne_server_requests_total",
        "hne_server_latency_seconds_bucket",
        "hne_server_in_progress",
        "hne_server_anytime_total",
        "hne_gateway_requests_total",
        "hne_gateway_latency_seconds_bucket",
        "hne_gateway_anytime_total",
    }


def test_the_dashboard_uses_the_provisioned_data_source():
    provisioning = _SERVING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    panels = _dashboard()["panels"]
    assert {p["datasource"]["uid"] for p in panels if p["type"] != "row"} == {source["uid"]}
    assert len({panel["id"] for panel in panels}) == len(panels)
    (provider,) = yaml.safe_load((provisioning / "dashboards/hne.yaml").read_text())["providers"]
    mounts = yaml.safe_load(_COMPOSE.read_text())["services"]["grafana"]["volumes"]
    assert any(mount.split(":")[1] == provider["options"]["path"] for mount in mounts)
