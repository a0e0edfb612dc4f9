"""One version of one model, loaded and ready to answer."""

import pathlib
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from hne_tf.errors import InputError
from serving.checks import check_inputs, check_output_filter
from serving.errors import RequestError

DEFAULT_SIGNATURE = "serving_default"
# TF Serving reads folder names as 64-bit integers and skips what does not fit.
_MAX_VERSION = 2**63 - 1


def latest_version_path(base_path: str | pathlib.Path) -> pathlib.Path:
    """Returns the folder of the largest version published below `base_path`.

    A version is a folder whose name is an integer; others, such as one that is
    being published under a temporary name, are ignored.

    Raises:
      InputError: if there is no such folder.
    """
    base = pathlib.Path(base_path)
    if not base.is_dir():
        raise InputError(f"model base path must be a folder, got {str(base_path)!r}")
    versions = [
        entry
        for entry in base.iterdir()
        if entry.name.isascii()
        and entry.name.isdecimal()
        and int(entry.name) <= _MAX_VERSION
        and entry.is_dir()
    ]
    if not versions:
        raise InputError(
            "model base path must hold a folder per version, named by an integer, "
            f"got none in {str(base_path)!r}"
        )
    return max(versions, key=lambda path: int(path.name))


class Servable:
    """A loaded SavedModel.

    Args:
      name: model name that requests ask for.
      path: the version's folder, named by an integer.

    Attributes:
      name: as given.
      version: the version folder's integer.
      signature_defs: the SavedModel's own signature definitions by name.

    Raises:
      InputError: if there is no readable SavedModel in the version's folder.
    """

    def __init__(self, name: str, path: pathlib.Path) -> None:
        self.name = name
        self.version = int(path.name)
        self.signature_defs = _read_signature_defs(path)
        try:
            # The model is kept because its signatures hold its variables weakly.
            self._model = tf.saved_model.load(str(path))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise _unreadable(path, error) from error
        self._functions = dict(self._model.signatures)

    @property
    def signatures(self) -> tuple[str, ...]:
        """Names of the signatures that can be called, sorted."""
        return tuple(sorted(self._functions))

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
        name = signature_name or DEFAULT_SIGNATURE
        if name not in self._functions:
            raise RequestError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"signature must be one of {', '.join(self.signatures)}, got {name!r}",
            )
        signature = self.signature_defs[name]
        arrays = check_inputs(signature, inputs)
        wanted = check_output_filter(signature, output_filter)
        try:
            outputs = self._functions[name](
                **{key: tf.constant(array) for key, array in arrays.items()}
            )
            return {key: outputs[key].numpy() for key in wanted}
        except tf.errors.OpError as error:
            raise RequestError(_grpc_code(error), error.message) from error


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


def _unreadable(path: pathlib.Path, error: Exception) -> InputError:
    return InputError(f"version folder must hold a SavedModel, got {str(path)!r}: {error}")


def _grpc_code(error: tf.errors.OpError) -> grpc.StatusCode:
    """TensorFlow's error numbers are gRPC's."""
    return next(code for code in grpc.StatusCode if code.value[0] == error.error_code)
