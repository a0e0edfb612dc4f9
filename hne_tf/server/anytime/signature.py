"""Signature `anytime`: the largest ensemble that a call's time allows, chosen by the server."""

import concurrent.futures
import math
import time
import weakref
from collections.abc import Mapping

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from hne_tf.client.latency.latencies import Latencies
from hne_tf.client.latency.profile import Prior
from hne_tf.errors import InputError
from hne_tf.exported.manifest import read_manifest
from hne_tf.server.anytime import budgets
from hne_tf.server.checks import SignatureChecks
from hne_tf.server.servable import LoadedSignature, Servable

_METHOD = "tensorflow/serving/predict"


class SizedSignature:
    """An ensemble whose runs are timed; otherwise the signature that it is made from.

    Args:
      signature: the ensemble's.
      size: of the ensemble.
      latencies: told of every run.
    """

    def __init__(self, signature: LoadedSignature, size: int, latencies: Latencies) -> None:
        self.name = signature.name
        self.checks = signature.checks
        self.batchable = signature.batchable
        self._signature = signature
        self._size = size
        self._latencies = latencies

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the graph; see `LoadedSignature.run`."""
        rows = max(1, len(next(iter(arrays.values()))))
        ticket = self._latencies.sent(self._size, rows)
        try:
            outputs = self._signature.run(arrays)
            self._latencies.answered(ticket)
            return outputs
        finally:
            # Ends what an error has left in flight.
            self._latencies.failed(ticket)


class AnytimeSignature:
    """Takes images, gives `probabilities` and the `size` of the ensemble that they are from.

    Args:
      sized: the ensembles by size.
      latencies: of them.
      definition: what is said of the signature.
      pool: computes answers that may not be waited for.

    Attributes:
      name: `"anytime"`.
      checks: what a request is held against before `run_within`.
      batchable: whether requests can share a batch.
    """

    name = budgets.ANYTIME

    def __init__(
        self,
        sized: Mapping[int, SizedSignature],
        latencies: Latencies,
        definition: meta_graph_pb2.SignatureDef,
        pool: concurrent.futures.Executor,
    ) -> None:
        self.checks = SignatureChecks(definition)
        self.batchable = all(each.batchable for each in sized.values())
        self._sized = sized
        self._latencies = latencies
        self._pool = pool

    def run_within(
        self, arrays: Mapping[str, np.ndarray], end_s: float, share_s: float = math.inf
    ) -> dict[str, np.ndarray]:
        """Answers with the largest ensemble that there is time for.

        A first answer is kept while a second, larger one is computed elsewhere: what
        there is at the end is given.

        Args:
          arrays: checked inputs.
          end_s: when the answer must be there, on the clock of `time.perf_counter`.
          share_s: what it may take for the sake of those who wait.

        Raises:
          RequestError: RESOURCE_EXHAUSTED if not even the smallest ensemble is in
            time; the graph's own errors.
        """
        if end_s == math.inf:
            return self._answer(max(self._sized), arrays)
        rows = len(arrays["images"])
        plan = budgets.plan(self._latencies, rows, _left_ms(end_s), 1000 * share_s)
        size, first = plan.size, None
        if not plan.sure:
            first = self._answer(size, arrays)
            larger = budgets.larger(self._latencies, rows, _left_ms(end_s), size)
            if larger is None:
                return first
            size = larger
        reserve_s = min(end_s, time.perf_counter() + plan.reserve_ms / 1000)
        running = self._pool.submit(self._answer, size, arrays)
        if first is None and not _ends(running, reserve_s) and reserve_s < end_s:
            first = self._answer(min(self._sized), arrays)
        # Without any answer a late one is better than none.
        if first is None or _ends(running, end_s):
            return running.result()
        running.cancel()
        return first

    def _answer(self, size: int, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        probabilities = self._sized[size].run(arrays)[budgets.PROBABILITIES]
        sizes = np.full(len(probabilities), size, np.int32)
        return {budgets.PROBABILITIES: probabilities, budgets.SIZE: sizes}


class AnytimeModel:
    """The signatures of one version, `anytime` among them if it has ensembles.

    A signature of the model's own that has this name stays what it is.

    Args:
      servable: the version; it is not kept.
      pool: see `AnytimeSignature`.

    Attributes:
      definitions: what is said of the signatures that are added, by name.
    """

    def __init__(self, servable: Servable, pool: concurrent.futures.Executor) -> None:
        self.definitions: dict[str, meta_graph_pb2.SignatureDef] = {}
        self._signatures: dict[str, SizedSignature | AnytimeSignature] = {}
        sizes = _sizes(servable)
        if not sizes:
            return
        latencies = Latencies(_measured(servable))
        latencies.set_sizes(sizes)
        sized = {
            size: SizedSignature(servable.signature(f"ensemble_{size}"), size, latencies)
            for size in sizes
        }
        self._signatures.update({each.name: each for each in sized.values()})
        if budgets.ANYTIME not in servable.signature_defs:
            definition = _definition(servable.signature_defs[f"ensemble_{sizes[-1]}"])
            self.definitions[budgets.ANYTIME] = definition
            self._signatures[budgets.ANYTIME] = AnytimeSignature(sized, latencies, definition, pool)

    def signature(
        self, servable: Servable, name: str
    ) -> LoadedSignature | SizedSignature | AnytimeSignature:
        """The signature of that name; see `Servable.signature`."""
        return self._signatures.get(name) or servable.signature(name)


class AnytimeModels:
    """An `AnytimeModel` per version, for as long as the version is in memory.

    Args:
      workers: answers computed at a time that may not be waited for.
    """

    def __init__(self, workers: int) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="anytime")
        self._models: weakref.WeakKeyDictionary[Servable, AnytimeModel] = (
            weakref.WeakKeyDictionary()
        )

    def of(self, servable: Servable) -> AnytimeModel:
        """The model of a version."""
        model = self._models.get(servable)
        # Two threads may make one each; the first that is kept is used by both.
        return model or self._models.setdefault(servable, AnytimeModel(servable, self._pool))

    def close(self) -> None:
        """Takes no further answers on."""
        self._pool.shutdown(wait=False)


def _left_ms(end_s: float) -> float:
    return 1000 * (end_s - time.perf_counter())


def _ends(running: concurrent.futures.Future, end_s: float) -> bool:
    """Waits until `end_s` at most; whether it has ended."""
    timeout_s = max(0.0, end_s - time.perf_counter())
    return bool(concurrent.futures.wait([running], timeout=timeout_s).done)


def _sizes(servable: Servable) -> tuple[int, ...]:
    """Sizes of the ensembles from images to probabilities, in order."""
    found = {budgets.ensemble_size(name): name for name in servable.signatures}
    return tuple(
        sorted(
            size
            for size, name in found.items()
            if size is not None
            and servable.signature_defs[name].inputs.keys() == {"images"}
            and budgets.PROBABILITIES in servable.signature_defs[name].outputs
        )
    )


def _measured(servable: Servable) -> Prior:
    try:
        return read_manifest(servable.path).latency_ms
    except InputError:
        # Of others' models, or exported without measuring: it is learned.
        return {}


def _definition(ensemble: meta_graph_pb2.SignatureDef) -> meta_graph_pb2.SignatureDef:
    definition = meta_graph_pb2.SignatureDef(method_name=_METHOD)
    definition.inputs["images"].CopyFrom(ensemble.inputs["images"])
    definition.outputs[budgets.PROBABILITIES].CopyFrom(ensemble.outputs[budgets.PROBABILITIES])
    for name, dtype in ((budgets.SIZE, types_pb2.DT_INT32), (budgets.LATENCY, types_pb2.DT_FLOAT)):
        output = definition.outputs[name]
        output.name = f"{budgets.ANYTIME}_{name}:0"
        output.dtype = dtype
        output.tensor_shape.dim.add(size=-1)
    return definition
