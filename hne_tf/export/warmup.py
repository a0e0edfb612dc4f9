"""Warm-up requests that TF Serving replays before it takes a model into service."""

import pathlib
from collections.abc import Iterable, Sequence

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from hne_tf.errors import InputError
from hne_tf.export.signatures import Signatures
from hne_tf.exported import output_filters
from hne_tf.exported.output_filters import OutputFilter
from hne_tf.exported.versions import MOST_WARM_UP_REQUESTS, WARM_UP_REQUESTS


def write_requests(
    folder: pathlib.Path, model_name: str, signatures: Signatures, batch_sizes: Sequence[int]
) -> int:
    """Writes requests of zeros into a SavedModel, as clients will ask.

    One per batch size, signature and set of outputs that clients ask it for, see
    `output_filters`.

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
    check_count(signatures, batch_sizes)
    requests = [
        _request(model_name, name, signature.input_signature, outputs, batch_size)
        for batch_size in batch_sizes
        for name, signature in signatures.items()
        for outputs in output_filters.asked(name)
    ]
    path = folder / WARM_UP_REQUESTS
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
    return len(requests)


def check_count(signatures: Iterable[str], batch_sizes: Sequence[int]) -> None:
    """Raises `InputError` if there were more requests than TF Serving takes."""
    asked = sum(len(output_filters.asked(name)) for name in signatures)
    count = asked * len(batch_sizes)
    if count > MOST_WARM_UP_REQUESTS:
        raise InputError(
            f"TF Serving takes at most {MOST_WARM_UP_REQUESTS} warm-up requests, one per batch "
            "size and set of outputs that clients ask a signature for, "
            f"got {count}: {asked} sets x {len(batch_sizes)} batch sizes"
        )


def _request(
    model_name: str,
    signature_name: str,
    inputs: Sequence[tf.TensorSpec],
    outputs: OutputFilter,
    batch_size: int,
) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = model_name
    request.model_spec.signature_name = signature_name
    for spec in inputs:
        zeros = tf.zeros([batch_size, *spec.shape[1:]], spec.dtype)
        request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(zeros))
    return request
