"""A client that spreads one request over several servers, each for some of the leaves."""

import dataclasses
import functools
import math
import queue
import time
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
from prometheus_client import CollectorRegistry
from tensorflow_serving.apis import predict_pb2

from hne_tf.client import messages
from hne_tf.client.answers import Attempt, BudgetError
from hne_tf.client.closing import Closing
from hne_tf.client.messages import CallError
from hne_tf.client.metadata import CallMetadata
from hne_tf.client.metrics import ClientMetrics
from hne_tf.client.spread.answers import SpreadAnswer
from hne_tf.client.spread.connections import SpreadConnections
from hne_tf.client.spread.gathering import PartCall
from hne_tf.client.spread.hosts import PAUSE_S, SpreadHosts
from hne_tf.client.spread.plan import Offer, Plan, checked_assignment
from hne_tf.client.spread.spreading import Spreading
from hne_tf.errors import InputError
from hne_tf.exported.interface import LeavesSignature
from hne_tf.exported.session import checked_deadline


@dataclasses.dataclass(frozen=True)
class _Request:
    """What is asked, and what has become of it."""

    message: predict_pb2.PredictRequest
    rows: int
    deadline_ms: float
    spreading: Spreading


class SpreadClient(Closing):
    """Asks several servers of one model, each for some leaves, and answers with what came.

    The model is exported with signatures of some leaves (`hne-export --spread`), which the
    servers tell. A server that is dead, slow or restarts costs its leaves, not the
    answer; others take them over while there is time, and it is avoided for a while. All
    leaves of an answer are of one version of the model. Thread-safe; a context manager
    that closes the connections.

    Args:
      targets: `host:port` of each server.
      model: the model's name there.
      leaves: pairs (a, b) by target: it is asked for the leaves from a to before b and no
        others. By default for any that it has a signature of.
      credentials: for TLS, see `grpc.ssl_channel_credentials`; plain text without.
      metadata: see `budget_client.ServingClient`.
      plaintext_secrets: see `budget_client.ServingClient`.
      registry: of the metrics, see `budget_client.BudgetClient`.

    Attributes:
      registry: of the metrics, see `ClientMetrics`; sizes are numbers of leaves.
      image_shape: height, width and channels of the images; None until a server has told.

    Raises:
      InputError: unless targets are different ones, for leaves that overlap or are missing,
        and for metadata that cannot be sent.

    Example:
      >>> with SpreadClient(["a:8500", "b:8500"], "digits") as client:
      ...     answer = client.predict(images, deadline_ms=20)
      >>> answer.share, answer.leaves
      (1.0, ((0, 8), (8, 16)))
    """

    def __init__(
        self,
        targets: Sequence[str],
        model: str,
        *,
        leaves: Mapping[str, Sequence[tuple[int, int]]] | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: CallMetadata = (),
        plaintext_secrets: bool = False,
        registry: CollectorRegistry | ClientMetrics | None = None,
    ) -> None:
        if isinstance(targets, str) or not targets or len(set(targets)) < len(targets):
            raise InputError(f"targets must be addresses of different servers, got {targets!r}")
        assigned = None if leaves is None else checked_assignment(leaves, targets)
        self._model = model
        self._metrics = ClientMetrics.of(registry)
        self.registry = self._metrics.registry
        self.image_shape: tuple[int, int, int] | None = None
        self._hosts = SpreadHosts(targets, model, time.perf_counter, assigned)
        self._connections = SpreadConnections(
            targets, model, credentials, metadata, plaintext_secrets
        )
        self._untold: CallError | None = None

    def close(self) -> None:
        """Closes the connections."""
        self._connections.close()

    def learn(self, timeout_s: float = 10.0) -> Plan:
        """Connects and learns who computes what, which otherwise the first request does.

        Servers that do not answer are left out.

        Raises:
          CallError: if no server answers in time.
          InputError: if the servers are all there and compute no leaves, or leave some out.
        """
        self._ask_due()
        self._hosts.await_heard(timeout_s)
        if plan := self._hosts.plan():
            return plan
        late = CallError(
            f"no server of {self._model!r} told its signatures within {timeout_s:.4g} s",
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )
        raise self._untold or late

    def predict(self, images: np.ndarray, deadline_ms: float) -> SpreadAnswer:
        """Returns the answer of the leaves that come in time.

        It is there when all leaves are that can be had, at the latest at the deadline.

        Args:
          images: uint8 `[batch, height, width, channels]`.
          deadline_ms: milliseconds from this call to its answer.

        Raises:
          InputError: for images that the model does not take, a deadline that is not a
            finite number above 0, or servers that cannot compute the answer together.
          BudgetError: if no leaf has come; it says why and what was tried.
        """
        started_s = time.perf_counter()
        if not math.isfinite(checked_deadline(deadline_ms)):
            raise InputError(f"deadline_ms must be a finite number, got {deadline_ms!r}")
        images = messages.as_array("images", images)
        messages.check_images(images, self.image_shape)
        message = messages.predict_request(self._model, "", {"images": images}, (), None)
        request = _Request(
            message,
            len(images),
            deadline_ms,
            Spreading(self._hosts, len(images), started_s, started_s + deadline_ms / 1000),
        )
        try:
            answer = self._answer(request)
        except BudgetError:
            self._metrics.missed(self._model)
            raise
        finally:
            self._count(request)
        self._metrics.answer(self._model, answer.size)
        return answer

    def _answer(self, request: _Request) -> SpreadAnswer:
        spreading = request.spreading
        self._ask_due()
        # Half of the time is kept for the leaves of the servers that have answered.
        self._hosts.await_heard(spreading.left_s / 2)
        while spreading.left_s > 0:
            if plan := self._hosts.plan():
                self._gather(plan, request)
                if spreading.came:
                    return spreading.answer()
                if spreading.is_hopeless:
                    raise self._failure(request, spreading.error.code)
            self._hosts.await_change(max(0.0, min(PAUSE_S, spreading.left_s)))
            self._ask_due()
        raise self._failure(request, grpc.StatusCode.DEADLINE_EXCEEDED)

    def _gather(self, plan: Plan, request: _Request) -> None:
        """Asks the hosts of a plan, until the deadline or until nothing is under way."""
        spreading = request.spreading
        ended: queue.SimpleQueue[PartCall] = queue.SimpleQueue()
        sent: dict[PartCall, grpc.Future] = {}

        def send() -> None:
            for call in spreading.calls():
                future = self._connections.send(plan, call, request.message, spreading.left_s)
                sent[call] = future
                future.add_done_callback(lambda _, call=call: ended.put(call))

        spreading.begin(plan)
        try:
            send()
            while spreading.is_waiting:
                call = ended.get(timeout=max(0.0, spreading.left_s))
                self._end(plan, request, call, sent.pop(call))
                send()
        except queue.Empty:
            # The deadline: what is under way is late.
            pass
        finally:
            spreading.give_up()
            for future in sent.values():
                future.cancel()

    def _end(self, plan: Plan, request: _Request, call: PartCall, future: grpc.Future) -> None:
        """Takes what has become of a call."""
        timeout_s = request.deadline_ms / 1000
        try:
            outputs = self._connections.part(plan, call, future, request.rows, timeout_s)
        except CallError as error:
            request.spreading.failed(call, error)
        else:
            request.spreading.computed(call, outputs.arrays)

    def _ask_due(self) -> None:
        """Asks the hosts whose turn it is for their signatures, and waits for none."""
        for address in self._hosts.due():
            try:
                future = self._connections.ask(address)
            except InputError:
                self._hosts.untold(address)
                raise
            future.add_done_callback(functools.partial(self._told, address))

    def _told(self, address: str, future: grpc.Future) -> None:
        """Takes what a host tells of itself."""
        try:
            info = self._connections.told(address, future)
        except CallError as error:
            self._untold = error
            self._hosts.untold(address)
            return
        for name, signature in info.signatures.items():
            images = signature.inputs.get("images")
            if LeavesSignature.named(name) and images and images.shape:
                self.image_shape = images.shape[1:]
        outputs = {name: signature.outputs for name, signature in info.signatures.items()}
        self._hosts.told(address, Offer.of(info.version, outputs))

    def _count(self, request: _Request) -> None:
        for each in request.spreading.attempts:
            signature = LeavesSignature(*each.leaves).signature
            self._metrics.call(self._model, signature, each.code, each.latency_ms)

    def _failure(self, request: _Request, code: grpc.StatusCode) -> BudgetError:
        error = request.spreading.error or self._untold
        attempts = [
            Attempt(each.leaves[1] - each.leaves[0], each.code, each.latency_ms)
            for each in request.spreading.attempts
        ]
        why = f": {error}" if error else ""
        found = BudgetError(
            f"no leaves of {self._model!r} within {request.deadline_ms:g} ms{why}", attempts, code
        )
        found.__cause__ = error
        return found
