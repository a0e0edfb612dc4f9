"""What LiteRT serves: the same as TensorFlow, from the TFLite file in a version's folder.

Status codes and malformed requests are in `test_status_codes` and `test_malformed`, which ask
this server too.
"""

import concurrent.futures
import shutil
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from hne_tf.client.budget_client import ServingClient
from hne_tf.client.messages import CallError
from hne_tf.errors import InputError
from hne_tf.exported import tflite_file
from hne_tf.exported.manifest import read_manifest
from hne_tf.exported.versions import LITERT, MANIFEST
from hne_tf.server.catalog import Catalog
from hne_tf.server.errors import RequestError
from hne_tf.server.metrics import ServerMetrics
from hne_tf.server.runtimes import litert
from hne_tf.server.servable import Servable
from hne_tf.server.serve import serve
from hne_tf.server.service import Options, start
from hne_tf.server.watcher import VersionWatcher

ENSEMBLES = ("ensemble_1", "ensemble_2", "ensemble_4", "serving_default")


def random_images(rows, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, 8, 8, 1), np.uint8)


def expected(saved_model, name, **inputs):
    values = {key: tf.constant(value) for key, value in inputs.items()}
    return {key: each.numpy() for key, each in saved_model.signatures[name](**values).items()}


def assert_alike(got, wanted):
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_allclose(got[name], array, atol=1e-5, rtol=1e-5)


@pytest.fixture
def client(litert_server):
    with ServingClient(litert_server.address, "digits") as opened:
        yield opened


@pytest.fixture
def copied(litert_base, tmp_path):
    """A copy of the version that a test may damage."""
    return shutil.copytree(litert_base, tmp_path / "digits") / "7"


def drop_variables(version):
    """Leaves a SavedModel whose signatures can be read and not computed."""
    shutil.rmtree(version / "variables")


@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensembles_answer_as_tensorflow_does_in_any_batch(client, saved_model, name):
    # Sizes come and go, so that inputs are resized to and fro.
    for rows in (1, 3, 1, 16, 2, 128, 1, 128):
        images = random_images(rows, rows)
        assert_alike(client.predict(images, name), expected(saved_model, name, images=images))


def test_a_step_answers_as_tensorflow_does(client, saved_model):
    random = np.random.default_rng(3)
    for rows in (2, 1, 5):
        inputs = {
            "cache": random.normal(size=(rows, 6)).astype(np.float32),
            "running_sum": random.normal(size=(rows, 10)).astype(np.float32),
        }
        assert_alike(client.run("step_2", inputs).arrays, expected(saved_model, "step_2", **inputs))


def test_outputs_are_those_asked_for(client):
    answer = client.run("ensemble_2", {"images": random_images(1)}, ["probabilities"])
    assert answer.arrays.keys() == {"probabilities"}
    assert answer.version == 7


def test_metadata_is_that_of_the_saved_model(client, server):
    with ServingClient(server.address, "digits") as other:
        assert client.info() == other.info()


def test_inputs_of_unequal_rows_are_refused_and_harm_nobody(client, saved_model):
    unequal = {"cache": np.zeros([2, 6], np.float32), "running_sum": np.zeros([3, 10], np.float32)}
    with pytest.raises(CallError, match="equal first dimensions") as caught:
        client.run("step_2", unequal)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    fitting = {"cache": np.ones([1, 6], np.float32), "running_sum": np.ones([1, 10], np.float32)}
    assert_alike(client.run("step_2", fitting).arrays, expected(saved_model, "step_2", **fitting))


@pytest.mark.parametrize("options", [Options(), Options(threads=1), Options(max_batch_size=8)])
def test_threads_get_their_own_answers(litert_base, saved_model, options):
    servable = Servable("digits", litert_base / "7", slots=options.threads)
    running = start(servable, options=options)

    def ask(number):
        name = ENSEMBLES[number % len(ENSEMBLES)]
        images = random_images(1 + number % 7, number)
        return name, images, client.predict(images, name, timeout_s=60)

    try:
        with (
            ServingClient(running.address, "digits") as client,
            concurrent.futures.ThreadPoolExecutor(8) as pool,
        ):
            answers = list(pool.map(ask, range(160)))
    finally:
        running.stop(grace_s=0)
    for name, images, answer in answers:
        assert_alike(answer, expected(saved_model, name, images=images))


