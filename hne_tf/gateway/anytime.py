"""Answers `anytime` from the ensembles of the servers behind the gateway."""

import asyncio
import contextlib
import dataclasses
import math
import random
import time
from collections.abc import Sequence
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError, Message

from hne_tf.gateway import messages
from hne_tf.gateway.models import Model, Models, counted_rows
from hne_tf.gateway.upstreams import (
    ELSEWHERE,
    CallFailedError,
    Metadata,
    Reply,
    Upstream,
    Upstreams,
)
from hne_tf.server.anytime import budgets
from hne_tf.server.errors import RequestError

# Output of `anytime` that tells which leaves are in an answer, int32 `[batch, parts, 2]`.
LEAVES = "leaves"

# Of the time that is left, for larger ensembles than the smallest while others are under way. A
# size is chosen for good, so whoever comes first could take it all.
_SHARE = 0.5
# A size that the upstream chooses, and when another is asked for it, as a part of the time left.
_THEIRS, _THEIR_RESERVE = 0, 0.75
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.01, 0.2


@dataclasses.dataclass(frozen=True)
class Answered:
    """An answer of an upstream.

    Attributes:
      size: number of leaves in it.
      response: PredictResponse with `probabilities`.
      reply: as it came, for the metadata.
      leaves: first leaf and the one after the last, of each part that an upstream has
        computed; empty if one upstream has answered alone.
      total: number of leaves of the model; 0 if that is not known.
    """

    size: int
    response: Message
    reply: Reply
    leaves: tuple[tuple[int, int], ...] = ()
    total: int = 0


class Answerer(Protocol):
    """What answers `anytime`.

    Attributes:
      outputs: names of what it can be asked for.
    """

    outputs: Sequence[str]

    async def takes(self, spec: Message, metadata: Metadata, end_s: float) -> bool:
        """Whether it answers for a model. Otherwise the request passes through.

        Args:
          spec: `model_spec` of the request.
          metadata: for calls.
          end_s: as for `answer`.

        Raises:
          CallFailedError: if no upstream tells of the model.
        """

    async def answer(self, request: Message, metadata: Metadata, end_s: float) -> Answered:
        """The answer to a request for a model that it takes.

        Args:
          request: PredictRequest with `images`; may be written to.
          metadata: for the calls.
          end_s: when the answer must be there, on the clock of `time.perf_counter`;
            infinite for the full ensemble, whatever it takes.

        Raises:
          CallFailedError: if no upstream answers.
          RequestError: if there is no time to ask, or the upstreams cannot answer.
        """


class OneUpstream:
    """Asks one upstream for the ensemble that the time allows: an `Answerer`.

    An embedded server is asked for `anytime`: it chooses when the request's turn has
    come. For TF Serving the size is chosen here.

    Another upstream is asked when the first is busy, cannot be reached, or is so late
    that there is only just time for another answer. The largest answer that there is
    in time is given.

    Args:
      upstreams: whom to ask.
      models: learns anew what turns out to have changed.
    """

    outputs = budgets.OUTPUTS

    def __init__(self, upstreams: Upstreams, models: Models) -> None:
        self._upstreams = upstreams
        self._models = models

    async def takes(self, spec: Message, metadata: Metadata, end_s: float) -> bool:
        """See `Answerer`."""
        model = await self._models.of(spec, metadata, end_s)
        return bool(model.sizes) and not model.own

    async def answer(self, request: Message, metadata: Metadata, end_s: float) -> Answered:
        """See `Answerer`."""
        model = await self._models.of(request.model_spec, metadata, end_s)
        race = _Race(self._upstreams, self._models, model, request, metadata, end_s)
        try:
            answered = await race.run()
        finally:
            race.close()
        version = answered.response.model_spec.version.value
        self._models.check(request.model_spec, version, metadata)
        return answered


