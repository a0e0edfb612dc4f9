"""Compares every signature of a TFLite file with the live model."""

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from hne_tf.errors import InputError
from hne_tf.export import verification
from hne_tf.exported.model import ExportedModel
from hne_tf.exported.steps import walk

# Largest difference between any answer of a file and NumPy on the live model's leaf
# logits, as a part of the largest value, which is at least 1. Float16 weights have 11
# bits, and errors add up over layers.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2}
# Integers are compared within the file: a walk of steps is the ensemble in one call.
QUANTIZED_TOLERANCE = 1e-4
# And the full ensemble gives the live model's class for at least this part of images.
LEAST_AGREEMENT = 0.75

# What is compared; the caches of a step are compared by what the next steps make of them.
_ENSEMBLE_OUTPUTS = frozenset({"logits", "probabilities"})
_STEP_OUTPUTS = frozenset({"running_sum", "probabilities"})

# By size and name.
_OutputsBySize = Mapping[int, Mapping[str, np.ndarray]]


def verify(
    exported: ExportedModel,
    images: np.ndarray,
    leaf_logits: np.ndarray,
    same_integers: bool = True,
) -> float:
    """Compares every signature of a file with the live model.

    Args:
      exported: the file.
      images: uint8 `[batch, height, width, channels]`.
      leaf_logits: the live model's answer, `[batch, leaves, classes]`.
      same_integers: whether a node of an int8 file is the same in every signature, and
        a walk of steps gives what the ensembles give.

    Returns:
      The part of the images to which the full ensemble of the file, in one call and
      by steps, gives the same class as the live model.

    Raises:
      InputError: on differences above `TOLERANCES` for floating point, on steps
        that differ from ensembles by more than `QUANTIZED_TOLERANCE` or an
        agreement below `LEAST_AGREEMENT` for integers; without images; and if the
        file lacks a signature or an output of the live model, or has a signature
        that is not in its manifest.
    """
    mode, average = exported.mode, exported.manifest.average
    if not len(images):
        raise InputError("a file is verified on at least one image, got none")
    full = leaf_logits.shape[1]
    expected = {
        size: verification.expected_answer(
            leaf_logits, size, average, exported.manifest.temperature(size)
        )
        for size in range(1, full + 1)
    }
    _check_signatures(exported, full)
    ensembles, steps = _ensembles(exported, images), walk(exported.steps, images)
    classes = expected[full]["probabilities"].argmax(-1)
    agreement = min(
        np.mean(answers[full]["probabilities"].argmax(-1) == classes)
        for answers in (ensembles, steps)
    )
    if mode in TOLERANCES:
        tolerance = TOLERANCES[mode]
        findings = [
            *_differences("ensemble", ensembles, expected, _ENSEMBLE_OUTPUTS, tolerance),
            *_differences("step", steps, expected, _STEP_OUTPUTS, tolerance),
        ]
    else:
        walked = {size: steps[size] for size in ensembles}
        tolerance = QUANTIZED_TOLERANCE if same_integers else np.inf
        findings = [*_differences("step", walked, ensembles, {"probabilities"}, tolerance)]
        if not agreement >= LEAST_AGREEMENT:
            findings.append(
                f"{agreement:.0%} of the classes are the live model's, below {LEAST_AGREEMENT:.0%}"
            )
    if findings:
        raise InputError(f"export refused, {len(findings)} findings: {'; '.join(findings[:3])}")
    return float(agreement)


def _check_signatures(exported: ExportedModel, full: int) -> None:
    """Raises `InputError` unless the file has all that its manifest lists and nothing else."""
    found, listed = exported.signature_names(), verification.listed_signatures(exported.manifest)
    if found != listed or exported.sizes[-1] != full:
        raise InputError(
            f"export refused: a file must have the {full} steps and the full ensemble, all in "
            f"its manifest, got {sorted(found)} and a manifest of {sorted(listed)}"
        )


def _ensembles(exported: ExportedModel, images: np.ndarray) -> _OutputsBySize:
    """What each ensemble signature answers, by size."""
    return {
        entry.size: exported.signature(entry.name).run({"images": images})
        for entry in exported.manifest.signatures
    }


def _differences(
    kind: str,
    answers: _OutputsBySize,
    expected: _OutputsBySize,
    outputs: Collection[str],
    tolerance: float,
) -> Iterator[str]:
    """A line per value of the `outputs` that is not the expected one or is missing."""
    for size, answer in answers.items():
        for output in sorted(outputs):
            if output not in answer:
                yield f"{kind}_{size} must give {output}, got {sorted(answer)}"
                continue
            difference = verification.relative_difference(answer[output], expected[size][output])
            if not difference <= tolerance:
                yield f"{output} of {kind}_{size} differs by {difference:.2g}, above {tolerance}"
