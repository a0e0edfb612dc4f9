"""Rules that the settings of every architecture obey."""

from typing import Any

from hne_tf.errors import InputError
from hne_tf.tree import is_positive_integer


def positive_integer(name: str, value: Any) -> int:
    """The `value` of the setting called `name`.

    Raises:
      InputError: unless it is a positive integer.
    """
    if not is_positive_integer(value):
        raise InputError(f"{name} must be a positive integer, got {value}")
    return value


def positive_integers(name: str, values: Any) -> tuple[int, ...]:
    """The `values` of the setting called `name`, a tuple or a list, as a tuple.

    Raises:
      InputError: unless there are some and all are positive integers.
    """
    listed = isinstance(values, (tuple, list))
    if not listed or not values or not all(map(is_positive_integer, values)):
        raise InputError(f"{name} must be positive integers, got {values}")
    return tuple(values)
