"""Frozen dataclasses from JSON values and back: a field is a key, its type the rule of its value.

A field is of a type below, of a dataclass of such fields, or of a tuple, a mapping or
`... | None` of them. A key that is missing or null takes the field's default, and a field that
has its default is not written.
"""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NoReturn, TypeVar

from hne_tf.errors import InputError

T = TypeVar("T")

_LARGEST = 2**63 - 1
# Of objects and lists inside each other. Python's own limit depends on who calls.
_MOST_LEVELS = 32


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value must be besides its type.

    Attributes:
      text: the rule in words that follow "must be".
      holds: whether a value of the type keeps it.
    """

    text: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Rule("an integer of 1 or more", lambda value: value >= 1)]
Whole = Annotated[int, Rule("an integer of 0 or more", lambda value: value >= 0)]
Positive = Annotated[float, Rule("a number above 0", lambda value: value > 0)]
Share = Annotated[float, Rule("a number from 0 to 1", lambda value: 0 <= value <= 1)]
Threshold = Annotated[float, Rule("a number above 0, at most 1", lambda value: 0 < value <= 1)]
Name = Annotated[str, Rule("a text that is not empty", bool)]


def parse(text: str | bytes, source: str) -> Any:
    """JSON values.

    Args:
      text: JSON.
      source: where it comes from, for messages.

    Raises:
      InputError: for any other text, and for objects and lists that lie too deep.
    """
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} must be JSON: {error}") from None
    if not _is_shallow(content):
        raise InputError(f"{source} must have at most {_MOST_LEVELS} levels, got more")
    return content


def decode(kind: type[T], value: Any, where: str) -> T:
    """Reads a value of a type from JSON values.

    Args:
      kind: the type.
      value: what `json.loads` gave.
      where: what the value is, for messages.

    Raises:
      InputError: for another value; the message is one line, which says where it lies.
    """
    if typing.get_origin(kind) is Annotated:
        kind, rule = typing.get_args(kind)
        decoded = decode(kind, value, where)
        if not rule.holds(decoded):
            raise _refusal(where, rule.text, value)
        return decoded
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        some = next(each for each in typing.get_args(kind) if each is not types.NoneType)
        return None if value is None else decode(some, value, where)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    container = typing.get_origin(kind)
    if container is tuple:
        return _tuple(typing.get_args(kind)[0], value, where)
    if container is Mapping:
        return _mapping(*typing.get_args(kind), value, where)
    return value if kind is Any else _scalar(kind, value, where)


def encode(value: Any) -> Any:
    """The JSON values that `decode` reads as `value`."""
    if dataclasses.is_dataclass(value):
        fields = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: encode(each) for field, each in fields if each != _default(field)}
    if isinstance(value, Mapping):
        return {str(key): encode(each) for key, each in value.items()}
    return [encode(each) for each in value] if isinstance(value, tuple) else value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")


def _is_shallow(value: Any) -> bool:
    """Whether objects and lists lie in each other `_MOST_LEVELS` deep at most."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        level = [inner for outer in level for inner in _inner(outer)]
    return not level


def _inner(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _dataclass(kind: type[T], value: Any, where: str) -> T:
    if not isinstance(value, dict):
        raise _refusal(where, "an object", value)
    types_of = _types(kind)
    given = {}
    for field in dataclasses.fields(kind):
        found = value.get(field.name)
        if found is not None:
            given[field.name] = decode(types_of[field.name], found, f"{where}.{field.name}")
        elif _default(field) is dataclasses.MISSING:
            raise InputError(f"{where} must have the key {field.name!r}, got {_text(value)}")
    return kind(**given)


def _default(field: dataclasses.Field) -> Any:
    """The default of a field, or `MISSING`."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _tuple(kind: type[T], value: Any, where: str) -> tuple[T, ...]:
    if not isinstance(value, list | tuple):
        raise _refusal(where, "a list", value)
    return tuple(decode(kind, each, f"{where}[{index}]") for index, each in enumerate(value))


def _mapping(key_kind: type, kind: type[T], value: Any, where: str) -> dict[Any, T]:
    if not isinstance(value, dict):
        raise _refusal(where, "an object", value)
    return {
        _key(key_kind, key, where): decode(kind, each, f"{where}[{_text(key)}]")
        for key, each in value.items()
    }


def _key(kind: type, key: str, where: str) -> Any:
    """A key, which JSON writes as a text."""
    if kind is str:
        return _scalar(str, key, f"a key of {where}")
    # Only one text is the number: otherwise two keys could be one.
    if not key.isascii() or not key.isdecimal() or len(key) > 18 or key != str(int(key)):
        raise _refusal(f"a key of {where}", "an integer", key)
    return decode(kind, int(key), f"a key of {where}")


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str) and _is_unicode(value):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int and number and isinstance(value, int) and abs(value) <= _LARGEST:
        return value
    if kind is float and number and abs(value) <= _LARGEST and math.isfinite(value):
        return float(value)
    words = {bool: "true or false", str: "a text", int: "an integer", float: "a number"}
    raise _refusal(where, words[kind], value)


def _is_unicode(text: str) -> bool:
    """Whether a text can be printed: JSON can hold halves of characters."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _refusal(where: str, rule: str, value: Any) -> InputError:
    return InputError(f"{where} must be {rule}, got {_text(value)}")


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
