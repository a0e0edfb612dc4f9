"""The devices, threads and seeds of a run, on one machine or several."""

import contextlib
import random
from collections.abc import Iterator

import keras
import ml_collections
import numpy as np
import tensorflow as tf

# Neither library has a public way to read a seed, or to end determinism.
from keras.src.backend.common import global_state
from tensorflow.python.eager import context
from tensorflow.python.framework.config import disable_op_determinism, is_op_determinism_enabled

from hne_tf import hardware
from hne_tf.errors import InputError
from hne_tf.models.layers.factory import LEAST_CHANNELS
from hne_tf.models.layers.training import SubsampledConv2D
from hne_tf.training import build
from hne_tf.training.config import check
from hne_tf.training.machines.cluster import Cluster, check_divides
from hne_tf.tree import Paths

# Keras's names of its seed, and of the generator that it draws from.
_KERAS_SEEDS = ("global_random_seed", "global_seed_generator")


def accelerated() -> bool:
    """Whether this machine trains on GPUs."""
    return bool(tf.config.list_physical_devices("GPU"))


def strategy_of(
    config: ml_collections.ConfigDict, cluster: Cluster
) -> tf.distribute.MirroredStrategy | tf.distribute.MultiWorkerMirroredStrategy:
    """Mirrors over the GPUs of every worker, or over CPU devices where there is none.

    Returns when all workers are there, for which it waits up to an hour.

    Args:
      config: settings of the run. More than one of `distribution.logical_devices`,
        and a choice of `distribution.operation_threads`, need a TensorFlow that has
        not started.
      cluster: the workers, as in `TF_CONFIG`.

    Raises:
      InputError: if the batch does not divide by the devices, or TensorFlow is
        already running and cannot take up other threads, devices or workers.
    """
    section, batch_size = config.distribution, config.training.batch_size
    if section.logical_devices < 1:
        raise InputError(
            f"distribution.logical_devices must be 1 or more, got {section.logical_devices}"
        )
    # Before the workers connect, so that all of them say so at once.
    check_divides(batch_size, cluster.workers, "workers")
    choice = config.distribution.operation_threads
    if choice < 0:
        raise InputError(f"distribution.operation_threads must be 0 or more, got {choice}")
    if choice and not _set_threads(choice):
        running = tf.config.threading.get_intra_op_parallelism_threads()
        raise InputError(
            "distribution.operation_threads must be set before TensorFlow starts, which runs "
            f"with {running or 'its own number'}, got {choice}"
        )
    if cluster.workers > 1:
        strategy = _multi_worker(cluster, section.logical_devices)
    else:
        # Two runs in one process fail between CPU devices: collective keys are the
        # process's. Reducing without collectives would take minutes to trace, since
        # every synchronised norm's gradient walks the whole graph of other replicas.
        devices = None if accelerated() else _cpu_devices(section.logical_devices)
        strategy = tf.distribute.MirroredStrategy(devices)
    check_divides(batch_size, strategy.num_replicas_in_sync, "devices")
    return strategy


def operation_threads(tree: Paths, logical_devices: int, cores: int) -> int:
    """Threads for an operation of a branched model on a CPU, so that branches keep it busy.

    TensorFlow computes as many operations at once as there are cores, and gives each
    of them all cores. The operations of a small branch are faster with less: their
    threads wait for each other longer than they compute.
    """
    return max(1, round(cores / (tree.parallel_nodes * logical_devices)))


def check_kernels(model: keras.Model) -> None:
    """Checks that a CPU computes a model's gradients right.

    Raises:
      InputError: for a convolution that oneDNN, if TensorFlow computes with it, gets
        wrong; see `models.layers.factory.subsampled`, by which ours avoid it.
    """
    if accelerated() or not hardware.has_onednn():
        return
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            check_kernels(layer)
        elif isinstance(layer, keras.layers.Conv2D) and not isinstance(layer, SubsampledConv2D):
            channels = layer.kernel.shape[-2]
            strided = layer.kernel_size == (1, 1) and max(layer.strides) > 1
            if strided and channels < LEAST_CHANNELS:
                raise InputError(
                    "a strided 1x1 convolution must have "
                    f"{LEAST_CHANNELS} input channels or more, got {channels} in {layer.name}, "
                    "whose gradients oneDNN computes wrongly on some CPUs; set "
                    f"{hardware.ONEDNN_VARIABLE}=0 to train without oneDNN"
                )


def use_best_threads(config: ml_collections.ConfigDict) -> None:
    """Divides a CPU's cores between the branches of a run and the threads of an operation.

    For the process of a run: it changes TensorFlow's threads for whatever else the
    process computes. A choice of `distribution.operation_threads` is left to
    `strategy_of`. A TensorFlow that has started keeps its threads, and so do operations
    that compute all branches, or a GPU's.

    Args:
      config: settings of the run.

    Raises:
      InputError: for settings that describe no run.
    """
    check(config)
    if config.distribution.operation_threads or accelerated():
        return
    if not build.is_grouped(config, accelerated=False):
        devices = max(1, config.distribution.logical_devices)
        _set_threads(operation_threads(build.tree(config), devices, hardware.cores()))


def _set_threads(threads: int) -> bool:
    """Whether an operation has that many threads now, which a started TensorFlow fixes."""
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    return tf.config.threading.get_intra_op_parallelism_threads() == threads


@contextlib.contextmanager
def seeded(seed: int, deterministic: bool) -> Iterator[None]:
    """Seeds Python, NumPy, TensorFlow and Keras while the block runs.

    What they had before is theirs again afterwards.

    Args:
      seed: for all of them.
      deterministic: whether TensorFlow's operations are deterministic meanwhile.
    """
    states = random.getstate(), np.random.get_state()
    keras_seeds = {name: global_state.get_global_attribute(name) for name in _KERAS_SEEDS}
    tensorflow_seed, was_deterministic = context.global_seed(), is_op_determinism_enabled()
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    try:
        yield
    finally:
        if not was_deterministic:
            disable_op_determinism()
        context.set_global_seed(tensorflow_seed)
        for name, value in keras_seeds.items():
            global_state.set_global_attribute(name, value)
        random.setstate(states[0])
        np.random.set_state(states[1])


def _multi_worker(
    cluster: Cluster, logical_devices: int
) -> tf.distribute.MultiWorkerMirroredStrategy:
    if logical_devices > 1:
        raise InputError(
            "distribution.logical_devices must be 1 with several workers, "
            f"got {logical_devices} with {cluster.workers}"
        )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise InputError(
            "several workers can only train where TensorFlow has not been used before, "
            f"got {cluster.workers} in TF_CONFIG: {error}"
        ) from None


def _cpu_devices(count: int) -> list[str]:
    """Names of `count` logical CPU devices; splits the CPU if TensorFlow has not started."""
    if count > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        # A RuntimeError says that TensorFlow has started; the check below tells.
        with contextlib.suppress(RuntimeError):
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * count
            )
    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    if len(names) < count:
        raise InputError(
            "distribution.logical_devices must be set before TensorFlow starts, which runs "
            f"with {len(names)}, got {count}"
        )
    return names[:count]
