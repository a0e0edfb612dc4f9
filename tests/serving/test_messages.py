"""Requests and answers as Python values."""

import numpy as np
import pytest
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from hne_tf.client import messages
from hne_tf.client.messages import CallError, Signature, TensorSpec
from hne_tf.errors import InputError

_SPEC = Signature(
    {"images": TensorSpec("uint8", (None, 8, 8, 1))},
    {"probabilities": TensorSpec("float32", (None, 10))},
)


def test_a_request_names_a_version_if_it_is_given():
    images = {"images": np.zeros([1, 2], np.uint8)}
    request = messages.predict_request("digits", "step_2", images, (), 7)
    assert request.model_spec.version.value == 7
    request = messages.predict_request("digits", "step_2", images, (), None)
    assert not request.model_spec.HasField("version")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.zeros([0, 8, 8, 1], np.uint8), "at least one row, got an array of shape"),
        ([], "at least one row"),
        ([[1], [2, 3]], "images must be an array, got list"),
        (object(), "images must be a tensor"),
    ],
)
def test_what_is_no_tensor_of_rows_is_refused(value, reason):
    with pytest.raises(InputError, match=reason):
        messages.predict_request("digits", "ensemble_1", {"images": value}, (), None)


def test_only_sizes_that_are_positive_numbers_count():
    names = [
        *("ensemble_0", "ensemble_00", "ensemble_02", "ensemble_-1", "ensemble_\u0664"),
        *("ensemble_" + "9" * 5000, "ensemble_x", "my_ensemble_3", "ensemble_4", "ensemble_1"),
    ]
    sizes, shape = messages.ensembles(dict.fromkeys(names, _SPEC), "digits")
    assert (sizes, shape) == ((1, 4), (8, 8, 1))


def test_an_output_that_is_no_plain_tensor_does_not_hide_the_others():
    signatures = get_model_metadata_pb2.SignatureDefMap()
    signature = signatures.signature_def["ensemble_1"]
    signature.method_name = "tensorflow/serving/predict"
    signature.outputs["composite"].SetInParent()
    signature.outputs["odd"].dtype = 99
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.metadata["signature_def"].Pack(signatures)
    outputs = messages.read_info(response).signatures["ensemble_1"].outputs
    assert {name: spec.dtype for name, spec in outputs.items()} == {
        "composite": "dtype number 0",
        "odd": "dtype number 99",
    }


def test_signatures_that_cannot_be_read_are_a_failure():
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    any_ = response.metadata["signature_def"]
    any_.Pack(get_model_metadata_pb2.SignatureDefMap())
    any_.value = b"\xff\xff\xff"
    with pytest.raises(CallError, match="an answer must hold signatures"):
        messages.read_info(response)


def test_tensors_that_cannot_be_read_are_a_failure():
    response = predict_pb2.PredictResponse()
    response.outputs["logits"].dtype = 1
    response.outputs["logits"].tensor_shape.dim.add(size=3)
    response.outputs["logits"].tensor_content = b"123"
    with pytest.raises(CallError, match="an answer must hold tensors"):
        messages.read_outputs(response, ())


def test_a_listed_value_does_not_stand_for_a_tensor_of_any_size():
    response = predict_pb2.PredictResponse()
    logits = response.outputs["logits"]
    logits.dtype = 1
    for size in (2**20, 2**20):
        logits.tensor_shape.dim.add(size=size)
    logits.float_val.append(0.0)
    with pytest.raises(CallError, match=r"all values of tensors, got \d\d bytes for the 1099511"):
        messages.read_outputs(response, ())
