"""A trained run, brought back from its workdir."""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Callable

import ml_collections
import tensorflow as tf

from hne_tf.data import DataSet, load
from hne_tf.errors import InputError
from hne_tf.models import weights
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.layers.factory import DeployLayers
from hne_tf.models.layers.quantized import QuantizedLayers
from hne_tf.training import build, checkpoints
from hne_tf.training.schedule import Schedule
from hne_tf.training.workdir import Workdir


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
    if workdir.compression_path.exists():
        return _restore_compressed(workdir, config, data_set)
    model = build.training_model(config, data_set.spec)
    kept = "average" if config.training.ema_momentum else "model"
    step = checkpoints.restore_newest(
        tf.train.Checkpoint(**{kept: model}), workdir.checkpoints, report, partial=True
    )
    if step is None:
        raise InputError(f"{workdir.path} must hold a checkpoint; train first")
    total = Schedule.of(config, data_set.examples("train")).total
    if step < total:
        report(f"note: the run has come to step {step} of {total}")
    if isinstance(model, GroupedEnsemble):
        values = weights.read(model)
        model = build.ensemble(config, build.training_layers(config), data_set.spec)
        weights.load(model, values)
    return TrainedRun(ml_collections.FrozenConfigDict(config), data_set, model, step, total)


def _restore_compressed(
    workdir: Workdir, config: ml_collections.ConfigDict, data_set: DataSet
) -> TrainedRun:
    """The run that `hne-compress` wrote."""
    try:
        description = json.loads(workdir.compression_path.read_text())
        step, total = int(description["step"]), int(description["total_steps"])
        factory = description["factory"]
    except (OSError, ValueError, KeyError, TypeError) as error:
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
