"""Ids of predictions go back to callers and into the access log, by both doors."""

import contextlib
import json
import logging
import threading
import time

import grpc
import pytest
from tensorflow_serving.apis import prediction_service_pb2_grpc

from hne_tf.errors import InputError
from hne_tf.gateway.run import gateway
from hne_tf.server.metrics import ServerMetrics
from hne_tf.server.servable import Servable
from hne_tf.server.service import Options, start
from hne_tf.server.tracing import access_log
from hne_tf.server.tracing.access_log import AccessLog
from hne_tf.server.tracing.trace import REQUEST_ID, TRACEPARENT, Trace
from hne_tf.server.tracing.tracer import Tracer

_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_PREDICT = "/v1/models/sums:predict"
KEYS = (REQUEST_ID, TRACEPARENT)
_BODY = {"instances": [[1.0, 2.0], [3.0, 4.0]]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "access.jsonl"


@pytest.fixture
def log(path, catalog):
    opened = AccessLog(path, catalog.metrics.line_lost)
    yield opened
    opened.close()


@pytest.fixture
def traced(catalog, sums_path, open_rest):
    """Starts a server, with a log if one is given; returns its stub and what asks over REST."""
    catalog.publish(Servable("sums", sums_path))
    with contextlib.ExitStack() as cleanup:

        def begin(log=None, **options):
            server = start(catalog, options=Options(**options), tracer=Tracer(log))
            cleanup.callback(server.stop, 0)
            channel = cleanup.enter_context(grpc.insecure_channel(server.address))
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            return stub, open_rest(server)

        yield begin


def _ask(stub, request, *metadata):
    """Trailing metadata and status of a call."""
    call = stub.Predict.future(request, timeout=60, metadata=metadata)
    # The error, if it is one.
    call.exception()
    return dict(call.trailing_metadata()), call.code()


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "given",
    [
        {"x-request-id": "a-1"},
        {"traceparent": _PARENT},
        {"x-request-id": "b", "traceparent": _PARENT},
        {},
    ],
)
def test_ids_go_back_by_both_doors(traced, sums_request, given):
    stub, ask = traced()
    for request, code in ((sums_request(), "OK"), (sums_request(-1.0), "INVALID_ARGUMENT")):
        trailing, found = _ask(stub, request, *given.items())
        assert found.name == code
        assert {key: trailing[key] for key in trailing if key in KEYS} == given
    for body, status in ((_BODY, 200), ({}, 400)):
        answer = ask("POST", _PREDICT, body, {key.title(): given[key] for key in given})
        assert answer.status == status
        found = {key.lower(): value for key, value in answer.headers.items()}
        assert {key: found[key] for key in found if key in KEYS} == given


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("x-request-id", ""),
        ("x-request-id", "a b"),
        ("x-request-id", "x" * 129),
        ("x-request-id", "é"),
        ("x-request-id", "a\r\nSet-Cookie: b"),
        ("x-request-id", b"bytes"),
        ("traceparent", _PARENT.upper()),
        ("traceparent", _PARENT + "-1"),
        ("traceparent", "ff" + _PARENT[2:]),
        ("traceparent", f"00-{'0' * 32}-b7ad6b7169203331-01"),
        ("traceparent", f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01"),
    ],
)
def test_what_is_no_id_is_none(key, value):
    assert Trace.of([(key, value)], "rest", "").pairs() == []


def test_every_prediction_has_a_line(traced, sums_request, log, path):
    stub, ask = traced(log)
    secret = ("authorization", "Bearer hunter2")
    _ask(stub, sums_request(rows=3), ("x-request-id", "one"), secret)
    _ask(stub, sums_request(-1.0), ("traceparent", _PARENT))
    _ask(stub, sums_request(version=9))
    ask("POST", _PREDICT, _BODY, {"X-Request-Id": "two", "Authorization": "Bearer hunter2"})
    ask("POST", _PREDICT, {"inputs": 1}, {"X-Request-Id": "three"})
    ask("POST", "/v1/models/other:predict", _BODY, {"X-Request-Id": "four"})
    # No predictions.
    ask("GET", "/v1/models/sums")
    ask("GET", "/v1/models/sums/metadata")
    ask("POST", "/v1/models/sums:classify", _BODY)
    log.close()
    lines = _lines(path)
    for line in lines:
        assert line.pop("ms") >= 0
        assert line.pop("peer").startswith(("ipv4:127.0.0.1:", "127.0.0.1:"))
        assert line.pop("time").endswith("+00:00")
    made = lines[2].pop("trace_id")
    assert len(made) == 32
    known = {"signature": "serving_default", "version": 1}
    assert lines == [
        {"trace_id": "one", "door": "grpc", **known, "rows": 3, "code": "OK"},
        {
            "trace_id": _PARENT.split("-")[1],
            "traceparent": _PARENT,
            "door": "grpc",
            **known,
            "rows": 1,
            "code": "INVALID_ARGUMENT",
        },
        {"door": "grpc", "code": "NOT_FOUND"},
        {"trace_id": "two", "door": "rest", **known, "rows": 2, "code": "OK"},
        {"trace_id": "three", "door": "rest", **known, "code": "INVALID_ARGUMENT"},
        {"trace_id": "four", "door": "rest", "code": "NOT_FOUND"},
    ]
    assert "hunter2" not in path.read_text()


