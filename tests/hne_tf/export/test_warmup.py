"""Warm-up requests are replayed as TF Serving does, and never silently cut."""

import asyncio

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from hne_tf.client.anytime_client import AnytimeClient
from hne_tf.client.async_client import AsyncBudgetClient
from hne_tf.client.budget_client import BudgetClient, ServingClient
from hne_tf.errors import InputError
from hne_tf.export import signatures
from hne_tf.export.warmup import write_requests
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.versions import MOST_WARM_UP_REQUESTS, WARM_UP_REQUESTS
from hne_tf.image_spec import ImageSpec
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.server import servicers
from hne_tf.server.servable import Servable
from hne_tf.server.service import start
from hne_tf.training import build
from hne_tf.tree import Tree

_BATCH_SIZES = (1, 3, 8)
# The full ensemble by default, three ensembles with two sets of outputs each, four steps.
_ASKED = 1 + 3 * 2 + 4
_IMAGES = ImageSpec((8, 8, 1), tuple("0123456789"), (100.0,), (50.0,))


@pytest.fixture(scope="module")
def endpoints(tiny_config):
    """The signatures of an untrained model: warm-up depends on shapes alone."""
    model = build.ensemble(tiny_config(), DeployLayers(), _IMAGES)
    return signatures.signatures(model, model.tree.sizes)


@pytest.fixture(scope="module")
def version(endpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny" / "1"
    signatures.save(endpoints, str(folder))
    assert write_requests(folder, "tiny", endpoints, _BATCH_SIZES) == _ASKED * len(_BATCH_SIZES)
    return folder


def _requests(path):
    logs = (
        prediction_log_pb2.PredictionLog.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(path))
    )
    return [log.predict_log.request for log in logs]


def test_every_record_is_answered_by_the_embedded_server(version):
    servable = Servable("tiny", version)
    requests = _requests(version / WARM_UP_REQUESTS)
    assert len(requests) == _ASKED * len(_BATCH_SIZES)
    answered = set()
    for request in requests:
        name = request.model_spec.signature_name
        outputs = servable.predict(name, request.inputs, request.output_filter)
        (batch,) = {len(array) for array in outputs.values()}
        answered.add((name, batch))
    assert answered == {(name, batch) for name in servable.signatures for batch in _BATCH_SIZES}
    assert {request.model_spec.name for request in requests} == {"tiny"}


@pytest.fixture
def served(version, monkeypatch):
    """A server of the model, and what it is asked: signature, outputs, rows."""
    asked = set()
    parse = servicers._parse

    def noted(message):
        request = parse(message)
        (rows, *_) = (value.tensor_shape.dim[0].size for value in request.inputs.values())
        name, outputs = request.model_spec.signature_name, tuple(request.output_filter)
        asked.add((name, outputs, rows))
        return request

    monkeypatch.setattr(servicers, "_parse", noted)
    running = start(Servable("tiny", version))
    yield running.address, asked
    running.stop(grace_s=0)


def test_what_clients_ask_for_is_warmed_up(version, served, endpoints):
    address, asked = served
    images = np.zeros([3, 8, 8, 1], np.uint8)
    manifest = Manifest.of_tree(Tree((1, 2, 2)), "tiny", "0123456789", (8, 8, 1))
    with BudgetClient(address, "tiny") as client:
        client.measure(images, rounds=1)
        client.predict(images, budget_ms=60_000)
    with AnytimeClient(address, "tiny", manifest) as client:
        client.predict(images)
    with ServingClient(address, "tiny") as client:
        for size in (1, 2, 4):
            client.predict(images, f"ensemble_{size}")
        client.predict(images, "serving_default")

    async def ask():
        async with AsyncBudgetClient(address, "tiny") as client:
            await client.predict(images, budget_ms=60_000)

    asyncio.run(ask())
    warmed = {
        (request.model_spec.signature_name, tuple(request.output_filter), rows)
        for request in _requests(version / WARM_UP_REQUESTS)
        for rows in [next(iter(request.inputs.values())).tensor_shape.dim[0].size]
    }
    assert asked == {key for key in warmed if key[2] == 3}
    assert {name for name, _, _ in asked} == set(endpoints)


def test_more_requests_than_tf_serving_takes_are_refused_before_anything_is_written(
    endpoints, tmp_path
):
    most = MOST_WARM_UP_REQUESTS // _ASKED
    with pytest.raises(InputError, match=r"at most 1000 warm-up requests.*got 1001: 11 sets x 91"):
        write_requests(tmp_path, "tiny", endpoints, range(1, most + 2))
    assert list(tmp_path.iterdir()) == []


def test_as_many_as_tf_serving_takes_are_written(endpoints, tmp_path):
    # Eight sets of outputs.
    some = {name: endpoints[name] for name in endpoints if not name.startswith("step_")}
    some["step_1"] = endpoints["step_1"]
    batch_sizes = range(1, MOST_WARM_UP_REQUESTS // 8 + 1)
    assert write_requests(tmp_path, "tiny", some, batch_sizes) == MOST_WARM_UP_REQUESTS
    assert len(_requests(tmp_path / WARM_UP_REQUESTS)) == MOST_WARM_UP_REQUESTS
