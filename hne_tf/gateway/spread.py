"""Answers `anytime` from leaves that the servers behind the gateway compute side by side."""

import asyncio
import collections
import time
from collections.abc import Mapping

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message

from hne_tf.client.spread.gathering import PartCall
from hne_tf.client.spread.plan import Plan
from hne_tf.client.spread.spreading import Spreading, part_fault
from hne_tf.exported.interface import TEMPERATURES, sum_output
from hne_tf.gateway import messages
from hne_tf.gateway.anytime import LEAVES, Answered
from hne_tf.gateway.leaf_hosts import LeafHosts
from hne_tf.gateway.models import Models, counted_rows, spec_key
from hne_tf.gateway.upstreams import CallFailedError, Metadata, Reply, Upstreams
from hne_tf.server.anytime import budgets

# A caller may ask for any name and version; those that exist are few.
_MOST_MODELS = 256
# Without a deadline, how long a server that stalls is waited for.
_LONGEST_S = 30.0


class SpreadUpstreams:
    """Asks all upstreams for some leaves each, and averages what came: an `Answerer`.

    An upstream that is dead, slow or restarts costs its leaves, not the answer, see
    `client.spread_client.SpreadClient`, and all leaves of an answer are of one version.

    Args:
      upstreams: whom to ask.
      models: learns which signatures the models have that are answered for.
    """

    outputs = tuple(sorted((*budgets.OUTPUTS, LEAVES)))

    def __init__(self, upstreams: Upstreams, models: Models) -> None:
        self._upstreams = upstreams
        self._models = models
        self._known: collections.OrderedDict[bytes, LeafHosts] = collections.OrderedDict()

    async def takes(self, spec: Message, metadata: Metadata, end_s: float) -> bool:
        """See `Answerer`."""
        hosts = self._hosts(spec)
        hosts.ask(metadata)
        # Half of the time is kept for the leaves of the servers that have answered.
        await hosts.await_heard(min(end_s - time.perf_counter(), _LONGEST_S) / 2)
        if hosts.refusal:
            self._known.pop(spec_key(spec), None)
            raise hosts.refusal
        return not hosts.own

    async def answer(self, request: Message, metadata: Metadata, end_s: float) -> Answered:
        """See `Answerer`."""
        started_s = time.perf_counter()
        hosts = self._hosts(request.model_spec)
        spreading = Spreading(
            hosts.hosts, counted_rows(request), started_s, min(end_s, started_s + _LONGEST_S)
        )
        spec = messages.ModelSpec()
        spec.CopyFrom(request.model_spec)
        while spreading.left_s > 0 and not (spreading.is_hopeless or hosts.refusal):
            if plan := hosts.plan():
                asked = _Asked(self._upstreams, request, metadata, plan)
                await asked.gather(spreading)
                if spreading.came:
                    self._models.check(spec, plan.version, metadata)
                    return asked.answer(spreading)
            await hosts.await_change(spreading.left_s)
            hosts.ask(metadata)
        raise _failure(hosts, spreading, spec.name, 1000 * (time.perf_counter() - started_s))

    def _hosts(self, spec: Message) -> LeafHosts:
        key = spec_key(spec)
        if key not in self._known:
            self._known[key] = LeafHosts(self._upstreams, spec)
            if len(self._known) > _MOST_MODELS:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]


