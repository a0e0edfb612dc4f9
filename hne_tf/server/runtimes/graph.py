"""Signatures that TensorFlow computes."""

import pathlib
from collections.abc import Callable, Mapping

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from hne_tf.errors import InputError
from hne_tf.exported.saved_model import runnable
from hne_tf.server.errors import RequestError

# Takes checked inputs by name, gives all outputs by name; raises `RequestError`.
Function = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

_DAMAGE = (OSError, RuntimeError, ValueError, LookupError, TypeError, tf.errors.OpError)


class GraphRuntime:
    """A SavedModel in memory.

    Args:
      path: its folder.

    Raises:
      InputError: if it cannot be loaded.
    """

    def __init__(self, path: pathlib.Path) -> None:
        try:
            # The model is kept because its signatures hold its variables weakly.
            self._model = tf.saved_model.load(str(path))
        except _DAMAGE as error:
            raise unreadable(path, error) from error

    def function(self, name: str, definition: meta_graph_pb2.SignatureDef) -> Function:
        """The function of a signature."""
        signature = self._model.signatures[name]
        call = runnable(signature)
        # Of a SavedModel of others names can differ.
        if {each.name for each in call.inputs} == definition.inputs.keys():
            compute = call.function
        else:

            def compute(arrays: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
                return signature(**{key: tf.constant(arrays[key]) for key in arrays})

        def run(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            try:
                return {key: value.numpy() for key, value in compute(arrays).items()}
            except tf.errors.OpError as error:
                raise RequestError(_grpc_code(error), error.message) from error

        return run


def unreadable(path: pathlib.Path, reason: Exception | str) -> InputError:
    """The error for a folder without a SavedModel that loads."""
    return InputError(f"version folder must hold a SavedModel, got {str(path)!r}: {reason}")


def _grpc_code(error: tf.errors.OpError) -> grpc.StatusCode:
    """TensorFlow's error numbers are gRPC's."""
    return next(code for code in grpc.StatusCode if code.value[0] == error.error_code)
