"""What trains: TensorFlow, or JAX without TensorFlow. Keras's backend decides."""

import importlib
from typing import cast

import keras

from hne_tf.errors import InputError
from hne_tf.training.backends.backend import Backend

_MODULES = {
    "tensorflow": "hne_tf.training.backends.on_tensorflow",
    "jax": "hne_tf.training.backends.on_jax",
}


def current() -> Backend:
    """The training of Keras's backend.

    Raises:
      InputError: for a backend that runs do not train on.
    """
    name = keras.backend.backend()
    if name not in _MODULES:
        raise InputError(f"KERAS_BACKEND must be {' or '.join(_MODULES)} to train, got {name}")
    return cast(Backend, importlib.import_module(_MODULES[name]))