class _Race:
    """One request and the calls that are made for it."""

    def __init__(
        self,
        upstreams: Upstreams,
        models: Models,
        model: Model,
        request: Message,
        metadata: Metadata,
        end_s: float,
    ) -> None:
        self._upstreams = upstreams
        self._models = models
        self._model = model
        self._request = request
        self._metadata = metadata
        self._end_s = end_s
        self._rows = counted_rows(request)
        self._tried: set[Upstream] = set()
        self._pause_s = _FIRST_PAUSE_S
        self._relearned = False
        self._reserve: asyncio.Task[Answered | None] | None = None

    async def run(self) -> Answered:
        """See `Answerer.answer`."""
        while True:
            upstream, plan = self._choose(self._upstreams.ordered(self._tried))
            try:
                first = await self._with_reserve(upstream, plan)
            except CallFailedError as error:
                self._tried.add(upstream)
                if self._reserve and (reserve := await self._reserve):
                    return reserve
                await self._go_on(error)
                continue
            return first if plan.sure else await self._larger(first)

    def close(self) -> None:
        """Gives up the call that may still be under way."""
        if self._reserve:
            self._reserve.cancel()

    async def _with_reserve(self, upstream: Upstream, plan: budgets.SizeChoice) -> Answered:
        """Asks for the planned size, and elsewhere for what there is time for if it is overdue."""
        if plan.reserve_ms == math.inf or self._reserve:
            return await self._ask(upstream, plan.size)
        sent_s = time.perf_counter()

        def overdue() -> None:
            _suspect(upstream, sent_s)
            self._reserve = asyncio.ensure_future(self._ask_reserve(upstream))

        timer = asyncio.get_running_loop().call_later(plan.reserve_ms / 1000, overdue)
        try:
            return await self._ask(upstream, plan.size)
        finally:
            timer.cancel()

    async def _ask_reserve(self, overdue: Upstream) -> Answered | None:
        """Another answer while a call is overdue; None if there is none in time."""
        try:
            if others := self._upstreams.ordered({overdue, *self._tried}):
                upstream, plan = self._choose(others)
                return await self._ask(upstream, plan.size)
            if self._model.served:
                return None
            choice = self._model.latencies(overdue).choose(self._rows, self._left_ms(), below=1)
            if choice is not None and choice.fits:
                return await self._ask(overdue, choice.size)
        except (CallFailedError, RequestError):
            # What is overdue may still come.
            pass
        return None

    async def _larger(self, first: Answered) -> Answered:
        """Goes on from a first answer if there is time; that is kept whatever comes of it."""
        for upstream in self._upstreams.ordered():
            latencies = self._model.latencies(upstream)
            size = budgets.larger(latencies, self._rows, self._left_ms(), first.size)
            if size is not None:
                with contextlib.suppress(CallFailedError):
                    return await self._ask(upstream, size)
                break
        return first

    def _choose(self, ordered: list[Upstream]) -> tuple[Upstream, budgets.SizeChoice]:
        """The upstream that allows the largest ensemble, and how to ask it.

        Raises:
          RequestError: if there is no time at any of them.
        """
        candidates = [each for each in ordered if len(ordered) == 1 or not each.avoided] or ordered
        if self._model.served:
            return candidates[0], budgets.SizeChoice(
                _THEIRS, True, _THEIR_RESERVE * self._left_ms()
            )
        plans: dict[Upstream, budgets.SizeChoice] = {}
        refusal = None
        for each in candidates:
            try:
                plans[each] = self._plan(each)
            except RequestError as error:
                refusal = error
        if not plans:
            raise refusal
        known = next((each for each, plan in plans.items() if plan.sure), None)
        for each, plan in plans.items() if known else ():
            if not plan.sure:
                self._model.seed(each, known, self._rows)
                plans[each] = self._plan(each)
        # The first of those that are equal has least to do.
        return max(plans.items(), key=lambda pair: pair[1].size)

    def _plan(self, upstream: Upstream) -> budgets.SizeChoice:
        if not self._model.sizes:
            raise CallFailedError(
                grpc.StatusCode.FAILED_PRECONDITION, "the model has no ensembles any more"
            )
        left_ms = self._left_ms()
        # Time for the smallest is left to those who come before this one is answered.
        share_ms = _SHARE * left_ms if upstream.in_flight else math.inf
        return budgets.plan(self._model.latencies(upstream), self._rows, left_ms, share_ms)

    async def _ask(self, upstream: Upstream, size: int) -> Answered:
        """The answer of one ensemble; raises `CallFailedError` if there is none in time."""
        theirs = size == _THEIRS
        self._request.model_spec.signature_name = budgets.ANYTIME if theirs else f"ensemble_{size}"
        outputs = (budgets.PROBABILITIES, budgets.SIZE) if theirs else (budgets.PROBABILITIES,)
        self._request.output_filter[:] = outputs
        message = self._request.SerializeToString()
        timeout_s = None if self._end_s == math.inf else self._left_ms() / 1000
        sent_s = time.perf_counter()
        try:
            with (
                contextlib.nullcontext()
                if theirs
                else self._model.watched(upstream, size, self._rows)
            ):
                reply = await upstream.call(messages.PREDICT, message, timeout_s, self._metadata)
            response = messages.PredictResponse.FromString(reply.message)
            if budgets.PROBABILITIES not in response.outputs:
                raise DecodeError("no probabilities")
            if theirs:
                size = messages.first_whole(response.outputs[budgets.SIZE])
        except CallFailedError as error:
            if error.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            _suspect(upstream, sent_s)
            raise CallFailedError(
                error.code, f"the server at {upstream.target} gave no answer in time"
            ) from error
        except DecodeError as error:
            raise CallFailedError(
                grpc.StatusCode.INTERNAL, f"the answer of an upstream cannot be read: {error}"
            ) from error
        return Answered(size, response, reply)

    async def _go_on(self, error: CallFailedError) -> None:
        """Prepares to begin again after a failure, elsewhere or a little later.

        Raises:
          CallFailedError: `error`, if that is no use.
        """
        if error.code is grpc.StatusCode.FAILED_PRECONDITION and not self._relearned:
            self._relearned = True
            spec = self._request.model_spec
            await self._models.of(spec, self._metadata, self._end_s, anew=True)
            self._tried.clear()
        elif error.code not in ELSEWHERE:
            raise error
        if self._upstreams.ordered(self._tried):
            return
        if self._left_ms() < 1000 * self._pause_s or self._end_s == math.inf:
            raise error
        await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))
        self._pause_s = min(2 * self._pause_s, _MOST_PAUSE_S)
        self._tried.clear()

    def _left_ms(self) -> float:
        return 1000 * (self._end_s - time.perf_counter())


def _suspect(upstream: Upstream, sent_s: float) -> None:
    """Avoids an upstream that has answered nothing since a call that is overdue."""
    if upstream.answered_s < sent_s:
        upstream.avoid()
