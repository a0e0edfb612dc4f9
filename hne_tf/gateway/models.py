"""What the gateway knows of the models behind it: their ensembles and what these take."""

import asyncio
import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping

import grpc
from google.protobuf.message import DecodeError, Message

from hne_tf.client.latency.latencies import Latencies
from hne_tf.client.latency.profile import Prior
from hne_tf.gateway import messages
from hne_tf.gateway.upstreams import CallFailedError, Metadata, Upstream, Upstreams
from hne_tf.server.anytime import budgets

# A caller may ask for any name and version; those that exist are few.
_MOST_MODELS = 256
_LEARN_S = 10.0
# While upstreams serve different versions, each answer of another version would ask.
_REFRESH_S = 1.0
# Batches beyond this count as the next power of two, or each size would be kept apart.
_EXACT_ROWS, _MOST_ROWS = 128, 2**20


@dataclasses.dataclass(eq=False)
class Model:
    """A model, or one version of it that requests name.

    Attributes:
      sizes: of its ensembles, in order; empty if it has none.
      names: of its signatures.
      own: whether it has a signature `anytime` of its own.
      served: whether the servers answer `anytime` themselves, as the embedded one does.
      version: that told of them.
      prior: latencies to begin with.
      learned_s: when, on the clock of `time.perf_counter`.
    """

    sizes: tuple[int, ...]
    names: frozenset[str]
    own: bool
    served: bool
    version: int
    prior: Prior
    learned_s: float = dataclasses.field(default_factory=time.perf_counter)
    _latencies: dict[Upstream, Latencies] = dataclasses.field(default_factory=dict)

    def latencies(self, upstream: Upstream) -> Latencies:
        """What the ensembles take on one upstream."""
        found = self._latencies.get(upstream)
        if found is None:
            found = self._latencies[upstream] = Latencies(self.prior)
            found.set_sizes(self.sizes)
        return found

    def seed(self, upstream: Upstream, other: Upstream, rows: int) -> Latencies:
        """Begins an upstream of which nothing is known with what another takes."""
        prior = {rows: self.latencies(other).estimates_ms(rows)}
        found = self._latencies[upstream] = Latencies(prior)
        found.set_sizes(self.sizes)
        return found

    def replace(self, other: "Model") -> None:
        """Takes over what was learned anew; measurements of sizes that stay are kept."""
        self.sizes, self.names = other.sizes, other.names
        self.own, self.served = other.own, other.served
        self.version, self.learned_s = other.version, other.learned_s
        for latencies in self._latencies.values():
            latencies.set_sizes(other.sizes)

    @contextlib.contextmanager
    def watched(self, upstream: Upstream, size: int, rows: int) -> Iterator[None]:
        """Times a call of an ensemble, and takes note of one that is given up."""
        latencies = self.latencies(upstream)
        ticket = latencies.sent(size, rows)
        late = False
        try:
            yield
            latencies.answered(ticket)
        except CallFailedError as error:
            late = error.code is grpc.StatusCode.DEADLINE_EXCEEDED
            raise
        except asyncio.CancelledError:
            late = True
            raise
        finally:
            latencies.failed(ticket, late)


