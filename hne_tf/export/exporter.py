"""From a Keras model to a published version."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hne_tf.data.labelled import Labelled
from hne_tf.errors import InputError
from hne_tf.evaluation import evaluation
from hne_tf.export import describe, litert_file, preparation, signatures, verification, warmup
from hne_tf.exported import versions
from hne_tf.exported.interface import LeavesSignature
from hne_tf.exported.measurements import Accuracy, EarlyStopping
from hne_tf.exported.profiling import runtimes
from hne_tf.exported.saved_model import SavedModel
from hne_tf.exported.uncertainty import stopping
from hne_tf.exported.versions import MANIFEST
from hne_tf.files import write_text
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.folding import deployed
from hne_tf.models.grouped_ensemble import GroupedEnsemble


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
    litert: bool = False,
    threads: Sequence[int] = (),
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
      litert: whether the version carries a TFLite file, which servers compute with LiteRT
        where that was measured to be faster.
      threads: numbers of threads to measure latency with, and with the ways in which
        TensorFlow uses them, see `profiling.runtimes.measure`; each loads the model in a
        process of its own. By default it is measured in this process.
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
    model = preparation.branched(model)
    sizes = preparation.exported_sizes(model, sizes)
    parts = tuple(map(LeavesSignature.of, leaves))
    for name, numbers in {"batch sizes": batch_sizes or [0], "threads": threads}.items():
        if numbers and min(numbers) < 1:
            raise InputError(f"{name} must be 1 or more, got {tuple(numbers)}")
    model_name = model_base_path.resolve().name
    stopping.check_rule(stopping_rule)
    version = versions.next_version(model_base_path) if version is None else version
    fitted = preparation.calibrated(model, validation, calibrate, coverage)
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
        images = preparation.reference_images(model, test)
        leaf_logits = model(images, training=False).numpy()
        kind = "random" if test is None else "test"
        if litert:
            litert_file.write(folder, folded, manifest, temperatures, images, leaf_logits)
            report(f"verified the TFLite file on {len(images)} {kind} images")
        # Processes that measure open the version as anybody does.
        write_text(folder / MANIFEST, manifest.to_text())
        # Clients need to know the latency of one image.
        of_tensorflow, of_litert = runtimes.measure(
            SavedModel(folder, manifest), sorted({1, *batch_sizes}), threads
        )
        manifest = dataclasses.replace(manifest, latency=of_tensorflow, litert=of_litert)
        exported = SavedModel(folder, manifest)
        write_text(folder / MANIFEST, manifest.to_text())
        verification.verify(exported, images, leaf_logits)
        report(f"verified every signature on {len(images)} {kind} images in a fresh process")
    return model_base_path / str(version)


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
