"""Train, export, serve, ask: what the live model answers is what the client prints."""

import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from hne_tf.bin import predict
from hne_tf.client.budget_client import ServingClient
from hne_tf.export import exporter
from hne_tf.exported.versions import MANIFEST, latest_version_path
from hne_tf.server import servable, service
from hne_tf.training import trained


@pytest.fixture(scope="module")
def run(trained_workdir):
    return trained.restore(trained_workdir)


@pytest.fixture(scope="module")
def version(run, tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "tiny"
    return exporter.export(
        run.model,
        base,
        test=run.batches("test"),
        validation=run.batches("validation"),
        record=run.record,
        report=lambda line: None,
    )


@pytest.fixture(scope="module")
def server(version):
    model = servable.Servable("tiny", latest_version_path(version.parent))
    running = service.start(model)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def images(run):
    return next(iter(run.data_set.evaluation_batches("test", 4)))[0].numpy()


def test_every_size_over_the_wire_is_the_live_model(run, server, images):
    leaf_logits = run.model(images, training=False).numpy()
    with ServingClient(server.address, "tiny") as client:
        for size in (1, 2, 4):
            outputs = client.predict(images, f"ensemble_{size}")
            expected = leaf_logits[:, :size].mean(axis=1)
            np.testing.assert_allclose(outputs["logits"], expected, atol=1e-4)


def test_a_picture_is_classified_as_the_live_model_does(
    run, version, server, images, run_binary, tmp_path
):
    picture = tmp_path / "digit.png"
    Image.fromarray(images[0, ..., 0]).save(picture)
    code, lines, _ = run_binary(
        predict,
        f"--server={server.address}",
        "--model=tiny",
        f"--manifest={version / MANIFEST}",
        "--budget_ms=60000",
        str(picture),
    )
    assert code == 0
    mean = run.model(images[:1], training=False).numpy().mean(axis=1)
    probabilities = tf.nn.softmax(mean).numpy()[0]
    best = int(probabilities.argmax())
    name = run.data_set.spec.class_names[best]
    pattern = rf"{re.escape(str(picture))}: {name} \({probabilities[best]:.3f}\), ensemble of 4, .*"
    assert re.fullmatch(pattern, lines[0])


def test_steps_over_the_wire_reach_the_full_ensemble(run, server, images):
    # The caches travel to the client and back, as they will with stock TF Serving.
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    known = {"images": images}
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for step in run.model.tree.steps:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "tiny"
            request.model_spec.signature_name = f"step_{step.size}"
            start = f"cache_{step.branch_block - 1}" if step.branch_block else "images"
            inputs = {"cache" if step.branch_block else "images": known[start]}
            if step.size > 1:
                inputs["running_sum"] = known["running_sum"]
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            outputs = stub.Predict(request, timeout=10).outputs
            known |= {name: tf.make_ndarray(value) for name, value in outputs.items()}
    expected = run.model(images, training=False).numpy().sum(axis=1)
    np.testing.assert_allclose(known["running_sum"], expected, atol=4e-4)
