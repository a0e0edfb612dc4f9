"""Classes that a config names by import path, `my_module:MyClass`. Imports no Keras."""

import importlib

from hne_tf.errors import InputError


def is_import_path(name: str) -> bool:
    """Whether a config's name is an import path instead of the name of one of ours."""
    return ":" in name


def load(field: str, path: str) -> type:
    """The class at an import path.

    Args:
      field: the config's field, for messages.
      path: module and class, `"my_package.my_module:MyClass"`.

    Raises:
      InputError: if there is no such module or no such class in it. What the module
        itself raises passes as it is.
    """
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{field} must name a module that can be imported, got {path!r}: {error}"
        ) from None
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise InputError(f"{field} must name a class of {module_name}, got {path!r}")
    return found