class _Asked:
    """The calls of one request with one plan."""

    def __init__(
        self, upstreams: Upstreams, request: Message, metadata: Metadata, plan: Plan
    ) -> None:
        self._upstreams = upstreams.by_target
        self._request = request
        self._metadata = metadata
        self._plan = plan
        self._rows = messages.rows(request)
        self._replies: dict[tuple[int, int], Reply] = {}

    async def gather(self, spreading: Spreading) -> None:
        """Asks the hosts of the plan, until the deadline or until nothing is under way."""
        sent: dict[asyncio.Task[Mapping[str, np.ndarray]], PartCall] = {}

        def send() -> None:
            for call in spreading.calls():
                sent[asyncio.ensure_future(self._ask(call, spreading.left_s))] = call

        spreading.begin(self._plan)
        try:
            send()
            while spreading.is_waiting and spreading.left_s > 0:
                ended, _ = await asyncio.wait(
                    sent, timeout=spreading.left_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in ended:
                    self._end(spreading, sent.pop(task), task)
                send()
        finally:
            spreading.give_up()
            for task in sent:
                task.cancel()

    def answer(self, spreading: Spreading) -> Answered:
        """The answer of what came, at least one part."""
        found = spreading.answer()
        response = messages.PredictResponse()
        response.model_spec.name = self._request.model_spec.name
        response.model_spec.version.value = found.version
        messages.set_array(response.outputs[budgets.PROBABILITIES], found.probabilities)
        reply = self._replies[found.leaves[0]]
        return Answered(found.size, response, reply, found.leaves, found.total)

    @staticmethod
    def _end(
        spreading: Spreading, call: PartCall, task: "asyncio.Task[Mapping[str, np.ndarray]]"
    ) -> None:
        """Takes what has become of a call."""
        try:
            arrays = task.result()
        except CallFailedError as error:
            spreading.failed(call, error)
        else:
            spreading.computed(call, arrays)

    async def _ask(self, call: PartCall, timeout_s: float) -> Mapping[str, np.ndarray]:
        """The outputs of a part; raises `CallFailedError` if there are none."""
        message = self._message(call)
        upstream = self._upstreams[call.address]
        try:
            reply = await upstream.call(messages.PREDICT, message, timeout_s, self._metadata)
            version, arrays = _outputs(reply.message, sum_output(self._plan.average))
        except CallFailedError as error:
            if error.code is not grpc.StatusCode.CANCELLED:
                raise
            # Nobody here has: the server does as it stops, and another may answer.
            raise CallFailedError(grpc.StatusCode.UNAVAILABLE, error.details) from error
        except DecodeError as error:
            raise CallFailedError(
                grpc.StatusCode.INTERNAL, f"the answer of an upstream cannot be read: {error}"
            ) from error
        fault = part_fault(self._plan, call, self._rows, version, arrays)
        if fault is not None:
            text, code = fault
            raise CallFailedError(code, text)
        self._replies[call.part.first, call.part.stop] = reply
        return arrays

    def _message(self, call: PartCall) -> bytes:
        request = self._request
        request.model_spec.signature_name = call.part.signature
        request.model_spec.version.value = self._plan.version
        # A message may have a version or a label, not both.
        request.model_spec.ClearField("version_label")
        request.ClearField("output_filter")
        return request.SerializeToString()


def _outputs(message: bytes, name: str) -> tuple[int, dict[str, np.ndarray]]:
    """The version that answered a part, its sum and, if there are some, the temperatures.

    Raises:
      DecodeError: if they cannot be read.
    """
    response = messages.PredictResponse.FromString(message)
    if name not in response.outputs:
        raise DecodeError(f"no {name}")
    wanted = [name, *({TEMPERATURES} & set(response.outputs))]
    arrays = {each: messages.floats(response.outputs[each]) for each in wanted}
    return response.model_spec.version.value, arrays


def _failure(
    hosts: LeafHosts, spreading: Spreading, model: str, elapsed_ms: float
) -> CallFailedError:
    """Why no leaf has come: what was said last, with its code and its details."""
    error = spreading.error or hosts.untold
    if error is None:
        code, why = grpc.StatusCode.DEADLINE_EXCEEDED, "no server has answered"
        return CallFailedError(code, f"no leaves of {model!r:.80} in {elapsed_ms:.4g} ms: {why}")
    if spreading.is_hopeless:
        return error
    text = f"no leaves of {model!r:.80} in {elapsed_ms:.4g} ms: {error.details:.1000}"
    return CallFailedError(error.code, text, error.trailing)
