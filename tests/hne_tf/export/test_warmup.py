"""Warm-up requests are replayed as TF Serving does, and never silently cut."""

import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from hne_tf.errors import InputError
from hne_tf.export import signatures
from hne_tf.export.warmup import write_requests
from hne_tf.exported.versions import MOST_WARM_UP_REQUESTS, WARM_UP_REQUESTS
from hne_tf.image_spec import ImageSpec
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.server.servable import Servable
from hne_tf.training import build

_BATCH_SIZES = (1, 3, 8)
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
    assert write_requests(folder, "tiny", endpoints, _BATCH_SIZES) == 8 * len(_BATCH_SIZES)
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
    assert len(requests) == len(servable.signatures) * len(_BATCH_SIZES)
    answered = set()
    for request in requests:
        name = request.model_spec.signature_name
        outputs = servable.predict(name, request.inputs)
        (batch,) = {len(array) for array in outputs.values()}
        answered.add((name, batch))
    assert answered == {(name, batch) for name in servable.signatures for batch in _BATCH_SIZES}
    assert {request.model_spec.name for request in requests} == {"tiny"}


def test_more_requests_than_tf_serving_takes_are_refused_before_anything_is_written(
    endpoints, tmp_path
):
    most = MOST_WARM_UP_REQUESTS // len(endpoints)
    with pytest.raises(InputError, match=r"at most 1000 warm-up requests.*got 1008: 8 sig.* x 126"):
        write_requests(tmp_path, "tiny", endpoints, range(1, most + 2))
    assert list(tmp_path.iterdir()) == []


def test_as_many_as_tf_serving_takes_are_written(endpoints, tmp_path):
    batch_sizes = range(1, MOST_WARM_UP_REQUESTS // len(endpoints) + 1)
    assert write_requests(tmp_path, "tiny", endpoints, batch_sizes) == MOST_WARM_UP_REQUESTS
    assert len(_requests(tmp_path / WARM_UP_REQUESTS)) == MOST_WARM_UP_REQUESTS