class Models:
    """The models that were asked for.

    Args:
      upstreams: where they are.
      name: model that `prior` is of.
      prior: its measured latencies.
    """

    def __init__(self, upstreams: Upstreams, name: str = "", prior: Prior | None = None) -> None:
        self._upstreams = upstreams
        self._prior = {name: prior or {}}
        self._models: collections.OrderedDict[bytes, Model] = collections.OrderedDict()
        self._learning: dict[bytes, asyncio.Task[Model]] = {}

    def known(self, spec: Message) -> Model | None:
        """The model that a request asks for, if it was learned."""
        return self._models.get(spec_key(spec))

    async def of(
        self, spec: Message, metadata: Metadata, end_s: float, anew: bool = False
    ) -> Model:
        """The model that a request asks for; learns its signatures if they are not known.

        Args:
          spec: the request's.
          metadata: of the request.
          end_s: when it is given up, on the clock of `time.perf_counter`.
          anew: whether to ask even if they are known.

        Raises:
          CallFailedError: if no upstream tells of it.
        """
        known = self.known(spec)
        if known is not None and not anew:
            return known
        # Shielded, because others wait for it, too.
        learning = asyncio.shield(self.learn(spec, metadata))
        try:
            left_s = end_s - time.perf_counter()
            return await asyncio.wait_for(learning, min(left_s, _LEARN_S))
        except TimeoutError:
            raise CallFailedError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"no upstream told the signatures of {spec.name!r:.80} in time",
            ) from None

    def learn(self, spec: Message, metadata: Metadata) -> "asyncio.Task[Model]":
        """Asks for the signatures of a model, once at a time."""
        key = spec_key(spec)
        task = self._learning.get(key)
        if task is None:
            task = self._learning[key] = asyncio.ensure_future(self._learn(key, spec, metadata))
            task.add_done_callback(lambda done: self._learned(key, done))
        return task

    def check(self, spec: Message, version: int, metadata: Metadata) -> None:
        """Learns a model anew if it is not what `version` has answered; nobody waits for it."""
        model = self.known(spec)
        outdated = (
            model is not None
            and version != model.version
            and time.perf_counter() - model.learned_s > _REFRESH_S
        )
        if model is None or outdated:
            self.learn(spec, metadata)

    def _learned(self, key: bytes, done: "asyncio.Task[Model]") -> None:
        del self._learning[key]
        if not done.cancelled():
            # Whoever waits is told; nobody may.
            done.exception()

    async def _learn(self, key: bytes, spec: Message, metadata: Metadata) -> Model:
        reply = await self._upstreams.call(
            messages.GET_MODEL_METADATA,
            messages.metadata_request(spec),
            _LEARN_S,
            metadata,
            again=True,
        )
        try:
            version, signatures = messages.signatures(reply.message)
        except DecodeError as error:
            raise CallFailedError(
                grpc.StatusCode.INTERNAL, f"the signatures of an upstream cannot be read: {error}"
            ) from error
        given = signatures.get(budgets.ANYTIME)
        served = given is not None and _is_servers(given)
        learned = Model(
            _sizes(signatures),
            frozenset(signatures),
            has_own_anytime(signatures),
            served,
            version,
            self._prior.get(spec.name, {}),
        )
        model = self._models.get(key)
        if model is None:
            model = self._models[key] = learned
            if len(self._models) > _MOST_MODELS:
                self._models.popitem(last=False)
        else:
            model.replace(learned)
        return model


def spec_key(spec: Message) -> bytes:
    """What a model, or one version of it, is known by: a `model_spec` without its signature."""
    plain = messages.ModelSpec()
    plain.CopyFrom(spec)
    plain.signature_name = ""
    return plain.SerializeToString(deterministic=True)


def has_own_anytime(signatures: Mapping[str, Message]) -> bool:
    """Whether a model has a signature `anytime` that is not the embedded server's."""
    given = signatures.get(budgets.ANYTIME)
    return given is not None and not _is_servers(given)


def counted_rows(request: Message) -> int:
    """The batch size that a request's latency is kept under."""
    rows = min(messages.rows(request), _MOST_ROWS)
    return rows if rows <= _EXACT_ROWS else 1 << (rows - 1).bit_length()


def _sizes(signatures: Mapping[str, Message]) -> tuple[int, ...]:
    """Sizes of the ensembles from images to probabilities, in order."""
    found = {budgets.ensemble_size(name): each for name, each in signatures.items()}
    return tuple(
        sorted(
            size
            for size, each in found.items()
            if size is not None
            and set(each.inputs) == {"images"}
            and budgets.PROBABILITIES in each.outputs
        )
    )


def _is_servers(anytime: Message) -> bool:
    """Whether a signature `anytime` is the embedded server's, not the model's own."""
    return set(anytime.inputs) == {"images"} and set(anytime.outputs) == set(budgets.OUTPUTS)
