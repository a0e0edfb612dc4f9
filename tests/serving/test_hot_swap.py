"""Versions come and go under load, and no request is lost."""

import pathlib
import shutil
import threading
import time

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from hne_tf.errors import InputError
from hne_tf.exported.versions import WARM_UP_REQUESTS
from hne_tf.server.errors import RequestError
from hne_tf.server.servable import LoadedSignature, Servable
from hne_tf.server.watcher import RETRY_S, VersionWatcher

_State = get_model_status_pb2.ModelVersionStatus.State


@pytest.fixture
def base(tmp_path, sums_path):
    """A base path of its own, with version 1."""
    shutil.copytree(sums_path, tmp_path / "sums" / "1")
    return tmp_path / "sums"


@pytest.fixture
def watcher(catalog, base):
    """Looks only when told to."""
    made = VersionWatcher(catalog, base)
    made.start()
    return made


def _states(catalog):
    return {version: status.state for version, status in catalog._statuses.items()}


def _status(channel, version=None):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "sums"
    if version:
        request.model_spec.version.value = version
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    return list(stub.GetModelStatus(request, timeout=20).model_version_status)


def _answer(channel, request):
    """The sum of the only row and the version that gave it."""
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.Predict(request, timeout=30)
    return tf.make_ndarray(response.outputs["sums"])[0], response.model_spec.version.value


def _until(condition):
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class _Callers:
    """Threads that ask without a break and keep what they got."""

    def __init__(self, channel, request, count=4):
        self.answers, self.errors = [], []
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(channel, request)) for _ in range(count)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def versions(self, last=8):
        return {version for _, version in self.answers[-last:]}

    def _ask(self, channel, request):
        while not self._stopped.is_set():
            try:
                self.answers.append(_answer(channel, request))
            except grpc.RpcError as error:
                self.errors.append(error)


@pytest.mark.parametrize("max_batch_size", [0, 4])
def test_no_request_fails_while_versions_change(
    catalog, base, serve, sums_request, publish_sums, max_batch_size
):
    watcher = VersionWatcher(catalog, base, interval_s=0.05)
    watcher.start()
    channel = serve(max_batch_size=max_batch_size, batch_timeout_micros=200)
    with _Callers(channel, sums_request(10.0)) as callers:
        _until(lambda: callers.versions() == {1})
        publish_sums(base, 2)
        _until(lambda: callers.versions() == {2})
        shutil.rmtree(base / "2")
        _until(lambda: callers.versions() == {1})
        publish_sums(base, 3)
        _until(lambda: callers.versions() == {3})
    watcher.stop(timeout_s=10)
    assert callers.errors == []
    assert {version for _, version in callers.answers} == {1, 2, 3}
    # Each answer is that of the version that it names.
    assert all(value == 10.0 + version for value, version in callers.answers)
    assert catalog.metrics.registry.get_sample_value("hne_server_swaps_total") == 3
    assert catalog.metrics.registry.get_sample_value("hne_server_version") == 3
    assert catalog.metrics.registry.get_sample_value("hne_server_versions_loaded") == 1


def test_the_old_version_is_unloaded_after_its_last_request(
    catalog, watcher, base, serve, sums_request, publish_sums, gate
):
    channel = serve()
    old = catalog.served
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    pending = stub.Predict.future(sums_request(5.0))
    assert gate.entered.acquire(timeout=20)
    publish_sums(base, 2)
    assert watcher.look() == []
    states = {status.version: status.state for status in _status(channel)}
    assert states == {1: _State.UNLOADING, 2: _State.AVAILABLE}
    assert not pending.done()
    gate.opened.set()
    assert _answer(channel, sums_request(5.0)) == (7.0, 2)
    assert tf.make_ndarray(pending.result(timeout=20).outputs["sums"]) == [6.0]
    _until(lambda: _states(catalog) == {1: _State.END, 2: _State.AVAILABLE})
    with pytest.raises(RequestError, match="closed"):
        old.signature("").run({"values": [[0.0, 0.0]]})


def test_requests_for_an_explicit_version_follow(watcher, base, serve, sums_request, publish_sums):
    channel = serve()
    assert _answer(channel, sums_request(version=1)) == (1.0, 1)
    publish_sums(base, 2)
    watcher.look()
    assert _answer(channel, sums_request(version=2)) == (2.0, 2)
    with pytest.raises(grpc.RpcError) as caught:
        _answer(channel, sums_request(version=1))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    (ended,) = _status(channel, 1)
    assert (ended.state, ended.status.error_code) == (_State.END, 0)


def _without_graph(folder):
    (folder / "saved_model.pb").unlink()


