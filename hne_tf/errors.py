"""The one exception for input that a user can put right."""


class InputError(ValueError):
    """Input breaks a rule; the message states the rule and the value received.

    Binaries turn it into one line on standard error and a non-zero exit code.
    Everything else that is raised is a defect and keeps its traceback.
    """
