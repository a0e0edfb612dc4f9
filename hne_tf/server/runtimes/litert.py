"""Signatures that LiteRT computes from the TFLite file in a version's folder."""

import pathlib
import threading
from collections.abc import Mapping

import grpc
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from tensorflow.core.protobuf import meta_graph_pb2

from hne_tf.errors import InputError
from hne_tf.exported import tflite_file
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.versions import LITERT
from hne_tf.server.checks import declared_shape
from hne_tf.server.errors import RequestError
from hne_tf.server.runtimes.graph import Function

_DEFAULT_SIGNATURE = "serving_default"
# What must be the same in the manifests of a version and of its file.
_INTERFACE = ("branching", "exits", "average", "sizes", "steps", "classes")
# What LiteRT raises for models and inputs that it cannot compute.
_REFUSALS = (RuntimeError, ValueError)


class LiteRTRuntime:
    """A pool of interpreters, each for one call at a time.

    All read their weights from the one copy of the file in memory. XNNPACK packs
    weights for its kernels, and an interpreter has its own of these, as Python has no
    way to share them. An interpreter takes other batch sizes as they come: it keeps the
    memory of the largest, and calls go to one whose last batch had as many rows.

    Args:
      path: the version's folder.
      manifest: the version's.
      threads: that compute a call.
      workers: interpreters that are ready from the start. With more calls at a time
        there are more.

    Raises:
      InputError: if there is no file, or one that is damaged, cannot be computed or is
        of another model.
    """

    def __init__(
        self, path: pathlib.Path, manifest: Manifest, threads: int = 1, workers: int = 1
    ) -> None:
        self._file = path / LITERT
        if not self._file.is_file():
            raise InputError(
                f"a version that LiteRT computes must hold {LITERT}, which hne-export --litert "
                f"writes, got {str(path)!r} without it"
            )
        self._content, own = tflite_file.read(self._file)
        if any(getattr(own, name) != getattr(manifest, name) for name in _INTERFACE):
            raise InputError(f"{str(self._file)!r} must be of the version's model, got another's")
        self._full = f"ensemble_{manifest.sizes[-1]}"
        self._threads = threads
        self._lock = threading.Lock()
        self._free: list[_Worker] = []
        for _ in range(workers):
            self._free.append(self._worker())

    def has(self, name: str) -> bool:
        """Whether the file has a signature, by this name or another."""
        return self._own_name(name) in self._free[0].runners

    def function(self, name: str, definition: meta_graph_pb2.SignatureDef) -> Function:
        """The function of a signature that is in the file.

        Raises:
          InputError: if it takes or gives something else than its definition says.
        """
        own = self._own_name(name)
        runner = self._free[0].runners[own]
        for kind, defined, details in (
            ("take", definition.inputs, runner.get_input_details()),
            ("give", definition.outputs, runner.get_output_details()),
        ):
            expected = {key: _defined(info) for key, info in defined.items()}
            found = {key: _found(detail) for key, detail in details.items()}
            if not _same(expected, found, shapes=kind == "take"):
                raise InputError(
                    f"{own} of {str(self._file)!r} must {kind} what the SavedModel's signature "
                    f"does, {expected}, got {found}"
                )

        def run(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return self._run(own, arrays)

        return run

    def _own_name(self, name: str) -> str:
        """What the file calls a signature: it has the full ensemble once."""
        return self._full if name == _DEFAULT_SIGNATURE else name

    def _run(self, name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = {len(array) for array in arrays.values()}
        if len(rows) > 1:
            # LiteRT would compute something all the same, or never anything again.
            raise RequestError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the inputs of {name} must have equal first dimensions, got {sorted(rows)}",
            )
        worker = self._take(name, *rows)
        try:
            outputs = worker.run(name, arrays)
        except _REFUSALS as error:
            # The interpreter is not used again.
            reason = " ".join(str(error).split())
            raise RequestError(grpc.StatusCode.INTERNAL, f"{name} failed: {reason}") from error
        with self._lock:
            self._free.append(worker)
        return outputs

    def _take(self, name: str, rows: int) -> "_Worker":
        with self._lock:
            # From the end: the interpreter that ran last is in the caches.
            for position in reversed(range(len(self._free))):
                if self._free[position].rows[name] == rows:
                    return self._free.pop(position)
            if self._free:
                return self._free.pop()
        return self._worker()

    def _worker(self) -> "_Worker":
        try:
            return _Worker(self._content, self._threads)
        except _REFUSALS as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"a TFLite file must be one that LiteRT computes, got {str(self._file)!r}: {reason}"
            ) from error


class _Worker:
    """An interpreter whose signatures have all run once, so that weights are packed.

    Attributes:
      runners: by name of the signature.
      rows: of the last batch, by name of the signature.
    """

    def __init__(self, content: bytes, threads: int) -> None:
        interpreter = Interpreter(model_content=content, num_threads=threads)
        self.runners = {
            name: interpreter.get_signature_runner(name)
            for name in interpreter.get_signature_list()
        }
        self.rows = dict.fromkeys(self.runners, 1)
        for name, runner in self.runners.items():
            self.run(name, {key: _zeros(each) for key, each in runner.get_input_details().items()})

    def run(self, name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.rows[name] = len(next(iter(arrays.values())))
        return self.runners[name](**arrays)


def _zeros(detail: Mapping) -> np.ndarray:
    """One row."""
    return np.zeros([max(size, 1) for size in detail["shape_signature"]], detail["dtype"])


# An input's or output's shape, with -1 where it is free, and its type.
_Spec = tuple[tuple[int, ...] | None, str]


def _defined(info: meta_graph_pb2.TensorInfo) -> _Spec:
    return declared_shape(info), tf.dtypes.as_dtype(info.dtype).name


def _found(detail: Mapping) -> _Spec:
    return tuple(map(int, detail["shape_signature"])), np.dtype(detail["dtype"]).name


def _same(expected: Mapping[str, _Spec], found: Mapping[str, _Spec], shapes: bool) -> bool:
    """Whether the names and types, and of inputs the shapes, are the same.

    The converter does not know the shapes of all outputs.
    """
    return expected.keys() == found.keys() and all(
        expected[name][1] == spec[1] and (not shapes or expected[name][0] == spec[0])
        for name, spec in found.items()
    )
