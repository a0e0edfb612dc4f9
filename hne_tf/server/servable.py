"""One version of one model, loaded and ready to answer."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from hne_tf.errors import InputError
from hne_tf.exported.versions import MOST_WARM_UP_REQUESTS, WARM_UP_REQUESTS
from hne_tf.server.checks import SignatureChecks, declared_shape
from hne_tf.server.errors import RequestError

DEFAULT_SIGNATURE = "serving_default"
_METHODS = frozenset(f"tensorflow/serving/{name}" for name in ("predict", "classify", "regress"))


class LoadedSignature:
    """A signature that can be called.

    Args:
      function: TensorFlow's, as loaded.
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
        function: Callable[..., dict[str, tf.Tensor]],
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

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the graph on checked inputs and returns all outputs by name.

        Raises:
          RequestError: with the code of what the graph raises.
        """
        try:
            outputs = self._function(**{name: tf.constant(arrays[name]) for name in arrays})
            return {name: value.numpy() for name, value in outputs.items()}
        except tf.errors.OpError as error:
            raise RequestError(_grpc_code(error), error.message) from error


class Servable:
    """A loaded SavedModel.

    Args:
      name: model name that requests ask for.
      path: the version's folder, named by an integer.

    Attributes:
      name: as given.
      path: the version's folder.
      version: the version folder's integer.
      signature_defs: the SavedModel's own signature definitions by name.
      row_bytes: what a row of any signature takes in a request at most; None if
        there is no limit.

    Raises:
      InputError: if there is no readable SavedModel in the version's folder.
    """

    def __init__(self, name: str, path: pathlib.Path) -> None:
        self.name = name
        self.version = int(path.name)
        self.path = path
        self.signature_defs = _read_signature_defs(path)
        try:
            # The model is kept because its signatures hold its variables weakly.
            self._model = tf.saved_model.load(str(path))
        except (
            OSError,
            RuntimeError,
            ValueError,
            LookupError,
            TypeError,
            tf.errors.OpError,
        ) as error:
            raise _unreadable(path, error) from error
        self._signatures = {
            key: LoadedSignature(self._model.signatures[key], key, definition)
            for key, definition in self.signature_defs.items()
            # TensorFlow's own initialisation function is listed with the signatures.
            if definition.method_name in _METHODS
        }
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
        if self._model is None:
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
        self._model = None


def _read_signature_defs(path: pathlib.Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    saved_model = saved_model_pb2.SavedModel()
    try:
        saved_model.ParseFromString((path / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise _unreadable(path, error) from error
    for meta_graph in saved_model.meta_graphs:
        if tf.saved_model.SERVING in meta_graph.meta_info_def.tags:
            return dict(meta_graph.signature_def)
    tag = tf.saved_model.SERVING
    raise InputError(f"a SavedModel must have the tag {tag!r}, got {str(path)!r} without it")


def _unreadable(path: pathlib.Path, reason: Exception | str) -> InputError:
    return InputError(f"version folder must hold a SavedModel, got {str(path)!r}: {reason}")


def _grpc_code(error: tf.errors.OpError) -> grpc.StatusCode:
    """TensorFlow's error numbers are gRPC's."""
    return next(code for code in grpc.StatusCode if code.value[0] == error.error_code)
