"""Exceptions that are no defects."""

import contextlib
import re
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


class InterruptedRunError(RuntimeError):
    """A run has ended before its end, and goes on when its command is given again.

    Binaries turn it into one line on standard error and exit code 138, which
    says that trying again makes sense.
    """
