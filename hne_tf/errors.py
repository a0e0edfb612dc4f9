"""Exceptions that are no defects."""

import contextlib
import re
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """Input breaks a rule; the message states the rule and the value received.

    Binaries turn it into one line on standard error and a non-zero exit code.
    Everything else that is raised is a defect and keeps its traceback.
    """


class MissingExtraError(ImportError, InputError):
    """An optional package is not installed; the message names the extra that brings it."""


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Wraps the imports of packages that only an extra of `hne_tf` installs.

    Args:
      name: of the extra in `pyproject.toml`, e.g. `"compress"`.

    Raises:
      MissingExtraError: if a package is missing.

    Example:
      >>> with extra("report"):
      ...     import matplotlib
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == __package__:
            raise
        raise MissingExtraError(
            f"{package} must be installed for this: pip install 'hne_tf[{name}]'",
            name=error.name,
        ) from None


def raised_in_graph(error: Exception) -> InputError | None:
    """The `InputError` that Python code in a TensorFlow graph raised, if it is one.

    TensorFlow hands an exception on as an error of its own, with the name and
    the message of the exception in its text.
    """
    found = re.search(rf"\b{InputError.__name__}: (.*)", str(error))
    return InputError(found.group(1)) if found else None


def in_one_line(error: BaseException) -> str:
    """Type and message of an exception, whose message can have several lines."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextlib.contextmanager
def ended_in_one_line() -> Iterator[None]:
    """Ends the process with any error in one line, for a parent that tells the last one."""
    try:
        yield
    except Exception as error:
        sys.exit(in_one_line(error))


class InterruptedRunError(RuntimeError):
    """A run has ended before its end, and goes on when its command is given again.

    Binaries turn it into one line on standard error and exit code 138, which
    says that trying again makes sense.
    """
