"""A server of some leaves in this process, with faults."""

import concurrent.futures

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from hne_tf.client.spread import sums

HALVES = ((0, 8), (8, 16))
IMAGES = np.zeros([1, 8, 8, 1], np.uint8)


class Host(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Computes sums of leaf numbers; leaf n adds n + 1 and 1000 times the version.

    Attributes:
      parts: leaves of its signatures.
      version: of the model.
      tells: the version that it tells, by default the same.
      fault: called with the name of each signature before it answers; may return a status
        code to fail with, or wait.
      calls: names of the signatures that were asked for.
    """

    def __init__(self, parts, version=1):
        self.parts = parts
        self.version = version
        self.tells = None
        self.fault = lambda name: None
        self.calls = []
        self.told = 0

    def Predict(self, request, context):  # noqa: N802
        name = request.model_spec.signature_name
        self.calls.append(name)
        code = self.fault(name)
        if code is not None:
            context.abort(code, "a fault of the test")
        first, stop = map(int, name.split("_")[1:])
        total = float(sum(range(first + 1, stop + 1)) + 1000 * self.version)
        response = predict_pb2.PredictResponse()
        response.model_spec.version.value = self.version
        value = np.array([[total, 0.0]], np.float32)
        response.outputs["running_sum_logits"].CopyFrom(tf.make_tensor_proto(value))
        return response

    def GetModelMetadata(self, request, context):  # noqa: N802
        self.told += 1
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for first, stop in self.parts:
            signature = signatures.signature_def[f"leaves_{first}_{stop}"]
            signature.method_name = "tensorflow/serving/predict"
            signature.inputs["images"].dtype = types_pb2.DT_UINT8
            for length in (-1, 8, 8, 1):
                signature.inputs["images"].tensor_shape.dim.add(size=length)
            signature.outputs["running_sum_logits"].dtype = types_pb2.DT_FLOAT
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.version.value = self.tells or self.version
        response.metadata["signature_def"].Pack(signatures)
        return response


def serve(host):
    """Starts a server of a host; returns it and its address."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(host, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    return server, address


def expected(version, *leaves):
    """The probabilities of parts of the leaves."""
    total = sum(sum(range(first + 1, stop + 1)) + 1000 * version for first, stop in leaves)
    size = sum(stop - first for first, stop in leaves)
    return sums.probabilities([np.array([[total, 0.0]])], size, "logits")
