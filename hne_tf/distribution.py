"""The devices that a run is mirrored over, on one machine or several."""

import contextlib

import tensorflow as tf

from hne_tf.cluster import Cluster
from hne_tf.errors import InputError


def accelerated() -> bool:
    """Whether this machine trains on GPUs."""
    return bool(tf.config.list_physical_devices("GPU"))


def strategy_of(
    cluster: Cluster, logical_devices: int, batch_size: int
) -> tf.distribute.MirroredStrategy | tf.distribute.MultiWorkerMirroredStrategy:
    """Mirrors over the GPUs of every worker, or over CPU devices where there is none.

    Returns when all workers are there, for which it waits up to an hour.

    Args:
      cluster: the workers, as in `TF_CONFIG`.
      logical_devices: number of devices that the CPU is split into; more than
        one only before TensorFlow has started, and with a single worker.
      batch_size: the global batch, in images.

    Raises:
      InputError: if the batch does not divide by the devices, or TensorFlow is
        already running and cannot take up other devices or workers.
    """
    if logical_devices < 1:
        raise InputError(f"distribution.logical_devices must be 1 or more, got {logical_devices}")
    # Before the workers connect, so that all of them say so at once.
    _check_divides(batch_size, cluster.workers, "workers")
    if cluster.workers > 1:
        strategy = _multi_worker(cluster, logical_devices)
    else:
        # Two runs in one process fail between CPU devices: collective keys are the
        # process's. Reducing without collectives would take minutes to trace, since
        # every synchronised norm's gradient walks the whole graph of other replicas.
        devices = None if accelerated() else _cpu_devices(logical_devices)
        strategy = tf.distribute.MirroredStrategy(devices)
    _check_divides(batch_size, strategy.num_replicas_in_sync, "devices")
    return strategy


def _check_divides(batch_size: int, parts: int, what: str) -> None:
    if batch_size % parts:
        raise InputError(f"training.batch_size must divide by the {parts} {what}, got {batch_size}")


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