def test_an_interpreter_is_never_used_by_two_calls(litert_base, monkeypatch):
    servable = Servable("digits", litert_base / "7", slots=2)
    inside, meeting = set(), threading.Barrier(3, timeout=60)
    run = litert._Worker.run

    def recorded(worker, name, arrays):
        assert worker not in inside
        inside.add(worker)
        meeting.wait()
        outputs = run(worker, name, arrays)
        inside.discard(worker)
        return outputs

    made = []
    init = litert._Worker.__init__

    def counted(worker, *arguments):
        made.append(worker)
        with monkeypatch.context() as patch:
            patch.setattr(litert._Worker, "run", run)
            init(worker, *arguments)

    signature = servable.signature("ensemble_1")
    monkeypatch.setattr(litert._Worker, "__init__", counted)
    monkeypatch.setattr(litert._Worker, "run", recorded)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        # One call more than there are interpreters ready.
        list(pool.map(lambda _: signature.run({"images": random_images(1)}), range(3)))
    assert len(made) == 1


def test_an_interpreter_that_fails_is_not_used_again(litert_base, monkeypatch):
    servable = Servable("digits", litert_base / "7", slots=1)
    signature, used = servable.signature("ensemble_1"), []
    run = litert._Worker.run

    def failing(worker, name, arrays):
        used.append(worker)
        if len(used) == 1:
            raise RuntimeError("node 3 failed\nto invoke")
        return run(worker, name, arrays)

    monkeypatch.setattr(litert._Worker, "run", failing)
    with pytest.raises(RequestError, match="ensemble_1 failed: node 3 failed to invoke") as caught:
        signature.run({"images": random_images(1)})
    assert caught.value.code is grpc.StatusCode.INTERNAL
    signature.run({"images": random_images(1)})
    assert used[-1] is not used[0]


def test_tensorflow_loads_nothing_that_litert_computes(copied):
    drop_variables(copied)
    servable = Servable("digits", copied, "litert")
    assert servable.runtime == "litert"
    images = random_images(2)
    outputs = servable.signature("").run({"images": images})
    assert outputs["probabilities"].shape == (2, 10)
    with pytest.raises(InputError, match="must hold a SavedModel"):
        Servable("digits", copied, "tensorflow")


def test_tensorflow_computes_what_the_file_lacks(publish_litert, tmp_path, saved_model):
    version = publish_litert(tmp_path / "digits", 1, names=["ensemble_1", "ensemble_4"])
    running = start(Servable("digits", version))
    images = random_images(3)
    try:
        with ServingClient(running.address, "digits") as client:
            for name in ENSEMBLES:
                answer = client.predict(images, name)
                assert_alike(answer, expected(saved_model, name, images=images))
    finally:
        running.stop(grace_s=0)
    drop_variables(version)
    with pytest.raises(InputError, match="must hold a SavedModel"):
        Servable("digits", version)


@pytest.mark.slow
def test_auto_is_what_was_measured_to_be_faster(publish_litert, copied, tmp_path):
    assert Servable("digits", copied).runtime == "litert"
    (copied / LITERT).unlink()
    assert Servable("digits", copied).runtime == "tensorflow"
    for number, (litert_ms, runtime) in enumerate([(3.0, "tensorflow"), (None, "tensorflow")], 1):
        version = publish_litert(tmp_path / "other", number, litert_ms=litert_ms)
        assert Servable("digits", version).runtime == runtime
        assert Servable("digits", version, "litert").runtime == "litert"


