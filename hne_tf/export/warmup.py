"""Warm-up requests that TF Serving replays before it takes a model into service."""

import pathlib
from collections.abc import Sequence

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from hne_tf.errors import InputError
from hne_tf.export.signatures import Signatures
from hne_tf.exported.versions import MOST_WARM_UP_REQUESTS, WARM_UP_REQUESTS


def write_requests(
    folder: pathlib.Path, model_name: str, signatures: Signatures, batch_sizes: Sequence[int]
) -> int:
    """Writes one request of zeros per signature and batch size into a SavedModel.

    Args:
      folder: the SavedModel.
      model_name: name it is served under.
      signatures: its signatures, with the shapes of their inputs.
      batch_sizes: first dimension of every input.

    Returns:
      The number of requests.

    Raises:
      InputError: if there were more requests than TF Serving takes; nothing is
        written then.
    """
    check_count(len(signatures), batch_sizes)
    requests = [
        _request(model_name, name, signature.input_signature, batch_size)
        for batch_size in batch_sizes
        for name, signature in signatures.items()
    ]
    path = folder / WARM_UP_REQUESTS
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
    return len(requests)


def check_count(signatures: int, batch_sizes: Sequence[int]) -> None:
    """Raises `InputError` if there were more requests than TF Serving takes."""
    count = signatures * len(batch_sizes)
    if count > MOST_WARM_UP_REQUESTS:
        raise InputError(
            f"TF Serving takes at most {MOST_WARM_UP_REQUESTS} warm-up requests, one per signature "
            f"and batch size, got {count}: {signatures} signatures x {len(batch_sizes)} batch sizes"
        )


def _request(
    model_name: str, signature_name: str, inputs: Sequence[tf.TensorSpec], batch_size: int
) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model_name
    request.model_spec.signature_name = signature_name
    for spec in inputs:
        zeros = tf.zeros([batch_size, *spec.shape[1:]], spec.dtype)
        request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(zeros))
    return request
