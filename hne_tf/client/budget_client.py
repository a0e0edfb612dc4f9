"""Clients for TF Serving's gRPC API, blocking; `async_client` has the same for asyncio."""

import time
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
from prometheus_client import CollectorRegistry
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from hne_tf.client import messages
from hne_tf.client.answers import Answer
from hne_tf.client.closing import Closing
from hne_tf.client.latency.latencies import Latencies
from hne_tf.client.messages import ModelInfo, Outputs
from hne_tf.client.metadata import CallMetadata, MetadataSource
from hne_tf.client.metrics import ClientMetrics
from hne_tf.client.policy import BudgetPolicy, Call, Learn, Wait
from hne_tf.client.transport import CHANNEL_OPTIONS
from hne_tf.exported import output_filters
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.session import WARM_UP_CALLS


class ServingClient(Closing):
    """Asks one model of one server, TF Serving or what speaks its API.

    Usable as a context manager, which closes the connection. Thread-safe.

    Args:
      target: `host:port` of the server.
      model_name: the model's name there.
      credentials: for TLS, see `grpc.ssl_channel_credentials`; plain text without.
      metadata: pairs of lower-case key and value that go with every call, such as
        `("authorization", "Bearer …")`, or a callable that gives fresh ones.
      plaintext_secrets: whether secrets among them may go to other machines in
        plaintext, for example where a service mesh encrypts.

    Raises:
      InputError: for metadata that cannot be sent, see `metadata.MetadataSource`.
    """

    def __init__(
        self,
        target: str,
        model_name: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: CallMetadata = (),
        plaintext_secrets: bool = False,
    ) -> None:
        self._target = target
        self._model_name = model_name
        self._metadata = MetadataSource(
            metadata, target, credentials is not None, plaintext_secrets
        )
        options = list(CHANNEL_OPTIONS)
        self._channel = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def info(self, timeout_s: float = 10.0) -> ModelInfo:
        """Returns the model's version and signatures.

        Raises:
          CallError: if the server does not answer in time or refuses.
        """
        request = messages.info_request(self._model_name)
        return messages.read_info(self._call(self._stub.GetModelMetadata, request, timeout_s))

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
          InputError: for an input that is no tensor or has no rows.
          CallError: if the server does not answer in time or refuses.
        """
        return self.run(signature, {"images": images}, timeout_s=timeout_s).arrays

    def run(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] = (),
        timeout_s: float = 10.0,
        version: int | None = None,
    ) -> Outputs:
        """Runs any signature.

        Args:
          signature: its name.
          inputs: arrays by input name.
          outputs: names of the outputs to send back; all if empty.
          timeout_s: seconds to wait for the answer.
          version: of the model; the newest by default.

        Raises:
          InputError: for an input that is no tensor or has no rows.
          CallError: if the server does not answer in time or refuses.
        """
        request = messages.predict_request(self._model_name, signature, inputs, outputs, version)
        return messages.read_outputs(self._call(self._stub.Predict, request, timeout_s), outputs)

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable,
        request: predict_pb2.PredictRequest | get_model_metadata_pb2.GetModelMetadataRequest,
        timeout_s: float,
    ) -> predict_pb2.PredictResponse | get_model_metadata_pb2.GetModelMetadataResponse:
        pairs = self._metadata.pairs()
        try:
            return method(request, timeout=timeout_s, metadata=pairs)
        except grpc.RpcError as error:
            raise messages.call_error(error, self._target, self._model_name, timeout_s) from error
        except ValueError as error:
            # All else has been checked: the connection is closed.
            raise messages.closed_error(self._target) from error


class BudgetClient(Closing):
    """Answers every request with the largest ensemble that its budget allows now.

    It learns the ensemble sizes from the server, keeps live estimates of what they
    take (see `latency`), and when a call fails it goes on with a smaller ensemble
    while there is time. A request ends with an answer or an exception that says
    why there is none. Thread-safe; a context manager that closes the connection.

    Args:
      target: `host:port` of the server.
      model: the model's name there.
      manifest: of the model; its latencies are what the client starts from.
        Without it the smallest ensemble is asked first.
      credentials: for TLS, see `grpc.ssl_channel_credentials`; plain text without.
      metadata: pairs of lower-case key and value that go with every call, such as
        `("authorization", "Bearer …")`, or a callable that gives fresh ones.
      plaintext_secrets: see `ServingClient`.
      registry: where the metrics go, by default one of the client's own. To share
        one among clients, give them one `ClientMetrics` of it instead.
      grace_ms: by how much an answer may be late. By default a call is given up
        when the budget is spent.

    Attributes:
      registry: of the metrics, see `ClientMetrics`.

    Raises:
      InputError: for metadata that cannot be sent, see `metadata.MetadataSource`, or a
        manifest without latencies.

    Example:
      >>> with BudgetClient("127.0.0.1:8500", "digits") as client:
      ...     answer = client.predict(images, budget_ms=20)
      >>> answer.size, answer.probabilities.argmax(axis=1)
      (16, array([3]))
    """

    def __init__(
        self,
        target: str,
        model: str,
        *,
        manifest: Manifest | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: CallMetadata = (),
        plaintext_secrets: bool = False,
        registry: CollectorRegistry | ClientMetrics | None = None,
        grace_ms: float = 0.0,
    ) -> None:
        self._latencies = Latencies(manifest.latency_ms if manifest else None)
        metrics = ClientMetrics.of(registry)
        self.registry = metrics.registry
        self._policy = BudgetPolicy(model, self._latencies, metrics, grace_ms)
        self._client = ServingClient(
            target,
            model,
            credentials=credentials,
            metadata=metadata,
            plaintext_secrets=plaintext_secrets,
        )

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def learn(self, timeout_s: float = 10.0) -> ModelInfo:
        """Connects and learns the signatures, which otherwise the first request does.

        Raises:
          CallError: if the server does not answer in time or refuses.
          InputError: if the model has no ensembles.
        """
        info = self._client.info(timeout_s)
        self._policy.learned(info)
        return info

    def estimates_ms(self, batch_size: int = 1) -> dict[int, float]:
        """Latency expected now of each ensemble size; infinite where nothing is known.

        Raises:
          InputError: for a batch size below 1.
        """
        return self._latencies.estimates_ms(batch_size)

    def measure(self, images: np.ndarray, rounds: int = 10, timeout_s: float = 10.0) -> None:
        """Asks every ensemble size, so that the next budgets are held against measurements.

        Sizes take turns, so that a busy moment of the machine is shared by all
        rather than charged to one.

        Args:
          images: uint8 `[batch, height, width, channels]`, of the batch size to measure.
          rounds: measured calls of each size, after three that are not.
          timeout_s: seconds to wait for each answer.

        Raises:
          InputError: for images that are no array or none at all, or a model that
            has no ensembles.
          CallError: if the server does not answer in time or refuses.
        """
        images = messages.as_array("images", images)
        if not self._latencies.sizes:
            self.learn(timeout_s)
        for turn in range(-WARM_UP_CALLS, rounds):
            for size in self._latencies.sizes:
                ticket = self._latencies.sent(size, len(images)) if turn >= 0 else None
                try:
                    self._perform(Call(size, timeout_s), images)
                    if ticket:
                        self._latencies.answered(ticket)
                finally:
                    # Ends what a failure or an interrupt has left in flight.
                    if ticket:
                        self._latencies.failed(ticket)

    def predict(self, images: np.ndarray, budget_ms: float) -> Answer:
        """Returns the answer for a batch of images.

        Args:
          images: uint8 `[batch, height, width, channels]`.
          budget_ms: milliseconds from this call to its answer.

        Raises:
          InputError: for a budget that is not above 0, images that the model does
            not take, or a model that has no ensembles.
          BudgetError: if there is no answer; it says why and what was tried.
        """
        steps = self._policy.answer(images, budget_ms)
        try:
            action = next(steps)
            while True:
                try:
                    result = self._perform(action, images)
                except messages.CallError as error:
                    action = steps.throw(error)
                else:
                    action = steps.send(result)
        except StopIteration as finished:
            return finished.value
        finally:
            # An interrupt must not leave the request counted as on its way.
            steps.close()

    def _perform(
        self, action: Learn | Call | Wait, images: np.ndarray
    ) -> ModelInfo | Outputs | None:
        if isinstance(action, Call):
            return self._client.run(
                f"ensemble_{action.size}",
                {"images": images},
                output_filters.ENSEMBLE,
                action.timeout_s,
            )
        if isinstance(action, Learn):
            return self._client.info(action.timeout_s)
        time.sleep(action.seconds)
        return None
