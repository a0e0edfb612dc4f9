"""Exceptions that are no defects."""

import re


class InputError(ValueError):
    """Input breaks a rule; the message states the rule and the value received.

    Binaries turn it into one line on standard error and a non-zero exit code.
    Everything else that is raised is a defect and keeps its traceback.
    """


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
