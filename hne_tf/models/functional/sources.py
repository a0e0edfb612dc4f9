"""Functional Keras models that a command or a config names: a file, or what makes one."""

import inspect
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from hne_tf import import_path
from hne_tf.errors import InputError
from hne_tf.models.functional.settings import FRESH

_FILES = (".keras", ".h5")


def load(
    name: str,
    image_shape: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    weights: str = FRESH,
) -> keras.Model:
    """The model of a `.keras` file or an import path, such as `keras.applications.Xception`.

    Args:
      name: a file, or the path of a function that returns a model. It is called with
        `input_shape` where it takes one and an `image_shape` is given.
      image_shape: `(height, width, channels)`.
      options: other arguments of the function.
      weights: `""` for those that the file or the function gives; `"none"` for fresh
        ones, where the function takes `weights=None`; a file that has the model's
        weights; or a name that the function takes, such as `"imagenet"`.

    Raises:
      InputError: if there is no such file or function, if it makes no model, or for
        weights of another model.
    """
    is_file = weights.endswith(_FILES)
    if name.endswith(".keras"):
        if options:
            raise InputError(f"options must be empty for a file, got {dict(options)}")
        if weights not in ("", FRESH) and not is_file:
            raise InputError(f"weights of {name} must be none or a file, got {weights!r}")
        model = _of_file(pathlib.Path(name))
    else:
        model = _made(name, image_shape, dict(options or {}), FRESH if is_file else weights)
    if is_file:
        _load_weights(model, pathlib.Path(weights))
    return model


def _made(
    name: str, image_shape: Sequence[int] | None, options: dict[str, Any], weights: str
) -> keras.Model:
    """What a function returns."""
    make = function(name)
    known = inspect.signature(make).parameters
    if image_shape is not None and "input_shape" in known:
        options.setdefault("input_shape", tuple(image_shape))
    if weights not in ("", FRESH):
        if "weights" not in known:
            raise InputError(f"weights must be a file or none for {name}, got {weights!r}")
        options["weights"] = weights
    elif weights == FRESH and "weights" in known:
        options["weights"] = None
    try:
        model = make(**options)
    # Whatever a function of the user's own, or a download, raises.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
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


def _load_weights(model: keras.Model, path: pathlib.Path) -> None:
    if not path.is_file():
        raise InputError(f"weights must be a file, none or a name, got no file {path}")
    try:
        if path.suffix == ".keras":
            model.set_weights(keras.models.load_model(path, compile=False).get_weights())
        else:
            model.load_weights(path)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} must hold weights of {model.name!r}, got {reason}") from error


def function(name: str) -> Callable[..., Any]:
    """The function at an import path with dots.

    Raises:
      InputError: if there is no such function.
    """
    module_name, _, function_name = name.replace(":", ".").rpartition(".")
    if not module_name:
        raise InputError(
            "a model must be a .keras file or an import path such as "
            f"keras.applications.Xception, got {name!r}"
        )
    return import_path.load_function("a model", f"{module_name}:{function_name}")
