"""What every export does with a model before it writes one."""

from collections.abc import Sequence

import numpy as np

from hne_tf.data import labelled
from hne_tf.data.labelled import Labelled
from hne_tf.errors import InputError
from hne_tf.evaluation import calibration, evaluation
from hne_tf.exported.uncertainty.calibration import Calibration
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.grouped_ensemble import GroupedEnsemble

_REFERENCE_IMAGES = 32


def calibrated(
    model: TreeEnsemble, validation: Labelled | None, calibrate: bool, coverage: float
) -> Calibration | None:
    """What the manifest says of calibration; None without validation images.

    Args:
      model: to be published.
      validation: images and labels, see `labelled.batches`.
      calibrate: whether the published model's probabilities get the temperatures.
      coverage: of prediction sets.

    Raises:
      InputError: for a coverage outside (0, 1), or if there are no images to calibrate on.
    """
    calibration.check_coverage(coverage)
    if validation is None:
        if calibrate:
            raise InputError("a model is calibrated on validation images, got none")
        return None
    answers = evaluation.split_answers(model, validation)
    if not calibrate:
        return calibration.for_manifest(answers, coverage)
    temperatures = calibration.fit_temperatures(answers)
    rescaled = calibration.rescaled(answers, temperatures)
    return calibration.for_manifest(rescaled, coverage, temperatures)


def branched(model: TreeEnsemble | GroupedEnsemble) -> TreeEnsemble:
    """The form of a model that is exported.

    Raises:
      InputError: for a model that is no ensemble.
    """
    if isinstance(model, GroupedEnsemble):
        return model.branched()
    if not isinstance(model, TreeEnsemble):
        raise InputError(f"a model must be an hne_tf.TreeEnsemble, got {type(model).__name__}")
    return model


def exported_sizes(model: TreeEnsemble, sizes: Sequence[int] | None) -> tuple[int, ...]:
    """The ensemble sizes of an export, increasing; the full ensemble is always among them.

    Raises:
      InputError: for a size that the tree does not have.
    """
    for size in sizes or ():
        model.tree.check_size(size)
    return tuple(sorted({*(sizes or model.tree.sizes), model.tree.leaves}))


def reference_images(model: TreeEnsemble, data: Labelled | None) -> np.ndarray:
    """Images to compare answers on, uint8 `[batch, ...]`; random ones without data."""
    if data is None:
        random = np.random.default_rng(0)
        return random.integers(0, 256, (_REFERENCE_IMAGES, *model.images.shape), np.uint8)
    images, _ = next(labelled.batches(data, model.images.shape, _REFERENCE_IMAGES))
    return images[:_REFERENCE_IMAGES]
