"""A trained run, brought back from its workdir."""

import dataclasses
from collections.abc import Callable

import ml_collections
import tensorflow as tf

from hne_tf import build, checkpoints
from hne_tf.data import DataSet, load
from hne_tf.errors import InputError
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.schedule import Schedule
from hne_tf.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What evaluation and export need of a run.

    Attributes:
      config: its settings.
      data_set: what it was trained on.
      model: in the training factory's form, with the newest sound weights.
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
    """Loads a run's data set and newest sound checkpoint.

    Args:
      workdir: the folder of the run.
      data_dir: where the data set lies, if not where the run found it.
      report: gets a line per damaged checkpoint that is passed over, and one
        if the run has not ended.

    Raises:
      InputError: if the folder holds no run, no data set or no sound checkpoint.
    """
    config = ml_collections.ConfigDict(workdir.read_config())
    if data_dir is not None:
        config.data.data_dir = data_dir
    data_set = load(config.data)
    model = build.ensemble(config, build.training_layers(config), data_set.spec)
    step = checkpoints.restore_newest(
        tf.train.Checkpoint(model=model), workdir.checkpoints, report, partial=True
    )
    if step is None:
        raise InputError(f"{workdir.path} must hold a checkpoint; train first")
    total = Schedule.of(config, data_set.examples("train")).total
    if step < total:
        report(f"note: the run has come to step {step} of {total}")
    return TrainedRun(ml_collections.FrozenConfigDict(config), data_set, model, step, total)
