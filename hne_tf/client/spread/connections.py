"""The connections to the servers of one model, and their answers as Python values."""

from collections.abc import Sequence

import grpc
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from hne_tf.client import messages
from hne_tf.client.messages import CallError, ModelInfo, Outputs
from hne_tf.client.metadata import CallMetadata, MetadataSource
from hne_tf.client.spread.gathering import PartCall
from hne_tf.client.spread.hosts import TELL_TIMEOUT_S
from hne_tf.client.spread.plan import Plan
from hne_tf.client.spread.spreading import part_fault
from hne_tf.client.transport import CHANNEL_OPTIONS
from hne_tf.exported.interface import sum_output


class SpreadConnections:
    """A connection to each server.

    Args:
      targets: `host:port` of each server.
      model: the model's name there.
      credentials: see `budget_client.ServingClient`.
      metadata: likewise.
      plaintext_secrets: likewise.

    Raises:
      InputError: for metadata that cannot be sent.
    """

    def __init__(
        self,
        targets: Sequence[str],
        model: str,
        credentials: grpc.ChannelCredentials | None,
        metadata: CallMetadata,
        plaintext_secrets: bool,
    ) -> None:
        self._model = model
        encrypted = credentials is not None
        self._metadata = {
            each: MetadataSource(metadata, each, encrypted, plaintext_secrets) for each in targets
        }
        options = list(CHANNEL_OPTIONS)
        self._channels = {
            each: grpc.secure_channel(each, credentials, options)
            if encrypted
            else grpc.insecure_channel(each, options)
            for each in targets
        }
        self._stubs = {
            each: prediction_service_pb2_grpc.PredictionServiceStub(channel)
            for each, channel in self._channels.items()
        }

    def close(self) -> None:
        """Closes the connections."""
        for channel in self._channels.values():
            channel.close()

    def ask(self, address: str) -> grpc.Future:
        """Asks a server for its signatures; `told` reads them.

        Raises:
          InputError: for metadata that cannot be sent, or after `close`.
        """
        call, request = self._stubs[address].GetModelMetadata, messages.info_request(self._model)
        return self._begin(call, address, request, TELL_TIMEOUT_S)

    def told(self, address: str, future: grpc.Future) -> ModelInfo:
        """What a server has told.

        Raises:
          CallError: if it has not.
        """
        try:
            return messages.read_info(future.result())
        except grpc.FutureCancelledError as error:
            raise messages.closed_error(address) from error
        except grpc.RpcError as error:
            raise messages.call_error(error, address, self._model, TELL_TIMEOUT_S) from error

    def send(
        self, plan: Plan, call: PartCall, request: predict_pb2.PredictRequest, timeout_s: float
    ) -> grpc.Future:
        """Asks a server for a part; `part` reads it.

        Args:
          plan: that the call is of.
          call: the part and the server.
          request: with the inputs.
          timeout_s: seconds to wait for the answer.

        Raises:
          InputError: for metadata that cannot be sent, or after `close`.
        """
        own = predict_pb2.PredictRequest()
        own.CopyFrom(request)
        own.model_spec.signature_name = call.part.signature
        own.model_spec.version.value = plan.version
        return self._begin(self._stubs[call.address].Predict, call.address, own, timeout_s)

    def part(
        self, plan: Plan, call: PartCall, future: grpc.Future, rows: int, timeout_s: float
    ) -> Outputs:
        """The outputs that a part has come with.

        Args:
          plan: that the call is of.
          call: the part and the server.
          future: of the call, at its end.
          rows: images of the request.
          timeout_s: seconds of the request, for messages.

        Raises:
          CallError: if the call has failed, or is answered by another version or in
            another form.
        """
        name = sum_output(plan.average)
        try:
            outputs = messages.read_outputs(future.result(), (name,))
        except grpc.FutureCancelledError as error:
            raise messages.closed_error(call.address) from error
        except grpc.RpcError as error:
            raise messages.call_error(error, call.address, self._model, timeout_s) from error
        fault = part_fault(plan, call, rows, outputs.version, outputs.arrays)
        if fault is not None:
            raise CallError(*fault)
        return outputs

    def _begin(
        self,
        method: grpc.UnaryUnaryMultiCallable,
        address: str,
        request: object,
        timeout_s: float,
    ) -> grpc.Future:
        pairs = self._metadata[address].pairs()
        try:
            return method.future(request, timeout=max(0.0, timeout_s), metadata=pairs)
        except ValueError as error:
            # All else has been checked: the connection is closed.
            raise messages.closed_error(address) from error
