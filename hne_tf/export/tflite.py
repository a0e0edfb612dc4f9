"""From a trained run to one TFLite file with a signature per ensemble size and step."""

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hne_tf import hardware
from hne_tf.data import labelled
from hne_tf.data.labelled import Labelled
from hne_tf.errors import InputError
from hne_tf.evaluation import calibration, cost, early_stopping
from hne_tf.evaluation.calibration import SplitAnswers, SplitGatherer
from hne_tf.evaluation.early_stopping import AnswerGatherer, Answers
from hne_tf.export import (
    describe,
    preparation,
    ranges,
    signatures,
    tflite_packing,
    tflite_verification,
)
from hne_tf.export.post_training import post_training
from hne_tf.exported import tflite_file
from hne_tf.exported.interface import Normalisation
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.measurements import Accuracy, EarlyStopping
from hne_tf.exported.model import load
from hne_tf.exported.session import AnytimeSession
from hne_tf.exported.steps import StepRunner
from hne_tf.exported.uncertainty import stopping
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.folding import deployed
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.layers.quantized import QuantizedLayers

_BATCH_SIZE = 100

_LEAST_PROBABILITY = 1e-9


def convert(
    model: TreeEnsemble,
    sizes: Sequence[int],
    mode: str,
    representative: Any = None,
    temperatures: Sequence[float] | None = None,
) -> bytes:
    """Converts a model with all its signatures, which share the weights.

    The signatures are `ensemble_<n>` and `step_<n>` of `export.signatures`;
    `serving_default` is left out, as it would be a second graph of the full
    ensemble.

    Args:
      model: built by the deploy factory, or for `"int8"` by that of
        `QuantizedLayers`, whose ranges and rounded kernels are the file's: there
        is no calibration, and a node is the same integers in every signature.
        What runs over the leaves, sum, mean and softmax, stays in float. An
        architecture with layers of its own is calibrated by the converter, which
        rounds all of it, in each signature by ranges of its own.
      sizes: ensemble sizes; the full one is always among them.
      mode: one of `tflite_file.MODES`. `"float16"` stores weights in half the
        bytes and computes as the device likes; `"dynamic_range"` stores large
        weights in 8 bits and rounds activations as it meets them.
      representative: batches of images that the converter calibrates with.
      temperatures: what the logits of each size from 1 to N are divided by.

    Returns:
      The flatbuffer.

    Raises:
      InputError: for an unknown mode, size or average, or a model in a form that
        the mode does not take.
    """
    check_mode(mode, model)
    calibrates = _calibrates(model, mode)
    if mode == "int8" and not calibrates and not isinstance(model.factory, QuantizedLayers):
        # The converter would make dynamic ranges of it without a word.
        raise InputError(
            "int8 takes a model in the form of QuantizedLayers, "
            f"got one of {type(model.factory).__name__}"
        )
    endpoints = signatures.signatures(model, sizes, temperatures)
    del endpoints["serving_default"]
    with tempfile.TemporaryDirectory() as folder:
        signatures.save(endpoints, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(endpoints))
        if mode != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if mode == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if calibrates:
            converter.representative_dataset = ranges.representative(
                model, endpoints, _batches(_given(representative))
            )
        return tflite_packing.pack(converter.convert())


def convert_tflite(
    model: TreeEnsemble | GroupedEnsemble,
    path: str | pathlib.Path,
    mode: str = "float32",
    *,
    representative: Any = None,
    test: Labelled | None = None,
    validation: Labelled | None = None,
    sizes: Sequence[int] | None = None,
    stopping_rule: str = "confidence",
    calibrate: bool = False,
    coverage: float = 0.9,
    record: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = print,
) -> Manifest:
    """Writes a model as a TFLite file, after proving that it answers alike.

    Args:
      model: trained in whatever way. One in the form of `QuantizedLayers` goes into
        `"int8"` as it is; any other is quantised after training.
      path: the file, which must not exist; its stem is the model's name.
      mode: see `convert`.
      representative: training images, uint8 `[examples, height, width, channels]` or
        batches of them, whose activations set the ranges of post-training `"int8"`.
      test: images and labels for the accuracy in the manifest and for the proof, see
        `labelled.batches`; the proof is on random images without them.
      validation: images and labels that thresholds of early stopping, temperatures and
        limits of prediction sets are fitted on.
      sizes: ensemble sizes with a signature, `tree.sizes` by default; the full
        ensemble is always among them, and the steps come to every size.
      stopping_rule: what the thresholds are of, one of `exported.uncertainty.stopping.RULES`.
      calibrate: as for `exporter.export`.
      coverage: likewise.
      record: JSON values for the manifest, such as the step of the model's run.
      report: gets a line per stage.

    Returns:
      The manifest in the file: that of a SavedModel without latencies, with the
      `mode` and the normalisation inside the graph. Accuracy, for every size
      from 1 to N, and thresholds of early stopping are the file's own.

    Raises:
      InputError: for data, a path, mode or size that cannot be, or if the file
        differs from the live model; nothing is written then.

    Example:
      >>> convert_tflite(model, "flowers.tflite", mode="int8", representative=x_train)
    """
    path = pathlib.Path(path)
    check_path(path)
    model = preparation.branched(model)
    check_mode(mode, model)
    stopping.check_rule(stopping_rule)
    sizes = preparation.exported_sizes(model, sizes)
    fitted = preparation.calibrated(model, validation, calibrate, coverage)
    temperatures = fitted.temperatures if calibrate else None
    converted = _converted_form(model, mode, representative)
    flatbuffer = convert(converted, sizes, mode, representative, temperatures)
    manifest = _describe(path.stem, converted, sizes, mode, record)
    manifest = dataclasses.replace(manifest, calibration=fitted)
    with tempfile.TemporaryDirectory() as folder:
        written = pathlib.Path(folder) / path.name
        tflite_file.write(written, flatbuffer, manifest)
        images = preparation.reference_images(model, test)
        agreement = tflite_verification.verify(
            load(written),
            images,
            model(images, training=False).numpy(),
            same_integers=not _calibrates(converted, mode),
        )
        kind = "random" if test is None else "test"
        report(
            f"verified every signature on {len(images)} {kind} images; "
            f"{agreement:.0%} of the classes are the live model's"
        )
        if test is not None:
            steps = load(written, hardware.cores()).steps
            measured = _measured(
                steps, converted, test, validation, stopping_rule, coverage, temperatures
            )
            manifest = dataclasses.replace(manifest, **measured)
    check_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tflite_file.write(path, flatbuffer, manifest)
    return tflite_file.read_manifest(path)


