"""Functional Keras models that a command names: a file, or what makes one."""

import inspect
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras

from hne_tf import import_path
from hne_tf.errors import InputError


def load(name: str, image_shape: Sequence[int] | None = None) -> keras.Model:
    """The model of a `.keras` file or an import path, such as `keras.applications.Xception`.

    Args:
      name: a file, or the path of a function that returns a model. It is called with
        `input_shape` where it takes one and an `image_shape` is given.
      image_shape: `(height, width, channels)`.

    Raises:
      InputError: if there is no such file or function, or if it makes no model.
    """
    if name.endswith(".keras"):
        return _of_file(pathlib.Path(name))
    make = _function(name)
    known = inspect.signature(make).parameters
    options = {}
    if image_shape is not None and "input_shape" in known:
        options["input_shape"] = tuple(image_shape)
    # Costs do not depend on weights, which would be downloaded.
    if name.startswith("keras.applications.") and "weights" in known:
        options["weights"] = None
    try:
        model = make(**options)
    except (TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{name} must return a model for {options}, got {reason}") from error
    if not isinstance(model, keras.Model):
        raise InputError(f"{name} must return a Keras model, got {type(model).__name__}")
    return model


def _of_file(path: pathlib.Path) -> keras.Model:
    if not path.is_file():
        raise InputError(f"a model must be a .keras file or an import path, got no file {path}")
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} must be a model that Keras can load, got {reason}") from error


def _function(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.replace(":", ".").rpartition(".")
    if not module_name:
        raise InputError(
            "a model must be a .keras file or an import path such as "
            f"keras.applications.Xception, got {name!r}"
        )
    return import_path.load_function("a model", f"{module_name}:{function_name}")
