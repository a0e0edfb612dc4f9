"""Architectures and layer factories in `.keras` files, by the names that Keras knows them by."""

from collections.abc import Mapping
from typing import Any

import keras

from hne_tf.errors import InputError
from hne_tf.models import layers
from hne_tf.models.architectures import ARCHITECTURES, Architecture
from hne_tf.models.layers.factory import LayerFactory

_PACKAGE = "hne_tf"

# They register here because they load without Keras, for the sake of configs.
for _entry in ARCHITECTURES.values():
    keras.saving.register_keras_serializable(_PACKAGE)(_entry.kind)


def registered_name(instance: Any) -> str:
    """The name that Keras knows the class of an object by, such as `my_package>MyNetwork`."""
    return keras.saving.get_registered_name(type(instance))


def architecture(name: str, settings: Mapping[str, Any]) -> Architecture:
    """The architecture of a name and settings.

    Raises:
      InputError: if Keras knows no class by that name.
    """
    return _registered("architecture", name).from_config(settings)


def factory(name: str, settings: Mapping[str, Any]) -> LayerFactory:
    """The layer factory of a name and settings.

    Raises:
      InputError: if Keras knows no class by that name.
    """
    # Classes of ours register when they are loaded.
    if (ours := name.removeprefix(f"{_PACKAGE}>")) in layers.FACTORIES:
        getattr(layers, ours)
    return _registered("layer factory", name).from_config(settings)


def _registered(what: str, name: str) -> type:
    """The class of a registered name; older files name ours without the package."""
    for each in (name, f"{_PACKAGE}>{name}"):
        found = keras.saving.get_registered_object(each)
        if found is not None:
            return found
    raise InputError(
        f"the {what} must be registered with Keras (keras.saving.register_keras_serializable) "
        f"and its module imported before the model is loaded, got {name!r}"
    )
