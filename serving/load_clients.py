"""The two clients of a load test: one that always asks for all leaves, one that adapts."""

import contextlib
import time
from collections.abc import AsyncIterator

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from hne_tf.client.async_client import AsyncBudgetClient
from hne_tf.client.messages import call_error
from hne_tf.client.transport import CHANNEL_OPTIONS
from hne_tf.errors import InputError
from hne_tf.exported import output_filters
from hne_tf.exported.manifest import read_manifest
from serving.load_generator import Ask

_CONNECT_S = 10.0


class Target:
    """A model on a server, and the images that it is asked about.

    Args:
      address: `host:port` of the server.
      model: name of the model there.
      manifest: its `hne_manifest.json`.
      batch_size: images per request.
      seed: of the images, which are noise.

    Attributes:
      accuracy: on held-out data, by ensemble size.
      least: the smallest size.
      full: the largest size.

    Raises:
      InputError: if the manifest cannot be read or holds no accuracy.
    """

    def __init__(self, address: str, model: str, manifest: str, batch_size: int, seed: int) -> None:
        self._address, self._model = address, model
        self._manifest = read_manifest(manifest)
        self.accuracy = self._manifest.accuracy_by_size
        self.least, self.full = min(self.accuracy), max(self.accuracy)
        shape = (batch_size, *self._manifest.image_shape)
        self._images = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)

    @contextlib.asynccontextmanager
    async def open(self, client: str) -> AsyncIterator[Ask]:
        """Connects as the `"fixed"` or the `"adaptive"` client, within a running event loop."""
        async with self.fixed(self.full) if client == "fixed" else self._adaptive() as ask:
            yield ask

    @contextlib.asynccontextmanager
    async def fixed(self, size: int) -> AsyncIterator[Ask]:
        """Always asks for one size, with the time left as the deadline."""
        request = predict_pb2.PredictRequest(output_filter=output_filters.ENSEMBLE)
        request.model_spec.name = self._model
        request.model_spec.signature_name = f"ensemble_{size}"
        request.inputs["images"].CopyFrom(tf.make_tensor_proto(self._images))
        options = list(CHANNEL_OPTIONS)
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

            async def ask(left_ms: float) -> int:
                response = await stub.Predict(request, timeout=left_ms / 1000)
                tf.make_ndarray(response.outputs["probabilities"])
                return size

            # Connecting is not part of any request's time.
            await _first_answer(ask, self._address, self._model)
            yield ask

    @contextlib.asynccontextmanager
    async def _adaptive(self) -> AsyncIterator[Ask]:
        async with AsyncBudgetClient(self._address, self._model, manifest=self._manifest) as client:
            await client.learn(_CONNECT_S)

            async def ask(left_ms: float) -> int:
                return (await client.predict(self._images, left_ms)).size

            yield ask


async def _first_answer(ask: Ask, address: str, model: str) -> None:
    """Connects by asking once; raises `InputError` if no answer comes."""
    try:
        await ask(1000 * _CONNECT_S)
    except grpc.RpcError as error:
        reason = call_error(error, address, model, _CONNECT_S)
        raise InputError(f"--target must answer for the model: {reason}") from error


async def at_rest(target: Target, quick_ms: float, patience_s: float = 30.0) -> bool:
    """Waits until the server has worked off what an earlier run left in its queues.

    Args:
      target: the server and model.
      quick_ms: what a few requests of the full ensemble in a row have to stay below.
      patience_s: seconds until it must be so.

    Returns:
      Whether it was so in time.
    """
    deadline = time.perf_counter() + patience_s
    quick = 0
    async with target.fixed(target.full) as ask:
        while quick < 5 and time.perf_counter() < deadline:
            began = time.perf_counter()
            with contextlib.suppress(grpc.RpcError):
                await ask(1000 * _CONNECT_S)
            quick = quick + 1 if time.perf_counter() - began < quick_ms / 1000 else 0
    return quick == 5
