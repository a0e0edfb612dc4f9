"""The devices that a run is mirrored over."""

import contextlib

import tensorflow as tf

from hne_tf.errors import InputError


def mirrored_strategy(logical_devices: int, batch_size: int) -> tf.distribute.MirroredStrategy:
    """Mirrors over all GPUs, or over logical CPU devices where there is none.

    Args:
      logical_devices: number of devices that the CPU is split into; more than
        one only before TensorFlow has started.
      batch_size: the global batch, in images.

    Raises:
      InputError: if the batch does not divide by the devices, or TensorFlow is
        already running with another number of CPU devices.
    """
    if logical_devices < 1:
        raise InputError(f"distribution.logical_devices must be 1 or more, got {logical_devices}")
    # Two runs in one process fail between CPU devices: collective keys are the
    # process's. Reducing without collectives would take minutes to trace, since
    # every synchronised norm's gradient walks the whole graph of other replicas.
    gpus = tf.config.list_physical_devices("GPU")
    strategy = tf.distribute.MirroredStrategy(None if gpus else _cpu_devices(logical_devices))
    if batch_size % strategy.num_replicas_in_sync:
        raise InputError(
            f"training.batch_size must divide by the {strategy.num_replicas_in_sync} devices, "
            f"got {batch_size}"
        )
    return strategy


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
