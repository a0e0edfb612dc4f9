"""Signature `anytime` over REST."""

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

_PREDICT = "/v1/models/digits:predict"


def _fixed(server, images, size):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    request.model_spec.signature_name = f"ensemble_{size}"
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return tf.make_ndarray(stub.Predict(request, timeout=60).outputs["probabilities"])


def test_an_answer_is_that_of_the_size_that_it_names(rest, server, images):
    body = {"signature_name": "anytime", "inputs": images.tolist()}
    for headers in ({}, {"X-HNE-Budget-Ms": "60000"}):
        answer = rest("POST", _PREDICT, body, headers)
        assert answer.status == 200, answer.json
        outputs = answer.json["outputs"]
        assert outputs.keys() == {"probabilities", "size", "latency_ms"}
        (size,) = set(outputs["size"])
        np.testing.assert_allclose(
            outputs["probabilities"], _fixed(server, images, size), rtol=0, atol=1e-6
        )
    # Nothing hurries.
    assert size == 4


def test_a_spent_budget_is_429(rest, images):
    body = {"signature_name": "anytime", "instances": images.tolist()}
    # Asked once, its time is known.
    assert rest("POST", _PREDICT, body).status == 200
    answer = rest("POST", _PREDICT, body, {"X-HNE-Budget-Ms": "1e-9"})
    assert answer.status == 429
    assert answer.json.keys() == {"error"}


def test_it_is_in_the_metadata(rest):
    answer = rest("GET", "/v1/models/digits/metadata").json
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert signatures["anytime"]["inputs"].keys() == {"images"}