def _with_half_a_graph(folder):
    content = (folder / "saved_model.pb").read_bytes()
    (folder / "saved_model.pb").write_bytes(content[: len(content) // 2])


def _with_half_the_variables(folder):
    (data,) = (folder / "variables").glob("*.data-*")
    data.write_bytes(data.read_bytes()[:2])


def _with_a_bad_warm_up(folder):
    _write_warm_up(folder, "absent")


def _with_a_damaged_warm_up(folder):
    _write_warm_up(folder, "serving_default")
    content = bytearray((folder / WARM_UP_REQUESTS).read_bytes())
    content[20] ^= 1
    (folder / WARM_UP_REQUESTS).write_bytes(content)


def _write_warm_up(folder, signature, requests=1):
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.name = "sums"
    log.predict_log.request.model_spec.signature_name = signature
    tensor = log.predict_log.request.inputs["values"]
    tensor.CopyFrom(tf.make_tensor_proto([[1.0, 2.0]]))
    (folder / WARM_UP_REQUESTS).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / WARM_UP_REQUESTS)) as writer:
        for _ in range(requests):
            writer.write(log.SerializeToString())


@pytest.mark.parametrize(
    "damage",
    [
        _without_graph,
        _with_half_a_graph,
        _with_half_the_variables,
        _with_a_bad_warm_up,
        _with_a_damaged_warm_up,
    ],
)
def test_a_broken_version_is_refused_until_it_is_complete(
    catalog, watcher, base, sums_path, damage
):
    served = catalog.served
    shutil.copytree(sums_path, base / "2")
    damage(base / "2")
    (reason,) = watcher.look()
    assert reason.startswith("version 2 refused: ")
    assert "\n" not in reason
    assert catalog.served is served
    # Said once, and again only when the files have changed.
    assert watcher.look() == []
    (base / "2" / "more").write_text("still writing")
    assert len(watcher.look()) == 1
    shutil.rmtree(base / "2")
    shutil.copytree(sums_path, base / "2")
    assert watcher.look() == []
    assert catalog.served.version == 2
    assert catalog.metrics.registry.get_sample_value("hne_server_failed_loads_total") == 2


def test_status_tells_of_a_refused_version(watcher, base, serve, sums_request):
    channel = serve()
    (base / "2").mkdir()
    watcher.look()
    refused, available = _status(channel)
    assert (refused.version, refused.state) == (2, _State.END)
    assert refused.status.error_code != 0
    assert "version 2 refused" in refused.status.error_message
    assert (available.version, available.state) == (1, _State.AVAILABLE)
    assert _answer(channel, sums_request(1.0)) == (2.0, 1)


def test_an_unchanged_refused_version_is_tried_again_later(catalog, watcher, base, monkeypatch):
    (base / "2").mkdir()
    watcher.look()
    later = time.monotonic() + RETRY_S
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert watcher.look() == []
    assert catalog.metrics.registry.get_sample_value("hne_server_failed_loads_total") == 2


def test_what_is_no_version_is_ignored(catalog, watcher, base, sums_path):
    for name in ("unpublished-9-abc", "9.partial", ".9"):
        shutil.copytree(sums_path, base / name)
    assert watcher.look() == []
    assert catalog.served.version == 1


def test_a_version_in_memory_survives_its_folder(catalog, watcher, base):
    shutil.rmtree(base / "1")
    assert watcher.look() == []
    assert catalog.served.version == 1


def test_warm_up_is_replayed_before_the_version_is_served(
    catalog, watcher, base, publish_sums, monkeypatch
):
    served = []
    run = LoadedSignature.run

    def recorded(signature, arrays):
        served.append(catalog.served.version)
        return run(signature, arrays)

    monkeypatch.setattr(LoadedSignature, "run", recorded)
    publish_sums(base, 2, lambda folder: _write_warm_up(folder, "serving_default", 3))
    watcher.look()
    assert served == [1, 1, 1]
    assert catalog.served.version == 2


def test_more_warm_up_requests_than_tf_serving_takes_are_refused(base):
    _write_warm_up(base / "1", "serving_default", 1001)
    with pytest.raises(InputError, match="at most 1000"):
        Servable("sums", base / "1").warm_up()


def test_the_largest_sound_version_starts(catalog, base):
    lines = []
    (base / "2").mkdir()
    watcher = VersionWatcher(catalog, base, report=lines.append)
    watcher.start()
    assert catalog.served.version == 1
    assert [line.split(":")[0] for line in lines] == ["version 2 refused"]


def test_only_broken_versions_are_refused(catalog, tmp_path):
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"no version can be served: version 2 .*; version 1 "):
        VersionWatcher(catalog, tmp_path).start()


def test_a_base_path_that_goes_away_is_reported_once(catalog, base):
    lines = []
    watcher = VersionWatcher(catalog, base, interval_s=0.01, report=lines.append)
    watcher.start()
    base.rename(base.with_name("elsewhere"))
    _until(lambda: lines)
    time.sleep(0.1)
    watcher.stop(timeout_s=10)
    assert len(lines) == 1
    assert "cannot look for versions" in lines[0]
    assert catalog.served.version == 1
    assert pathlib.Path(base).name == "sums"
