"""The clients of `client` for asyncio; they belong to the event loop they are made in."""

import asyncio
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
from hne_tf.client.closing import AsyncClosing
from hne_tf.client.latency.latencies import Latencies
from hne_tf.client.messages import ModelInfo, Outputs
from hne_tf.client.metadata import CallMetadata, MetadataSource
from hne_tf.client.metrics import ClientMetrics
from hne_tf.client.policy import BudgetPolicy, Call, Learn, Wait
from hne_tf.client.transport import CHANNEL_OPTIONS
from hne_tf.exported import output_filters
from hne_tf.exported.manifest import Manifest


class AsyncServingClient(AsyncClosing):
    """Asks one model of one server; see `client.ServingClient`."""

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
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
        )
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    async def info(self, timeout_s: float = 10.0) -> ModelInfo:
        """Returns the model's version and signatures; see `client.ServingClient.info`."""
        request = messages.info_request(self._model_name)
        return messages.read_info(await self._call(self._stub.GetModelMetadata, request, timeout_s))

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] = (),
        timeout_s: float = 10.0,
        version: int | None = None,
    ) -> Outputs:
        """Runs any signature; see `client.ServingClient.run`."""
        request = messages.predict_request(self._model_name, signature, inputs, outputs, version)
        return messages.read_outputs(
            await self._call(self._stub.Predict, request, timeout_s), outputs
        )

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable,
        request: predict_pb2.PredictRequest | get_model_metadata_pb2.GetModelMetadataRequest,
        timeout_s: float,
    ) -> predict_pb2.PredictResponse | get_model_metadata_pb2.GetModelMetadataResponse:
        pairs = self._metadata.pairs()
        try:
            return await method(request, timeout=timeout_s, metadata=pairs)
        except grpc.RpcError as error:
            raise messages.call_error(error, self._target, self._model_name, timeout_s) from error
        except grpc.aio.UsageError as error:
            # All else has been checked: the connection is closed.
            raise messages.closed_error(self._target) from error
        except asyncio.CancelledError as error:
            if asyncio.current_task().cancelling():
                raise
            # Nobody has cancelled the task: the connection was closed meanwhile.
            raise messages.closed_error(self._target) from error


class AsyncBudgetClient(AsyncClosing):
    """Answers every request with the largest ensemble that its budget allows now.

    Arguments, attributes and behaviour are those of `client.BudgetClient`; any
    number of requests may be on their way at once.
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
        self._client = AsyncServingClient(
            target,
            model,
            credentials=credentials,
            metadata=metadata,
            plaintext_secrets=plaintext_secrets,
        )

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.close()

    async def learn(self, timeout_s: float = 10.0) -> ModelInfo:
        """Connects and learns the signatures; see `client.BudgetClient.learn`."""
        info = await self._client.info(timeout_s)
        self._policy.learned(info)
        return info

    def estimates_ms(self, batch_size: int = 1) -> dict[int, float]:
        """Latency expected now of each ensemble size; infinite where nothing is known."""
        return self._latencies.estimates_ms(batch_size)

    async def predict(self, images: np.ndarray, budget_ms: float) -> Answer:
        """Returns the answer for a batch of images; see `client.BudgetClient.predict`."""
        steps = self._policy.answer(images, budget_ms)
        try:
            action = next(steps)
            while True:
                try:
                    result = await self._perform(action, images)
                except messages.CallError as error:
                    action = steps.throw(error)
                else:
                    action = steps.send(result)
        except StopIteration as finished:
            return finished.value
        finally:
            # A cancelled task must not leave the request counted as on its way.
            steps.close()

    async def _perform(
        self, action: Learn | Call | Wait, images: np.ndarray
    ) -> ModelInfo | Outputs | None:
        if isinstance(action, Call):
            return await self._client.run(
                f"ensemble_{action.size}",
                {"images": images},
                output_filters.ENSEMBLE,
                action.timeout_s,
            )
        if isinstance(action, Learn):
            return await self._client.info(action.timeout_s)
        await asyncio.sleep(action.seconds)
        return None
