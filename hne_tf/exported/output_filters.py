"""Which outputs clients ask a signature for: what they send, and what is warmed up.

TF Serving builds an executor for each set of outputs that is asked for. The first
call that asks for another set waits for it, hundreds of milliseconds.
"""

# What a request sends as `output_filter`; an empty one asks for all outputs.
OutputFilter = tuple[str, ...]

ALL: OutputFilter = ()
# Of clients that choose an ensemble by a budget.
ENSEMBLE: OutputFilter = ("probabilities",)
# Of clients that walk through the steps: the next ones start from any of the outputs.
STEP: OutputFilter = ALL


def asked(signature: str) -> tuple[OutputFilter, ...]:
    """The sets of outputs that a signature of an export is asked for."""
    if signature.startswith("ensemble_"):
        return ALL, ENSEMBLE
    if signature.startswith("step_"):
        return (STEP,)
    return (ALL,)
