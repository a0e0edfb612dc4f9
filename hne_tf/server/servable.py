"""One version of one model, loaded and ready to answer."""

import pathlib
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from hne_tf import hardware
from hne_tf.errors import InputError
from hne_tf.exported.manifest import Manifest, read_manifest
from hne_tf.exported.versions import LITERT, MOST_WARM_UP_REQUESTS, WARM_UP_REQUESTS
from hne_tf.server.checks import SignatureChecks, declared_shape
from hne_tf.server.errors import RequestError
from hne_tf.server.runtimes.graph import Function, GraphRuntime, unreadable

DEFAULT_SIGNATURE = "serving_default"
AUTO, TENSORFLOW, LITERT_RUNTIME = RUNTIMES = ("auto", "tensorflow", "litert")
_METHODS = frozenset(f"tensorflow/serving/{name}" for name in ("predict", "classify", "regress"))


_Definitions = Mapping[str, meta_graph_pb2.SignatureDef]


class LoadedSignature:
    """A signature that can be called.

    Args:
      function: computes it.
      name: the signature's.
      definition: the SavedModel's definition of it.

    Attributes:
      name: as given.
      checks: what a request is held against before `run`.
      batchable: whether every input and output has a free first dimension and
        fixed others, so that requests can share a batch.
    """

    def __init__(
        self,
        function: Function,
        name: str,
        definition: meta_graph_pb2.SignatureDef,
    ) -> None:
        self.name = name
        self.checks = SignatureChecks(definition)
        self._function = function
        infos = [*definition.inputs.values(), *definition.outputs.values()]
        self.batchable = bool(definition.inputs) and all(
            shape is not None and shape[:1] == (-1,) and -1 not in shape[1:]
            for shape in map(declared_shape, infos)
        )

    def run(self, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Runs the graph on checked inputs and returns all outputs by name.

        Raises:
          RequestError: with the code of what the graph raises.
        """
        return self._function(arrays)


class Servable:
    """A loaded version.

    What LiteRT computes, TensorFlow does not load: a signature that is missing in the
    TFLite file is computed by TensorFlow.

    Args:
      name: model name that requests ask for.
      path: the version's folder, named by an integer.
      runtime: one of `RUNTIMES`; `"auto"` is LiteRT if the version has its file and the
        manifest says that it is faster.
      slots: graphs that are computed at a time; 0 for as many as there are cores for.

    Attributes:
      name: as given.
      path: as given.
      version: the version folder's integer.
      runtime: what computes, `"tensorflow"` or `"litert"`.
      slots: graphs computed at a time, if nothing else was given.
      signature_defs: the SavedModel's own signature definitions by name.
      row_bytes: what a row of any signature takes in a request at most; None if
        there is no limit.

    Raises:
      InputError: if there is no readable SavedModel in the version's folder.
    """

    def __init__(self, name: str, path: pathlib.Path, runtime: str = AUTO, slots: int = 0) -> None:
        self.name = name
        self.version = int(path.name)
        self.path = path
        self.signature_defs = _read_signature_defs(path)
        called = {
            key: definition
            for key, definition in self.signature_defs.items()
            # TensorFlow's own initialisation function is listed with the signatures.
            if definition.method_name in _METHODS
        }
        manifest = _litert_manifest(path, runtime)
        if manifest is None:
            self.runtime, self.slots = TENSORFLOW, slots or hardware.cores()
            functions = _graph_functions(path, called)
        else:
            threads = min(manifest.litert.threads if manifest.litert else 1, hardware.cores())
            self.runtime, self.slots = LITERT_RUNTIME, slots or hardware.cores() // threads
            functions = _litert_functions(path, manifest, called, threads, self.slots)
        self._signatures = {
            key: LoadedSignature(functions[key], key, definition)
            for key, definition in called.items()
        }
        self._closed = False
        rows = [signature.checks.row_bytes for signature in self._signatures.values()]
        self.row_bytes = None if None in rows else max(rows, default=0)

    @property
    def signatures(self) -> tuple[str, ...]:
        """Names of the signatures that can be called, sorted."""
        return tuple(sorted(self._signatures))

    def signature(self, name: str) -> LoadedSignature:
        """Returns the signature of that name, `serving_default` if it is empty.

        Raises:
          RequestError: FAILED_PRECONDITION for an unknown one, as in TF Serving;
            UNAVAILABLE after `close`.
        """
        name = name or DEFAULT_SIGNATURE
        if self._closed:
            raise RequestError(
                grpc.StatusCode.UNAVAILABLE, f"version {self.version} has been closed"
            )
        if name not in self._signatures:
            raise RequestError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"signature must be one of {', '.join(self.signatures)}, got {name!r}",
            )
        return self._signatures[name]

    def predict(
        self,
        signature_name: str,
        inputs: Mapping[str, tensor_pb2.TensorProto],
        output_filter: Sequence[str] = (),
    ) -> dict[str, np.ndarray]:
        """Runs one signature and returns its outputs by name.

        Args:
          signature_name: the signature; empty for `serving_default`.
          inputs: a tensor per input of the signature.
          output_filter: names of the outputs to return; all if empty.

        Raises:
          RequestError: with TF Serving's code for an unknown signature, for
            inputs and outputs that do not fit it, and for what the graph raises.
        """
        signature = self.signature(signature_name)
        arrays = signature.checks.inputs(inputs)
        wanted = signature.checks.outputs(output_filter)
        outputs = signature.run(arrays)
        return {name: outputs[name] for name in wanted}

    def warm_up(self) -> int:
        """Replays the Predict requests of the version's warm-up file, if there is one.

        Returns:
          Their number.

        Raises:
          InputError: if a request fails, the file cannot be read or has more
            records than TF Serving takes.
        """
        path = self.path / WARM_UP_REQUESTS
        if not path.is_file():
            return 0
        count = 0
        try:
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                count += 1
                if count > MOST_WARM_UP_REQUESTS:
                    raise InputError(
                        f"{str(path)!r} must hold at most {MOST_WARM_UP_REQUESTS} records, got more"
                    )
                log = prediction_log_pb2.PredictionLog.FromString(record)
                if log.HasField("predict_log"):
                    request = log.predict_log.request
                    self.predict(
                        request.model_spec.signature_name, request.inputs, request.output_filter
                    )
        except RequestError as error:
            raise InputError(
                f"warm-up request {count} of {str(path)!r} failed: "
                f"{error.code.name}: {error.message}"
            ) from error
        except (DecodeError, tf.errors.OpError) as error:
            raise InputError(f"{str(path)!r} must hold warm-up requests: {error}") from error
        return count

    def close(self) -> None:
        """Lets go of the model; nothing can be run afterwards."""
        self._signatures = {}
        self._closed = True


def _litert_manifest(path: pathlib.Path, runtime: str) -> Manifest | None:
    """The manifest of a version that LiteRT is to compute; None if TensorFlow is."""
    if runtime not in RUNTIMES:
        raise InputError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
    if runtime == LITERT_RUNTIME:
        return read_manifest(path)
    if runtime == TENSORFLOW or not (path / LITERT).is_file():
        return None
    manifest = read_manifest(path)
    return manifest if manifest.litert_is_faster else None


def _graph_functions(path: pathlib.Path, called: _Definitions) -> dict[str, Function]:
    graph = GraphRuntime(path)
    return {name: graph.function(name, definition) for name, definition in called.items()}


def _litert_functions(
    path: pathlib.Path, manifest: Manifest, called: _Definitions, threads: int, workers: int
) -> dict[str, Function]:
    from hne_tf.server.runtimes.litert import LiteRTRuntime

    litert = LiteRTRuntime(path, manifest, threads, workers)
    own = {name: definition for name, definition in called.items() if litert.has(name)}
    others = {name: definition for name, definition in called.items() if name not in own}
    functions = {name: litert.function(name, definition) for name, definition in own.items()}
    return functions | (_graph_functions(path, others) if others else {})


def _read_signature_defs(path: pathlib.Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    saved_model = saved_model_pb2.SavedModel()
    try:
        saved_model.ParseFromString((path / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise unreadable(path, error) from error
    for meta_graph in saved_model.meta_graphs:
        if tf.saved_model.SERVING in meta_graph.meta_info_def.tags:
            return dict(meta_graph.signature_def)
    tag = tf.saved_model.SERVING
    raise InputError(f"a SavedModel must have the tag {tag!r}, got {str(path)!r} without it")