def check_path(path: pathlib.Path) -> None:
    """Raises `InputError` unless a file can be written to `path`."""
    if path.suffix != ".tflite":
        raise InputError(f"a TFLite file's name must end in .tflite, got {path}")
    if path.exists():
        raise InputError(f"a file is never overwritten, and {path} exists")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path} must lie in a folder that can be written, got {folder}")


def check_mode(mode: str, model: TreeEnsemble) -> None:
    """Raises `InputError` unless `mode` is known and takes what the model was trained as."""
    if mode not in tflite_file.MODES:
        raise InputError(f"mode must be one of {', '.join(tflite_file.MODES)}, got {mode!r}")
    if isinstance(model.factory, QuantizedLayers) and mode != "int8":
        raise InputError(f"a model trained with quantisation converts to int8 only, got {mode!r}")


def _answers(runner: StepRunner, data: Labelled) -> tuple[Answers, SplitAnswers]:
    """What every ensemble size of a file answers to images, in one walk over the steps."""
    answers, split = AnswerGatherer(), SplitGatherer()
    for images, labels in labelled.batches(data, runner.image_shape, _BATCH_SIZE):
        session = AnytimeSession(runner, images)
        probabilities = np.stack([answer for _, answer in session], axis=1)
        answers.add(labels, probabilities, session.leaf_outputs)
        # Rounded to integers, probabilities can be 0.
        split.add(labels, np.log(np.maximum(probabilities, _LEAST_PROBABILITY)))
    return answers.result(), split.result()


def _measured(
    runner: StepRunner,
    model: TreeEnsemble,
    test: Labelled,
    validation: Labelled | None,
    stopping_rule: str,
    coverage: float,
    temperatures: Sequence[float] | None,
) -> dict[str, Any]:
    """What the manifest says of a file's answers to test images."""
    tested, _ = _answers(runner, test)
    by_size = enumerate(map(float, tested.correct.mean(axis=0)), start=1)
    measured = {"accuracy": Accuracy("test", len(tested.correct), dict(by_size))}
    if validation is not None:
        costs = [each.multiply_adds for each in cost.per_size_walked(model).values()]
        fitted_on, split = _answers(runner, validation)
        measured["calibration"] = calibration.for_manifest(split, coverage, temperatures)
        calibrated = early_stopping.calibrated(
            fitted_on, tested, costs, model.tree.sizes, stopping_rule
        )
        measured["early_stopping"] = EarlyStopping.from_json(calibrated)
    return measured


def _converted_form(model: TreeEnsemble, mode: str, representative: Any) -> TreeEnsemble:
    """The model as the converter takes it."""
    if mode != "int8" or isinstance(model.factory, QuantizedLayers):
        return deployed(model)
    images = _given(representative)
    if _calibrates(model, mode):
        return deployed(model)
    return post_training(deployed(model), _batches(images))


def _calibrates(model: TreeEnsemble, mode: str) -> bool:
    """Whether the converter measures the ranges itself."""
    return mode == "int8" and model.architecture.brings_layers


def _given(representative: Any) -> Any:
    if representative is None:
        raise InputError("int8 needs representative training images to set its ranges, got none")
    return representative


def _batches(images: Any) -> Iterable[Any]:
    """Images, which may come in batches, in batches."""
    if not hasattr(images, "shape"):
        return images
    return (images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE))


def _describe(
    name: str,
    model: TreeEnsemble,
    sizes: Sequence[int],
    mode: str,
    record: Mapping[str, Any] | None,
) -> Manifest:
    """The manifest, but for what is measured with the file."""
    mean, std = (tuple(map(float, each)) for each in (model.images.mean, model.images.std))
    return describe.describe(
        model,
        name,
        sizes,
        record,
        mode=mode,
        serving_default=False,
        # Callers give raw pixels; this is for the record.
        normalisation=Normalisation(inside_the_model=True, mean=mean, std=std),
    )
