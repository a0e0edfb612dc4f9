"""The REST door: the cases of TF Serving's documentation, and gRPC's answers to the same."""

import base64
import gzip

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from hne_tf.server.rest import answers, requests, routes, tensors
from hne_tf.server.servable import Servable
from hne_tf.server.service import start


class _Documented(tf.Module):
    """The models of TF Serving's page on REST, and one input of each other kind."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def half_plus_three(self, x):
        return {"y": x / 2 + 3}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="tag"),
            tf.TensorSpec([None, 5], tf.float32, name="signal"),
            tf.TensorSpec([None, 2, 2], tf.int32, name="sensor"),
        ]
    )
    def named(self, tag, signal, sensor):
        return {
            "tag": tag,
            "tag_bytes": tag,
            "signal": tf.reduce_sum(signal, 1),
            "sensor": sensor + 1,
        }

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float64, name="a"),
            tf.TensorSpec([None], tf.bool, name="b"),
        ]
    )
    def unequal(self, a, b):
        return {"a": a, "b": tf.logical_not(b)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def total(self, x):
        return {"x": x, "total": tf.reduce_sum(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float16, name="x")])
    def half(self, x):
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.uint64, name="x")])
    def whole(self, x):
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="x")])
    def echo(self, x):
        return {"y": x}


@pytest.fixture(scope="module")
def documented(tmp_path_factory, open_rest):
    """Asks the REST door of `_Documented`, version 123."""
    path = tmp_path_factory.mktemp("documented") / "123"
    model = _Documented()
    names = ("named", "unequal", "total", "half", "whole", "echo")
    signatures = {name: getattr(model, name) for name in names}
    tf.saved_model.save(
        model, str(path), signatures={"serving_default": model.half_plus_three, **signatures}
    )
    server = start(Servable("half_plus_three", path))
    yield open_rest(server)
    server.stop(grace_s=0)


@pytest.fixture
def predict(documented):
    """Posts a body to the model; returns the status and the JSON of the answer."""

    def ask(body, **headers):
        answer = documented("POST", "/v1/models/half_plus_three:predict", body, headers)
        return answer.status, answer.json

    return ask


def test_rows(predict):
    assert predict({"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [3.5, 4.0, 5.5]})
    assert predict({"instances": [{"x": 1}, {"x": 2}]}) == (200, {"predictions": [3.5, 4.0]})


def test_columns(predict):
    assert predict({"inputs": [1.0, 2.0, 5.0]}) == (200, {"outputs": [3.5, 4.0, 5.5]})
    assert predict({"inputs": {"x": [1.0]}}) == (200, {"outputs": [3.5]})
    # As TF Serving, which looks at the inputs of the signature alone.
    assert predict({"inputs": {"x": [1.0], "other": None}}) == (200, {"outputs": [3.5]})


_ROWS = [
    {"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
    {"tag": {"b64": "YmFy"}, "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]},
]


def test_several_named_inputs_and_outputs_in_rows(predict):
    status, answer = predict({"signature_name": "named", "instances": _ROWS})
    assert (status, answer) == (
        200,
        {
            "predictions": [
                {
                    "tag": "foo",
                    "tag_bytes": {"b64": "Zm9v"},
                    "signal": 15.0,
                    "sensor": [[2, 3], [4, 5]],
                },
                {
                    "tag": "bar",
                    "tag_bytes": {"b64": "YmFy"},
                    "signal": 15.0,
                    "sensor": [[5, 6], [7, 9]],
                },
            ]
        },
    )


def test_several_named_inputs_and_outputs_in_columns(predict):
    columns = {name: [row[name] for row in _ROWS] for name in _ROWS[0]}
    status, answer = predict({"signature_name": "named", "inputs": columns})
    assert status == 200
    assert answer["outputs"].keys() == {"tag", "tag_bytes", "signal", "sensor"}
    assert answer["outputs"]["sensor"] == [[[2, 3], [4, 5]], [[5, 6], [7, 9]]]


def test_columns_may_have_unequal_lengths(predict):
    body = {"signature_name": "unequal", "inputs": {"a": [1.5], "b": [True, False]}}
    assert predict(body) == (200, {"outputs": {"a": [1.5], "b": [False, True]}})
    body = {"signature_name": "unequal", "instances": [{"a": 1.5, "b": True}]}
    assert predict(body) == (200, {"predictions": [{"a": 1.5, "b": False}]})


def test_a_value_of_no_dimensions_is_in_every_row(predict):
    body = {"signature_name": "total", "instances": [1, 2]}
    rows = [{"x": 1.0, "total": 3.0}, {"x": 2.0, "total": 3.0}]
    assert predict(body) == (200, {"predictions": rows})
    body = {"signature_name": "total", "inputs": [1, 2]}
    assert predict(body) == (200, {"outputs": {"x": [1.0, 2.0], "total": 3.0}})


def test_outputs_of_unequal_lengths_are_not_rows():
    response = predict_pb2.PredictResponse()
    for name, array in (("a", [1.0]), ("b", [1.0, 2.0])):
        response.outputs[name].CopyFrom(tf.make_tensor_proto(array))
    with pytest.raises(requests.RequestError, match="equal first dimensions"):
        answers.predictions(response, by_row=True)


def test_infinities_and_what_is_not_a_number_come_and_go(predict):
    status, answer = predict(b'{"instances": [NaN, Infinity, -Infinity, 1e2, -0]}')
    assert status == 200
    np.testing.assert_equal(answer["predictions"], [np.nan, np.inf, -np.inf, 53.0, 3.0])


def test_large_whole_numbers_stay_exact(predict):
    body = {"signature_name": "whole", "instances": [2**64 - 1, 0]}
    assert predict(body) == (200, {"predictions": [2**64 - 1, 0]})


def test_types_that_json_does_not_have_are_left_to_grpc(predict):
    status, answer = predict({"signature_name": "half", "instances": [1.0]})
    assert (status, "float16 over REST" in answer["error"]) == (501, True)


@pytest.mark.parametrize("text", ["", "foo", "böse \U0001f642", "\x00"])
def test_strings(predict, text):
    body = {"signature_name": "echo", "instances": [text]}
    assert predict(body) == (200, {"predictions": [text]})
    # Padding may be left out.
    encoded = base64.b64encode(text.encode()).decode().rstrip("=")
    body = {"signature_name": "echo", "instances": [{"b64": encoded}]}
    assert predict(body) == (200, {"predictions": [text]})


def test_a_body_may_be_compressed_and_of_any_content_type(predict):
    body = gzip.compress(b'{"instances": [1.0]}')
    found = predict(body, **{"Content-Encoding": "gzip", "Content-Type": "text/plain"})
    assert found == (200, {"predictions": [3.5]})
    status, answer = predict(b'{"instances": [1.0]}', **{"Content-Encoding": "gzip"})
    assert status == 400
    assert "gzip" in answer["error"]
    status, answer = predict(body[:-3], **{"Content-Encoding": "gzip"})
    assert (status, "ends early" in answer["error"]) == (400, True)
    assert predict(body, **{"Content-Encoding": "br"})[0] == 415


def test_a_small_body_does_not_grow():
    body = gzip.compress(bytes(2**24))
    with pytest.raises(requests.RequestError, match="at most 1000 bytes"):
        requests.gunzip(body, 1000)


def test_status(documented):
    answer = documented("GET", "/v1/models/half_plus_three")
    expected = {
        "model_version_status": [
            {
                "version": "123",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    assert (answer.status, answer.json) == (200, expected)
    assert answer.headers["Content-Type"].startswith("application/json")
    assert documented("GET", "/v1/models/half_plus_three/versions/123").json == expected


def test_metadata(documented):
    answer = documented("GET", "/v1/models/half_plus_three/metadata")
    assert answer.status == 200
    assert answer.json["model_spec"] == {
        "name": "half_plus_three",
        "version": "123",
        "signature_name": "",
    }
    signature = answer.json["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
        "name": "serving_default_x:0",
    }


_MODEL = "/v1/models/half_plus_three"


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/v1/models/half:predict", 404, "'half'"),
        ("POST", f"{_MODEL}/versions/9:predict", 404, "got 9"),
        ("POST", f"{_MODEL}/versions/{10**18}:predict", 404, str(10**18)),
        ("POST", f"{_MODEL}/versions/{2**63}:predict", 400, "must be at most"),
        ("POST", f"{_MODEL}/versions/{'9' * 5000}:predict", 400, "must be at most"),
        ("POST", f"{_MODEL}/versions/x:predict", 400, "a request must be"),
        ("POST", f"{_MODEL}/labels/stable:predict", 400, "no version labels"),
        ("POST", f"{_MODEL}:classify", 501, ":classify"),
        ("POST", f"{_MODEL}:regress", 501, ":regress"),
        ("POST", f"{_MODEL}:explain", 400, "a request must be"),
        ("POST", _MODEL, 400, "a request must be"),
        ("GET", f"{_MODEL}:predict", 400, "a request must be"),
        ("PUT", f"{_MODEL}:predict", 400, "got PUT"),
        ("DELETE", _MODEL, 400, "got DELETE"),
        ("GET", "/v1/models", 400, "must name a model"),
        ("GET", "/v1/models/half", 404, "'half'"),
        ("GET", "/v1/models/half/metadata", 404, "'half'"),
        ("GET", "/v1/models/h%2Falf", 404, "'h/alf'"),
        ("GET", "/v1/models/%ff", 404, "got"),
        ("GET", f"{_MODEL}/versions/9", 404, "got 9"),
        ("GET", f"{_MODEL}/versions/9/metadata", 404, "got 9"),
        ("GET", f"{_MODEL}/labels/stable/metadata", 400, "no version labels"),
        ("GET", f"{_MODEL}/other", 400, "a request must be"),
        ("GET", "/v1/other", 400, "a request must be"),
        ("GET", "/", 404, "/v1/models/"),
        ("GET", "/v2/models/half_plus_three", 404, "/v1/models/"),
    ],
)
def test_paths_and_methods_get_tf_serving_s_status(documented, method, path, status, words):
    body = {"instances": [1.0]} if method == "POST" else None
    answer = documented(method, path, body)
    assert answer.status == status
    assert answer.json.keys() == {"error"}
    assert words in answer.json["error"]


def test_paths_are_in_any_case_and_queries_are_not_looked_at(documented):
    body = {"instances": [1.0]}
    answer = documented("POST", "/V1/Models/half_plus_three/Versions/123:Predict?key=1", body)
    assert (answer.status, answer.json) == (200, {"predictions": [3.5]})


def test_routes_name_the_model_as_it_was_before_it_was_encoded():
    spec = routes.route("GET", "/v1/models/a%20b/labels/c%2Fd").spec
    assert (spec.name, spec.version_label) == ("a b", "c/d")


_IMAGES = {
    "lists": lambda images: images.tolist(),
    "bytes": lambda images: [{"b64": base64.b64encode(row.tobytes()).decode()} for row in images],
}


@pytest.mark.parametrize("kind", _IMAGES)
@pytest.mark.parametrize("signature", ["", "ensemble_1", "ensemble_4"])
def test_answers_are_grpc_s(rest, server, images, kind, signature):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    request.model_spec.signature_name = signature
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        expected = stub.Predict(request, timeout=60).outputs
    given = _IMAGES[kind](images)
    name = {"signature_name": signature} if signature else {}
    bodies = [
        {**name, "instances": given},
        {**name, "instances": [{"images": row} for row in given]},
        {**name, "inputs": given},
        {**name, "inputs": {"images": given}},
    ]
    for body in bodies:
        answer = rest("POST", "/v1/models/digits/versions/7:predict", body)
        assert answer.status == 200, answer.json
        found = answer.json.get("outputs")
        if found is None:
            rows = answer.json["predictions"]
            found = {name: [row[name] for row in rows] for name in expected}
        for output, proto in expected.items():
            # To the last bit: a double holds every float.
            np.testing.assert_array_equal(
                np.array(found[output], np.float32), tf.make_ndarray(proto)
            )


def test_metadata_is_grpc_s(rest, server):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "digits"
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        packed = stub.GetModelMetadata(request, timeout=60).metadata["signature_def"]
    expected = get_model_metadata_pb2.SignatureDefMap()
    packed.Unpack(expected)
    answer = rest("GET", "/v1/models/digits/metadata").json
    parsed = json_format.ParseDict(
        answer["metadata"]["signature_def"], get_model_metadata_pb2.SignatureDefMap()
    )
    assert parsed == expected


def test_every_taken_type_has_a_row_of_bytes():
    for dtype in (np.uint8, np.int16, np.float32, np.float64, np.bool_):
        array = np.array([[1, 0], [0, 1]], dtype)
        proto = tf.make_tensor_proto(array)
        info = meta_graph_pb2.TensorInfo(dtype=proto.dtype)
        for size in (-1, 2):
            info.tensor_shape.dim.add(size=size)
        rows = [{"b64": base64.b64encode(row.tobytes()).decode()} for row in array]
        np.testing.assert_array_equal(tf.make_ndarray(tensors.tensor("x", info, rows)), array)
