"""The REST door under load: one bound holds for both doors, and status is never behind."""

import concurrent.futures
import contextlib
import http.client
import json
import socket
import time
import urllib.error
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import prediction_service_pb2_grpc

from hne_tf.errors import InputError
from hne_tf.server import serve as library
from hne_tf.server.rest import handlers
from hne_tf.server.rest.door import RestDoor
from hne_tf.server.servable import Servable
from hne_tf.server.service import Options, start

_PREDICT = "/v1/models/sums:predict"
_BODY = {"instances": [[1.0, 2.0]]}
_SUM = {"predictions": [4.0]}


def _until(condition):
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def both(catalog, sums_path, open_rest):
    """Starts a server with both doors; returns it, and what asks over REST."""
    catalog.publish(Servable("sums", sums_path))
    with contextlib.ExitStack() as cleanup:

        def begin(**options):
            server = start(catalog, options=Options(**options))
            cleanup.callback(server.stop, 0)
            return server, open_rest(server)

        yield begin


@pytest.fixture
def pool():
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        yield threads


def _sample(catalog, name, **labels):
    return catalog.metrics.registry.get_sample_value(f"hne_server_{name}", labels) or 0


def test_one_bound_holds_for_both_doors(catalog, both, gate, pool, sums_request):
    server, ask = both(threads=1, max_queued_requests=1)
    held = [pool.submit(ask, "POST", _PREDICT, _BODY)]
    _until(lambda: server.inside.predictions.held == 1)
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        held.append(stub.Predict.future(sums_request()))
        _until(lambda: server.inside.predictions.held == 2)
        answer = ask("POST", _PREDICT, _BODY)
        assert answer.status == 429
        assert "at most 2 predictions" in answer.json["error"]
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(sums_request(), timeout=60)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        # What is no prediction is answered all the same.
        assert ask("GET", "/v1/models/sums").status == 200
        assert ask("GET", "/v1/models/sums/metadata").status == 200
        check = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=60
        )
        assert check.status == health_pb2.HealthCheckResponse.SERVING
        assert _sample(catalog, "in_progress", signature="serving_default") == 2
        gate.opened.set()
        assert held[0].result(60).json == _SUM
        held[1].result(60)
    _until(lambda: server.inside.predictions.held == 0)
    for door in ("rest", "grpc"):
        count = {"door": door, "signature": "", "code": "RESOURCE_EXHAUSTED"}
        assert _sample(catalog, "requests_total", **count) == 1
        count = {"door": door, "signature": "serving_default", "code": "OK"}
        assert _sample(catalog, "requests_total", **count) == 1
    assert _sample(catalog, "in_progress", signature="serving_default") == 0


def test_a_client_that_hangs_up_gives_its_place_up(catalog, both, gate, pool):
    server, ask = both(threads=1, max_queued_requests=1)
    held = pool.submit(ask, "POST", _PREDICT, _BODY)
    assert gate.entered.acquire(timeout=60)
    connection = http.client.HTTPConnection(ask.door.address.removeprefix("http://"))
    connection.request("POST", _PREDICT, json.dumps(_BODY))
    _until(lambda: server.inside.predictions.held == 2)
    connection.close()
    _until(lambda: server.inside.predictions.held == 1)
    gate.opened.set()
    assert held.result(60).json == _SUM
    # The graph ran for the one who waited.
    assert len(gate.runs) == 1
    assert _sample(catalog, "abandoned_total", reason="cancelled") == 1
    count = {"door": "rest", "signature": "serving_default", "code": "CANCELLED"}
    assert _sample(catalog, "requests_total", **count) == 1


