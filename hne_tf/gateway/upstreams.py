"""The servers behind the gateway: calls to one of them, and to another where one fails."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence

import grpc

from hne_tf.client.transport import CHANNEL_OPTIONS

Metadata = Sequence[tuple[str, str | bytes]]

# gRPC writes these itself, one for each connection.
_OWN = frozenset({"user-agent", "content-type", "te", "grpc-accept-encoding", "grpc-encoding"})
_OWN_PREFIXES = (":", "grpc-")
# The exception: errors in detail, as `grpc_status` has them.
_DETAILS = "grpc-status-details-bin"
# An upstream that did not answer gets no further calls for so long, if there are others.
_AVOID_S = 1.0
# Another upstream may answer what one has not begun.
ELSEWHERE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})


class CallFailedError(Exception):
    """A call that an upstream answered with an error, or did not answer.

    Attributes:
      code: the gRPC status.
      details: what the upstream or gRPC says of it.
      trailing: metadata that came with it.
    """

    def __init__(self, code: grpc.StatusCode, details: str, trailing: Metadata = ()) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.trailing = trailing


@dataclasses.dataclass(frozen=True)
class Reply:
    """What an upstream answered: the serialised message and the metadata around it."""

    message: bytes
    initial: Metadata = ()
    trailing: Metadata = ()


class Upstream:
    """One server.

    Args:
      target: `host:port`.
      clock: seconds.

    Attributes:
      target: as given.
      in_flight: calls that were sent and have not ended.
      answered_s: when it last answered, on the clock of `time.perf_counter`.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.in_flight = 0
        self.answered_s = -math.inf
        self._channel = grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable] = {}
        self._avoided_until = -math.inf

    @property
    def avoided(self) -> bool:
        """Whether others are to be asked first: it cannot be reached, or did not answer."""
        # Asking for the state has an idle channel connect.
        state = self._channel.get_state(try_to_connect=True)
        broken = state is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        return broken or time.perf_counter() < self._avoided_until

    def avoid(self) -> None:
        """Takes note that it did not answer."""
        self._avoided_until = time.perf_counter() + _AVOID_S

    async def call(
        self, method: str, message: bytes, timeout_s: float | None, metadata: Metadata
    ) -> Reply:
        """Calls a method of one message to one message.

        Raises:
          CallFailedError: for any status but OK.
        """
        stub = self._methods.get(method)
        if stub is None:
            stub = self._methods[method] = self._channel.unary_unary(method)
        self.in_flight += 1
        call = None
        try:
            call = stub(message, timeout=timeout_s, metadata=metadata)
            answer = await call
            self.answered_s, self._avoided_until = time.perf_counter(), -math.inf
            initial, trailing = await call.initial_metadata(), await call.trailing_metadata()
            return Reply(answer, passed(initial or ()), passed(trailing or ()))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self.avoid()
            trailing = passed(error.trailing_metadata() or ())
            raise CallFailedError(error.code(), error.details() or "", trailing) from error
        finally:
            self.in_flight -= 1
            if call is not None and not call.done():
                call.cancel()

    def stream(
        self, method: str, messages: object, timeout_s: float | None, metadata: Metadata
    ) -> grpc.aio.StreamStreamCall:
        """Calls a method of any kind; messages are bytes."""
        return self._channel.stream_stream(method)(messages, timeout=timeout_s, metadata=metadata)

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()


class Upstreams:
    """Several servers of the same models.

    Args:
      targets: `host:port` of each, at least one.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self._all = tuple(Upstream(target) for target in targets)
        self._turn = itertools.count()

    @property
    def by_target(self) -> dict[str, Upstream]:
        """All of them, in the order that they were given in."""
        return {each.target: each for each in self._all}

    def ordered(self, without: Iterable[Upstream] = ()) -> list[Upstream]:
        """Those that are left, the one to ask first first: it answers, and has least to do."""
        turn, count = next(self._turn), len(self._all)
        left = [each for each in self._all if each not in without]
        return sorted(
            left,
            key=lambda each: (
                count > 1 and each.avoided,
                each.in_flight,
                (self._all.index(each) - turn) % count,
            ),
        )

    async def call(
        self,
        method: str,
        message: bytes,
        timeout_s: float | None,
        metadata: Metadata,
        again: bool,
        watch: Callable[[Upstream], contextlib.AbstractContextManager] | None = None,
    ) -> Reply:
        """Calls a method of one upstream, and of another if that is busy or cannot be reached.

        Args:
          method: `/<service>/<method>`.
          message: the serialised request.
          timeout_s: for all calls together; None for no limit.
          metadata: of the call.
          again: whether it does no harm to call twice.
          watch: entered around each call.

        Raises:
          CallFailedError: the last error.
        """
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        waiting = self.ordered()
        while True:
            upstream = waiting.pop(0)
            left_s = None if end_s is None else end_s - time.monotonic()
            try:
                with watch(upstream) if watch else contextlib.nullcontext():
                    return await upstream.call(method, message, left_s, metadata)
            except CallFailedError as error:
                if not waiting or not again or error.code not in ELSEWHERE:
                    raise

    async def close(self) -> None:
        """Ends all connections."""
        for each in self._all:
            await each.close()


def passed(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """The pairs that belong to the call, not to the connection that it came by."""
    return tuple(
        (key, value)
        for key, value in metadata
        if key == _DETAILS or (key not in _OWN and not key.startswith(_OWN_PREFIXES))
    )
