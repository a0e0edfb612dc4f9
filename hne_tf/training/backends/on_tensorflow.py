"""Training on TensorFlow: mirrored over devices and machines."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import ml_collections
import tensorflow as tf

from hne_tf.errors import extra
from hne_tf.image_spec import ImageSpec
from hne_tf.training.fine_tuning.given import GivenModel
from hne_tf.training.machines.arithmetic import keep as keep_arithmetic
from hne_tf.training.machines.devices import accelerated, seeded
from hne_tf.training.machines.devices import strategy_of as devices_of
from hne_tf.training.machines.devices import use_best_threads as prepare
from hne_tf.training.run import TrainingRun
from hne_tf.training.schedule import Schedule

with extra("train"):
    import tensorboard  # noqa: F401 - tf.summary writes through it

__all__ = ["accelerated", "devices_of", "events", "keep_arithmetic", "prepare", "run", "seeded"]


def run(
    config: ml_collections.ConfigDict,
    images: ImageSpec,
    schedule: Schedule,
    devices: tf.distribute.Strategy,
    given: GivenModel | None = None,
) -> TrainingRun:
    """Builds the run that `devices` train, of the Keras model that it is cut from, if it is."""
    return TrainingRun(config, images, schedule, devices, given)


@contextlib.contextmanager
def events(folder: pathlib.Path) -> Iterator[Callable[[str, float, int], None]]:
    """What takes name, value and step of a figure, for TensorBoard."""
    with tf.summary.create_file_writer(str(folder)).as_default():
        yield tf.summary.scalar
