"""From a Keras model to a published version."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hne_tf.data import labelled
from hne_tf.data.labelled import Labelled
from hne_tf.errors import InputError
from hne_tf.evaluation import calibration, evaluation
from hne_tf.export import describe, signatures, verification, warmup
from hne_tf.exported import versions
from hne_tf.exported.interface import LeavesSignature
from hne_tf.exported.measurements import Accuracy, EarlyStopping
from hne_tf.exported.profiling import latency
from hne_tf.exported.saved_model import SavedModel
from hne_tf.exported.uncertainty import stopping
from hne_tf.exported.uncertainty.calibration import Calibration
from hne_tf.exported.versions import MANIFEST
from hne_tf.files import write_text
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.folding import deployed
from hne_tf.models.grouped_ensemble import GroupedEnsemble

_REFERENCE_IMAGES = 32


def export(
    model: TreeEnsemble | GroupedEnsemble,
    model_base_path: str | pathlib.Path,
    *,
    test: Labelled | None = None,
    validation: Labelled | None = None,
    version: int | None = None,
    sizes: Sequence[int] | None = None,
    leaves: Sequence[tuple[int, int]] = (),
    batch_sizes: Sequence[int] = (1,),
    stopping_rule: str = "confidence",
    calibrate: bool = False,
    coverage: float = 0.9,
    record: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = print,
) -> pathlib.Path:
    """Publishes a model as `<model_base_path>/<version>`, after proving that it answers alike.

    Args:
      model: trained in whatever way.
      model_base_path: folder of the model's versions; its name is the model's.
      test: images and labels for the accuracy in the manifest and for the proof, see
        `labelled.batches`. Without them the manifest has no accuracy, and the proof is
        on random images.
      validation: images and labels that thresholds of early stopping, temperatures and
        limits of prediction sets are fitted on.
      version: number of the new version, the next free one by default.
      sizes: ensemble sizes with a signature; `tree.sizes` by default. The full
        ensemble is always among them.
      leaves: pairs (a, b), such as `[(0, 8), (8, 16)]`: each gets a signature `leaves_<a>_<b>`
        of the leaves from a to before b, for answers that several servers compute together,
        see `SpreadClient`.
      batch_sizes: batches that are warmed up and profiled; a single image is
        profiled besides.
      stopping_rule: what the thresholds are of, one of `exported.uncertainty.stopping.RULES`.
      calibrate: whether the model's probabilities get a temperature for each size,
        fitted on the validation images; the manifest has them in any case.
      coverage: probability that a prediction set holds the label, for its limits in the
        manifest.
      record: JSON values for the manifest, such as the step of the model's run.
      report: gets a line per stage.

    Returns:
      The folder of the new version.

    Raises:
      InputError: for data, a size or a version that cannot be, or if the SavedModel
        differs from the live model; nothing is published then.

    Example:
      >>> export(model, "models/flowers", test=(x_test, y_test))
      PosixPath('models/flowers/1')
    """
    model_base_path = pathlib.Path(model_base_path)
    model = branched(model)
    sizes = exported_sizes(model, sizes)
    parts = tuple(map(LeavesSignature.of, leaves))
    if not batch_sizes or min(batch_sizes) < 1:
        raise InputError(f"batch sizes must be 1 or more, got {tuple(batch_sizes)}")
    model_name = model_base_path.resolve().name
    stopping.check_rule(stopping_rule)
    version = versions.next_version(model_base_path) if version is None else version
    fitted = calibrated(model, validation, calibrate, coverage)
    with versions.new_version(model_base_path, version) as folder:
        folded = deployed(model)
        temperatures = fitted.temperatures if calibrate else None
        endpoints = signatures.signatures(folded, sizes, temperatures, parts)
        warmup.check_count(endpoints, batch_sizes)
        signatures.save(endpoints, str(folder))
        count = warmup.write_requests(folder, model_name, endpoints, batch_sizes)
        report(f"saved {len(endpoints)} signatures and {count} warm-up requests")
        measured: dict[str, Any] = {"calibration": fitted, "leaves": parts}
        if test is not None:
            measured |= _measured(model, test, validation, sizes, stopping_rule, temperatures)
        manifest = describe.describe(folded, model_name, sizes, record, **measured)
        # Clients need to know the latency of one image.
        latencies = latency.measure(SavedModel(folder, manifest), sorted({1, *batch_sizes}))
        exported = SavedModel(folder, dataclasses.replace(manifest, latency=latencies))
        write_text(folder / MANIFEST, exported.manifest.to_text())
        images = reference_images(model, test)
        verification.verify(exported, images, model(images, training=False).numpy())
        kind = "random" if test is None else "test"
        report(f"verified every signature on {len(images)} {kind} images in a fresh process")
    return model_base_path / str(version)


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


def _measured(
    model: TreeEnsemble,
    test: Labelled,
    validation: Labelled | None,
    sizes: Sequence[int],
    stopping_rule: str,
    temperatures: Sequence[float] | None,
) -> dict[str, Any]:
    """What the manifest says of answers to test images."""
    result = evaluation.evaluate(model, test, validation, sizes, temperatures=temperatures)
    by_size = {row["size"]: row["accuracy"] for row in result["sizes"]}
    measured: dict[str, Any] = {"accuracy": Accuracy("test", result["examples"], by_size)}
    if by_rule := result["early_stopping_by_rule"]:
        measured["early_stopping"] = EarlyStopping.from_json(by_rule[stopping_rule])
    return measured