def test_without_the_file_one_line_says_how_to_get_it(copied):
    (copied / LITERT).unlink()
    with (
        pytest.raises(
            InputError, match=r"must hold assets.extra/model.tflite, .*--litert"
        ) as error,
        serve(copied.parent, runtime="litert"),
    ):
        pass
    assert "\n" not in str(error.value)


def test_a_runtime_has_a_known_name(copied):
    with pytest.raises(InputError, match=r"runtime must be one of auto, .*, got 'onnx'"):
        Servable("digits", copied, "onnx")


def cut_off(version):
    path = version / LITERT
    path.write_bytes(path.read_bytes()[:-100])


def change_weights(version):
    path = version / LITERT
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def describe_another_model(version):
    manifest = read_manifest(version)
    classes = tuple(reversed(manifest.classes))
    tflite_file.write_manifest(
        version / LITERT, type(manifest).of_tree(manifest.tree, "digits", classes, (8, 8, 1))
    )


def declare_other_inputs(version):
    path = version / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    signature = saved.meta_graphs[0].signature_def["ensemble_2"]
    signature.inputs["images"].tensor_shape.dim[1].size = 9
    path.write_bytes(saved.SerializeToString())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_off, "whole"),
        (change_weights, "damaged"),
        (describe_another_model, "must be of the version's model"),
        (declare_other_inputs, "ensemble_2 .* must take what the SavedModel's signature does"),
    ],
)
def test_a_bad_file_is_refused_and_the_version_before_goes_on(litert_base, tmp_path, damage, words):
    base = tmp_path / "digits"

    def publish(version):
        return shutil.copytree(litert_base / "7", base / str(version))

    catalog = Catalog("digits", ServerMetrics())
    watcher = VersionWatcher(catalog, base)
    damage(publish(2))
    with pytest.raises(InputError, match=words):
        watcher.start()
    publish(1)
    assert watcher.look() == []
    assert catalog.served.version == 1
    damage(publish(3))
    (reason,) = watcher.look()
    assert reason.startswith("version 3 refused: ")
    assert catalog.served.version == 1
    assert catalog.served.signature("ensemble_1").run({"images": random_images(1)})


@pytest.mark.slow
def test_versions_change_while_threads_ask(publish_litert, tmp_path):
    base, ready = tmp_path / "digits", tmp_path / "ready"
    base.mkdir()
    for version, litert_ms in ((1, 1.0), (2, 1.0), (3, 9.0), (4, 1.0)):
        publish_litert(ready, version, seed=version, litert_ms=litert_ms)
    models = {number: tf.saved_model.load(str(ready / str(number))) for number in range(1, 5)}
    (ready / "1").rename(base / "1")
    images, stop, answers = random_images(2), threading.Event(), []

    def ask():
        while not stop.is_set():
            answers.append(client.run("ensemble_4", {"images": images}, timeout_s=60))

    with (
        serve(base, poll_interval_s=0.05, report=lambda line: None) as server,
        ServingClient(server.address, "digits") as client,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for version in (2, 3, 4):
                (ready / str(version)).rename(base / str(version))
                assert wait_until(lambda version=version: server.version == version)
                seen = len(answers)
                assert wait_until(lambda seen=seen: len(answers) > seen + 4)
        finally:
            stop.set()
        for each in asking:
            each.result()
    wanted = {
        number: expected(each, "ensemble_4", images=images) for number, each in models.items()
    }
    for answer in answers:
        assert_alike(answer.arrays, wanted[answer.version])
    assert {answer.version for answer in answers} == {1, 2, 3, 4}


def wait_until(condition):
    """Waits for up to two minutes."""
    pause = threading.Event()
    return any(condition() or pause.wait(0.02) for _ in range(6000))


def test_a_version_that_fails_its_warm_up_is_refused(copied):
    (copied / MANIFEST).with_name("tf_serving_warmup_requests").write_bytes(b"no records" * 10)
    with pytest.raises(InputError, match="must hold warm-up requests"):
        Servable("digits", copied).warm_up()