def test_a_gateway_passes_ids_both_ways(catalog, sums_path, sums_request, log, path):
    catalog.publish(Servable("sums", sums_path))
    server = start(catalog, tracer=Tracer(log))
    given = {"x-request-id": "a-1", "traceparent": _PARENT}
    try:
        with (
            gateway([server.address]) as running,
            grpc.insecure_channel(running.address) as channel,
        ):
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            trailing, code = _ask(stub, sums_request(), *given.items())
    finally:
        server.stop(grace_s=0)
    assert code is grpc.StatusCode.OK
    assert {key: trailing[key] for key in trailing if key in KEYS} == given
    log.close()
    (line,) = _lines(path)
    assert (line["trace_id"], line["traceparent"]) == ("a-1", _PARENT)


def test_with_a_log_the_caller_learns_the_id_that_was_made(traced, sums_request, log, path):
    stub, ask = traced(log)
    trailing, _ = _ask(stub, sums_request())
    answer = ask("POST", _PREDICT, _BODY)
    log.close()
    expected = [trailing["x-request-id"], answer.headers["X-Request-Id"]]
    assert [line["trace_id"] for line in _lines(path)] == expected


def test_a_refused_prediction_has_a_line_too(traced, sums_request, log, path, gate):
    stub, ask = traced(log, threads=1, max_queued_requests=0)
    held = stub.Predict.future(sums_request())
    assert gate.entered.acquire(timeout=60)
    trailing, code = _ask(stub, sums_request(), ("x-request-id", "one"))
    assert (trailing["x-request-id"], code) == ("one", grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert ask("POST", _PREDICT, _BODY, {"X-Request-Id": "two"}).status == 429
    gate.opened.set()
    held.result(60)
    log.close()
    found = {(line["trace_id"], line["code"]) for line in _lines(path)[:2]}
    assert found == {("one", "RESOURCE_EXHAUSTED"), ("two", "RESOURCE_EXHAUSTED")}


def test_a_file_that_was_moved_away_is_made_again(log, path, tmp_path):
    trace = Trace("grpc", "ipv6:%5B::1%5D:5")
    log.write(trace, grpc.StatusCode.OK, 0.0015)
    _until(lambda: path.exists() and path.read_text().endswith("\n"))
    path.rename(tmp_path / "old.jsonl")
    log.write(trace, grpc.StatusCode.INTERNAL, 1.0)
    log.close()
    (old,), (new,) = _lines(tmp_path / "old.jsonl"), _lines(path)
    assert (old["ms"], new["ms"], old["peer"]) == (1.5, 1000.0, "ipv6:[::1]:5")


def _until(condition):
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_lines_go_to_standard_output(capsys):
    log = AccessLog("-", ServerMetrics().line_lost)
    log.write(Trace(), grpc.StatusCode.OK, 0.0)
    log.close()
    assert json.loads(capsys.readouterr().out)["code"] == "OK"


def test_a_disk_that_stands_still_costs_lines_but_no_time(path, monkeypatch):
    metrics = ServerMetrics()
    monkeypatch.setattr(access_log, "_MOST_WAITING", 2)
    opened, entered = threading.Event(), threading.Event()

    def stand_still(handler, record):
        entered.set()
        opened.wait(60)

    monkeypatch.setattr(logging.StreamHandler, "emit", stand_still)
    log = AccessLog(path, metrics.line_lost)
    log.write(Trace(), grpc.StatusCode.OK, 0.0)
    assert entered.wait(60)
    for _ in range(5):
        log.write(Trace(), grpc.StatusCode.OK, 0.0)
    assert metrics.registry.get_sample_value("hne_server_access_log_lost_total") == 3
    opened.set()
    log.close()


def test_a_full_disk_is_counted(monkeypatch, capsys):
    metrics = ServerMetrics()
    log = AccessLog("/dev/full", metrics.line_lost)
    log.write(Trace(), grpc.StatusCode.OK, 0.0)
    log.close()
    assert metrics.registry.get_sample_value("hne_server_access_log_lost_total") == 1
    assert capsys.readouterr().err == ""


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(InputError, match="the access log must be a file that can be written"):
        AccessLog(tmp_path / "absent" / "log", lambda: None)
