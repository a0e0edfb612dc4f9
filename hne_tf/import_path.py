"""Classes and functions that a user names by import path, `my_module:MyClass`. Imports no Keras."""

import importlib
from collections.abc import Callable
from typing import Any

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
    found = _found(field, path)
    if not isinstance(found, type):
        raise InputError(f"{field} must name a class of {path.partition(':')[0]}, got {path!r}")
    return found


def load_function(field: str, path: str) -> Callable[..., Any]:
    """The function, or whatever else can be called, at an import path.

    Args:
      field: what the user named, for messages.
      path: module and function, `"my_package.my_module:load"`.

    Raises:
      InputError: if there is no such module or no such function in it. What the module
        itself raises passes as it is.
    """
    found = _found(field, path)
    if not callable(found):
        raise InputError(f"{field} must name a function of {path.partition(':')[0]}, got {path!r}")
    return found


def _found(field: str, path: str) -> Any:
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        # One of our modules fails where an extra is not installed, which is told elsewhere.
        if module_name.startswith("hne_tf."):
            raise
        raise InputError(
            f"{field} must name a module that can be imported, got {path!r}: {error}"
        ) from None
    return getattr(module, name, None)
