"""A trained run, brought back from its workdir."""

import dataclasses
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import ml_collections
import numpy as np
import tensorflow as tf

from hne_tf.data import DataSet, load
from hne_tf.errors import InputError
from hne_tf.evaluation import evaluation
from hne_tf.files import read_json
from hne_tf.models import weights
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.quantized import QuantizedLayers
from hne_tf.training import build, checkpoints
from hne_tf.training import config as configs
from hne_tf.training.backends.array_checkpoint import ArrayCheckpoint
from hne_tf.training.schedule import Schedule
from hne_tf.training.workdir import Workdir

_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What evaluation and export need of a run.

    Attributes:
      config: its settings.
      data_set: what it was trained on.
      model: in the training factory's form, also if it was trained grouped, with
        the newest sound weights, averaged ones if the run averages; a compressed
        run's in the deploy factory's or that of `QuantizedLayers`.
      step: the step of those weights.
      total_steps: the step at which the run's schedule ends.
    """

    config: ml_collections.FrozenConfigDict
    data_set: DataSet
    model: TreeEnsemble
    step: int
    total_steps: int

    def batches(self, split: str, batch_size: int = _BATCH_SIZE) -> tf.data.Dataset:
        """Images and labels of a split of the run's data set, in order."""
        return self.data_set.evaluation_batches(split, batch_size)

    def other_batches(self, name: str, data_dir: str | None) -> tf.data.Dataset:
        """Test images and labels of another data set, read with the settings of the run's own.

        Args:
          name: as `config.data.name`.
          data_dir: where it lies, if not where TFDS keeps it.

        Raises:
          InputError: if there is no such data set.
        """
        config = ml_collections.ConfigDict(self.config.data.to_dict())
        config.update(name=name, data_dir=data_dir or "", train_examples=0)
        return load(config).evaluation_batches("test", _BATCH_SIZE)

    @property
    def record(self) -> dict[str, Any]:
        """What a manifest says of the run that a model comes from."""
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "config_digest": configs.digest(self.config, self.data_set.record.fingerprint),
        }

    def representative(self, count: int) -> Iterator[tf.Tensor]:
        """Batches of training images, unaugmented, spread evenly: data may be sorted by class.

        Raises:
          InputError: unless `count` is 1 or more.
        """
        if count < 1:
            raise InputError(f"representative_images must be 1 or more, got {count}")
        examples = self.data_set.examples("train")
        count = min(count, examples)
        indices = np.arange(count) * examples // count
        return (
            self.data_set.splits["train"].batch(tf.constant(indices[start : start + _BATCH_SIZE]))[
                0
            ]
            for start in range(0, count, _BATCH_SIZE)
        )

    def evaluate(
        self, split: str, sizes: Sequence[int] | None = None, coverage: float = 0.9
    ) -> dict[str, Any]:
        """Measures the run on a split.

        Args:
          split: `"test"`, `"validation"` or `"train"`.
          sizes: ensemble sizes, `tree.sizes` by default.
          coverage: probability that a prediction set holds the label.

        Returns:
          What `evaluation.evaluate` does, with `split`, `step`, `total_steps` and
          `skipped`, the number of corrupt images left out. Thresholds of early
          stopping are fitted on the validation split, and left out for that split.
        """
        validation = None if split == "validation" else self.batches("validation")
        measured = evaluation.evaluate(
            self.model,
            self.batches(split),
            validation,
            sizes,
            metrics=build.metrics(self.config),
            coverage=coverage,
        )
        return {
            "split": split,
            **measured,
            "skipped": self.data_set.examples(split) - measured["examples"],
            "step": self.step,
            "total_steps": self.total_steps,
        }


def restore(
    workdir: Workdir, data_dir: str | None = None, report: Callable[[str], None] = print
) -> TrainedRun:
    """Loads a run's data set and newest sound checkpoint, or a compressed run's weights.

    Args:
      workdir: the folder of the run.
      data_dir: where the data set lies, if not where the run found it.
      report: gets lines on what an image folder holds, one per damaged checkpoint
        that is passed over, and one if the run has not ended.

    Raises:
      InputError: if the folder holds no run, no data set or no sound checkpoint,
        or a compressed run's files are damaged.
    """
    config = ml_collections.ConfigDict(workdir.read_config())
    if data_dir is not None:
        config.data.data_dir = data_dir
    data_set = load(config.data)
    for line in data_set.found:
        report(line)
    _check_data(workdir, data_set, report)
    if workdir.compression_path.exists():
        return _restore_compressed(workdir, config, data_set)
    model = build.training_model(config, data_set.spec)
    kept = {"average" if config.training.ema_momentum else "model": model}
    by_name = checkpoints.has_arrays(workdir.checkpoints)
    if not by_name and keras.backend.backend() != "tensorflow":
        raise InputError(
            f"a run under KERAS_BACKEND={keras.backend.backend()} reads runs of that backend, got "
            f"{workdir.path}, which TensorFlow trained"
        )
    checkpoint = ArrayCheckpoint(kept) if by_name else tf.train.Checkpoint(**kept)
    step = checkpoints.restore_newest(checkpoint, workdir.checkpoints, report, partial=True)
    if step is None:
        raise InputError(f"{workdir.path} must hold a checkpoint; train first")
    total = Schedule.of(config, data_set.examples("train")).total
    if step < total:
        report(f"note: the run has come to step {step} of {total}")
    if isinstance(model, GroupedEnsemble):
        model = model.branched()
    return TrainedRun(ml_collections.FrozenConfigDict(config), data_set, model, step, total)


def _check_data(workdir: Workdir, data_set: DataSet, report: Callable[[str], None]) -> None:
    """Reports data that have changed since the run; raises `InputError` for other classes."""
    kept = workdir.read_data()
    if kept is None:
        return
    kept.check_classes(data_set.record)
    if difference := kept.difference(data_set.record):
        report(f"note: the data have changed since the run: {difference}")


def _restore_compressed(
    workdir: Workdir, config: ml_collections.ConfigDict, data_set: DataSet
) -> TrainedRun:
    """The run that `hne-compress` wrote."""
    description = read_json(workdir.compression_path)
    try:
        step, total = int(description["step"]), int(description["total_steps"])
        factory = description["factory"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{workdir.compression_path} must describe a compressed run: {error!r}"
        ) from None
    layers = _compressed_layers(factory)
    model = build.ensemble(config, layers, data_set.spec)
    try:
        values = weights.read_npz(workdir.weights_path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{workdir.weights_path} must hold sound weights: {error}") from None
    weights.load(model, values)
    return TrainedRun(ml_collections.FrozenConfigDict(config), data_set, model, step, total)


def _compressed_layers(name: str) -> DeployLayers:
    """The factory that a compressed run names.

    Raises:
      InputError: for any other name.
    """
    factories = {factory.__name__: factory for factory in (DeployLayers, QuantizedLayers)}
    if name not in factories:
        raise InputError(f"factory must be one of {', '.join(factories)}, got {name!r}")
    return factories[name]()