def test_bodies_that_do_not_come_hold_no_prediction_up(both, sums_request, monkeypatch):
    server, ask = both(threads=1, max_queued_requests=0)
    host, port = ask.door.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(
            b"POST /v1/models/sums:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        )
        _until(lambda: ask("POST", _PREDICT, _BODY).status == 429)
        assert "reads at most 1" in ask("POST", _PREDICT, _BODY).json["error"]
        with grpc.insecure_channel(server.address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            stub.Predict(sums_request(), timeout=60)
    # Whoever hung up is not waited for.
    _until(lambda: ask("POST", _PREDICT, _BODY).status == 200)
    monkeypatch.setattr(handlers, "_BODY_S", 0.05)
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(
            b"POST /v1/models/sums:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
        )
        assert slow.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_requests_of_both_doors_share_a_batch(both, pool, sums_request, gate):
    gate.opened.set()
    # Far longer than the test: it is the second request that fills the batch.
    server, ask = both(max_batch_size=2, batch_timeout_micros=600_000_000)
    over_rest = pool.submit(ask, "POST", _PREDICT, _BODY)
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        stub.Predict(sums_request(3.0), timeout=600)
    assert over_rest.result(600).json == _SUM
    assert [len(run["values"]) for run in gate.runs] == [2]


def test_what_was_taken_on_is_answered_before_the_doors_close(sums_path, gate, pool):
    servers = []

    def run():
        with library.serve(
            sums_path.parent, rest_port=0, drain_s=600, report=lambda line: None
        ) as server:
            held = pool.submit(_post, server.rest_address)
            assert gate.entered.acquire(timeout=60)
            servers.append(server)
        return held

    running = pool.submit(run)
    # The block is left while the prediction is held: until then others would be taken on.
    _until(lambda: servers and servers[0].inside.predictions.refusal())
    url = servers[0].rest_address
    code, refusal = _post(url)
    assert code == 503
    assert "shutting down" in refusal["error"]
    with urllib.request.urlopen(f"{url}/v1/models/sums", timeout=60) as status:
        assert json.loads(status.read())["model_version_status"][0]["state"] == "AVAILABLE"
    gate.opened.set()
    assert running.result(60).result(60) == (200, _SUM)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/v1/models/sums", timeout=60)


def _post(url):
    request = urllib.request.Request(f"{url}{_PREDICT}", json.dumps(_BODY).encode())
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_the_log_is_closed_after_the_last_answer(sums_path, tmp_path, gate, pool):
    path = tmp_path / "access.jsonl"
    with library.serve(
        sums_path.parent, rest_port=0, access_log=path, drain_s=600, report=lambda line: None
    ) as server:
        held = pool.submit(_post, server.rest_address)
        assert gate.entered.acquire(timeout=60)
        # While the block is left.
        pool.submit(lambda: (time.sleep(0.2), gate.opened.set()))
    assert held.result(60) == (200, _SUM)
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["door"], line["code"]) == ("rest", "OK")


def test_a_taken_port_is_one_line_and_leaves_nothing_running(sums_path, both):
    _, ask = both()
    port = int(ask.door.address.rpartition(":")[2])
    with (
        pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port} for REST"),
        library.serve(sums_path.parent, rest_port=port, report=lambda line: None),
    ):
        pass


def test_without_a_port_there_is_no_door(sums_path):
    with library.serve(sums_path.parent, report=lambda line: None) as server:
        assert server.rest_address is None


def test_grpc_in_tls_and_rest_in_plaintext_is_refused(sums_path):
    options = Options(credentials=grpc.ssl_server_credentials([(b"key", b"certificate")]))
    with (
        pytest.raises(InputError, match="both of gRPC and REST"),
        library.serve(sums_path.parent, rest_port=0, options=options),
    ):
        pass


def test_a_failure_of_the_server_is_500_in_json(both, monkeypatch, caplog):
    server, ask = both()

    def fail(*arguments):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(server.inside.service, "answer", fail)
    answer = ask("POST", _PREDICT, _BODY)
    assert (answer.status, answer.json) == (500, {"error": "the server failed"})
    # Its traceback is for those who run the server.
    assert "a defect" in caplog.text


def test_many_clients_at_once_are_answered(both, pool):
    _, ask = both()
    bodies = [{"instances": [[float(number), 0.0]]} for number in range(100)]
    answers = pool.map(lambda body: ask("POST", _PREDICT, body).json, bodies)
    assert [answer["predictions"] for answer in answers] == [
        [number + 1.0] for number in range(100)
    ]


def test_an_ipv6_address_is_written_as_urls_have_it(both):
    server, _ = both()
    try:
        door = RestDoor(server.inside, "::1", 0, None)
    except InputError:
        pytest.skip("no IPv6 on this machine")
    try:
        assert door.address.startswith("http://[::1]:")
        with urllib.request.urlopen(f"{door.address}/v1/models/sums", timeout=60) as answer:
            assert answer.status == 200
    finally:
        door.stop()
