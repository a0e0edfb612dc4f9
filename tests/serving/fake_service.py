"""A server that answers at once with what a test expects."""

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.serving.toy_models import SIZES


class FakeService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers at once, unless a fault says otherwise.

    Attributes:
      calls: signature names of the Predict calls so far.
      pairs: metadata of the last.
      version: of the model.
      sizes: ensembles that GetModelMetadata tells of.
      outputs: names of what Predict gives.
      fault: called with the signature's name and the number of the call, from 1;
        may return a status code to fail with, or code and details, or sleep.
      strict: whether requests for another version are refused.
    """

    def __init__(self):
        self.calls = []
        self.pairs = {}
        self.version = 1
        self.sizes = SIZES
        self.outputs = ("probabilities", "running_sum", "cache_0", "cache_1")
        self.learned = 0
        self.strict = True
        self.fault = lambda name, call: None

    def Predict(self, request, context):  # noqa: N802
        name = request.model_spec.signature_name
        self.calls.append(name)
        self.pairs = dict(context.invocation_metadata())
        code = self.fault(name, len(self.calls))
        if code is not None:
            context.abort(*(code if isinstance(code, tuple) else (code, "a fault of the test")))
        wanted = request.model_spec.version.value
        if self.strict and wanted not in (0, self.version):
            context.abort(grpc.StatusCode.NOT_FOUND, f"version {wanted} is not served")
        response = predict_pb2.PredictResponse()
        response.model_spec.version.value = self.version
        for output in self.outputs:
            value = np.full([1, 10], int(name.split("_")[1]) + 100 * (self.version - 1), np.float32)
            response.outputs[output].CopyFrom(tf.make_tensor_proto(value))
        return response

    def GetModelMetadata(self, request, context):  # noqa: N802
        self.learned += 1
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for size in self.sizes:
            signature = signatures.signature_def[f"ensemble_{size}"]
            signature.method_name = "tensorflow/serving/predict"
            signature.inputs["images"].dtype = types_pb2.DT_UINT8
            for length in (-1, 8, 8, 1):
                signature.inputs["images"].tensor_shape.dim.add(size=length)
            signature.outputs["probabilities"].dtype = types_pb2.DT_FLOAT
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.version.value = self.version
        response.metadata["signature_def"].Pack(signatures)
        return response
