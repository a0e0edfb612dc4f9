"""A client for TF Serving's gRPC API."""

import dataclasses
from types import TracebackType

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from hne_tf.errors import InputError
from serving.transport import MESSAGE_OPTIONS

_PREDICT_METHOD = "tensorflow/serving/predict"


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output of a signature.

    Attributes:
      dtype: name of the element type, e.g. `"uint8"`.
      shape: size per dimension, None where it is free; None if the rank is.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one signature, by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


class ServingClient:
    """Asks one model of one server, TF Serving or what speaks its API.

    Usable as a context manager, which closes the connection.

    Args:
      target: `host:port` of the server.
      model_name: the model's name there.
    """

    def __init__(self, target: str, model_name: str) -> None:
        self._target = target
        self._model_name = model_name
        # A proxy from the environment would be asked even for this machine.
        options = [*MESSAGE_OPTIONS, ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.insecure_channel(target, options=options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def __enter__(self) -> "ServingClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def metadata(self, timeout_s: float = 10.0) -> dict[str, Signature]:
        """Returns the model's signatures by name.

        Raises:
          InputError: if the server does not answer in time or refuses.
        """
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self._model_name
        response = self._call(self._stub.GetModelMetadata, request, timeout_s)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        # The map also holds TensorFlow's own initialisation function.
        return {
            name: Signature(
                inputs={key: _spec(info) for key, info in signature.inputs.items()},
                outputs={key: _spec(info) for key, info in signature.outputs.items()},
            )
            for name, signature in signatures.signature_def.items()
            if signature.method_name == _PREDICT_METHOD
        }

    def predict(
        self, images: np.ndarray, signature: str, timeout_s: float = 10.0
    ) -> dict[str, np.ndarray]:
        """Returns the outputs of `signature` for a batch of images.

        Args:
          images: uint8 `[batch, height, width, channels]`.
          signature: name of the signature, e.g. `"ensemble_4"`.
          timeout_s: seconds to wait for the answer.

        Returns:
          Arrays by output name: `logits` and `probabilities`, float32
          `[batch, classes]`.

        Raises:
          InputError: if the server does not answer in time or refuses.
        """
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._model_name
        request.model_spec.signature_name = signature
        request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
        response = self._call(self._stub.Predict, request, timeout_s)
        return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable,
        request: predict_pb2.PredictRequest | get_model_metadata_pb2.GetModelMetadataRequest,
        timeout_s: float,
    ) -> predict_pb2.PredictResponse | get_model_metadata_pb2.GetModelMetadataResponse:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise InputError(self._explain(error, timeout_s)) from error

    def _explain(self, error: grpc.RpcError, timeout_s: float) -> str:
        details = " ".join((error.details() or "").split())
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            return f"no server can be reached at {self._target}: {details}"
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"the server at {self._target} gave no answer within {timeout_s:g} s"
        return (
            f"the server at {self._target} refused the request for model "
            f"{self._model_name!r}: {error.code().name}: {details}"
        )


def _spec(info: meta_graph_pb2.TensorInfo) -> TensorSpec:
    sizes = tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(
        dtype=tf.dtypes.as_dtype(info.dtype).name,
        shape=None if info.tensor_shape.unknown_rank else sizes,
    )
