"""What the servers behind the gateway tell of one model: which leaves each can compute."""

import asyncio
import time

import grpc
from google.protobuf.message import DecodeError, Message

from hne_tf.client.spread.hosts import PAUSE_S, TELL_TIMEOUT_S, SpreadHosts
from hne_tf.client.spread.plan import Offer, Plan
from hne_tf.errors import InputError
from hne_tf.gateway import messages
from hne_tf.gateway.models import has_own_anytime
from hne_tf.gateway.upstreams import CallFailedError, Metadata, Upstreams
from hne_tf.server.errors import RequestError

# Codes of a server that may have the model, and tells of it later.
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
)


class LeafHosts:
    """The servers of a model, or of one version of it that requests name.

    Args:
      upstreams: all servers.
      spec: `model_spec` of a request.

    Attributes:
      hosts: what is known of each.
      untold: why the last that did not tell of the model did not.
    """

    def __init__(self, upstreams: Upstreams, spec: Message) -> None:
        self._upstreams = upstreams.by_target
        self._question = messages.metadata_request(spec)
        self._asking: set[asyncio.Task[None]] = set()
        self._owns: dict[str, bool] = {}
        self.hosts = SpreadHosts(list(self._upstreams), spec.name, time.perf_counter)
        self.untold: CallFailedError | None = None

    @property
    def own(self) -> bool:
        """Whether the model has a signature `anytime` of its own."""
        return any(self._owns.values())

    @property
    def refusal(self) -> CallFailedError | None:
        """Why no server will tell of the model; None if one has, or may do so later."""
        refused = self.untold is not None and self.untold.code not in _PASSING
        return self.untold if refused and self.hosts.heard and not self._owns else None

    def plan(self) -> Plan | None:
        """Who computes what; None if that is not known yet.

        Raises:
          RequestError: FAILED_PRECONDITION if the servers cannot compute an answer together.
        """
        try:
            return self.hosts.plan()
        except InputError as error:
            raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from error

    def ask(self, metadata: Metadata) -> None:
        """Asks the servers whose turn it is for their signatures, and waits for none."""
        for address in self.hosts.due():
            task = asyncio.ensure_future(self._ask(address, metadata))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def await_heard(self, timeout_s: float) -> None:
        """Waits until every server has answered or failed once."""
        end_s = time.perf_counter() + timeout_s
        while self._asking and not self.hosts.heard and (left_s := end_s - time.perf_counter()) > 0:
            await self._await_one(left_s)

    async def await_change(self, timeout_s: float) -> None:
        """Waits a moment, or until a server has answered or failed."""
        pause_s = max(0.0, min(PAUSE_S, timeout_s))
        await (self._await_one(pause_s) if self._asking else asyncio.sleep(pause_s))

    async def _await_one(self, timeout_s: float) -> None:
        await asyncio.wait(self._asking, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    async def _ask(self, address: str, metadata: Metadata) -> None:
        try:
            reply = await self._upstreams[address].call(
                messages.GET_MODEL_METADATA, self._question, TELL_TIMEOUT_S, metadata
            )
            version, signatures = messages.signatures(reply.message)
        except CallFailedError as error:
            self._untold(address, error)
        except DecodeError as error:
            code, rule = grpc.StatusCode.INTERNAL, "the signatures of an upstream cannot be read"
            self._untold(address, CallFailedError(code, f"{rule}: {error}"))
        except asyncio.CancelledError:
            self.hosts.untold(address)
            raise
        else:
            self._owns[address] = has_own_anytime(signatures)
            outputs = {name: each.outputs for name, each in signatures.items()}
            self.hosts.told(address, Offer.of(version, outputs))

    def _untold(self, address: str, error: CallFailedError) -> None:
        # What one refuses for good is said rather than that another cannot be reached.
        if self.untold is None or error.code not in _PASSING or self.untold.code in _PASSING:
            self.untold = error
        self.hosts.untold(address)
