"""Training on JAX, without TensorFlow."""

import contextlib
import os
import pathlib
import random
from collections.abc import Callable, Iterator, Sequence

import jax
import ml_collections
import numpy as np

# Keras's `set_random_seed` would load TensorFlow.
from keras.src.backend.common import global_state

from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.training.backends.jax_run import JaxRun
from hne_tf.training.fine_tuning.given import GivenModel
from hne_tf.training.machines.cluster import Cluster, check_divides
from hne_tf.training.schedule import Schedule
from hne_tf.training.workdir import Workdir

# Keras's names of its seed, and of the generator that it draws from.
_KERAS_SEEDS = ("global_random_seed", "global_seed_generator")
_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def prepare(config: ml_collections.ConfigDict) -> None:
    """Splits the CPU into the devices of a run, which a JAX that has started cannot."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(1, config.distribution.logical_devices))


def accelerated() -> bool:
    """Whether this machine trains on accelerators."""
    return jax.default_backend() != "cpu"


def devices_of(config: ml_collections.ConfigDict, cluster: Cluster) -> Sequence[jax.Device]:
    """All accelerators of this machine, or CPU devices where there is none.

    Raises:
      InputError: for settings that are TensorFlow's, or a batch that does not divide.
    """
    section = config.distribution
    if cluster.workers > 1:
        raise InputError(
            "several workers in TF_CONFIG train under KERAS_BACKEND=tensorflow only, "
            f"got {cluster.workers} under jax"
        )
    if section.operation_threads:
        raise InputError(
            "distribution.operation_threads must be 0 under KERAS_BACKEND=jax, "
            f"got {section.operation_threads}"
        )
    if section.logical_devices < 1:
        raise InputError(
            f"distribution.logical_devices must be 1 or more, got {section.logical_devices}"
        )
    devices = jax.local_devices()
    if not accelerated():
        if len(devices) < section.logical_devices:
            raise InputError(
                "distribution.logical_devices must be set before JAX starts, which runs with "
                f"{len(devices)}, got {section.logical_devices}"
            )
        devices = devices[: section.logical_devices]
    check_divides(config.training.batch_size, len(devices), "devices")
    if len(devices) > 1 and section.synchronized_norm == "off":
        raise InputError(
            "distribution.synchronized_norm must be auto or on under KERAS_BACKEND=jax, where "
            f"norms see the whole batch, got off with {len(devices)} devices"
        )
    return devices


@contextlib.contextmanager
def seeded(seed: int, deterministic: bool) -> Iterator[None]:
    """Seeds Python, NumPy and Keras while the block runs.

    Args:
      seed: for all of them.
      deterministic: whether the run is to repeat bit for bit, as it does on a CPU.

    Raises:
      InputError: if a GPU would not be deterministic.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if deterministic and accelerated() and _DETERMINISTIC not in flags:
        raise InputError(
            f"training.deterministic on a GPU needs XLA_FLAGS={_DETERMINISTIC} in the environment, "
            f"got XLA_FLAGS={flags!r}"
        )
    states = random.getstate(), np.random.get_state()
    keras_seeds = {name: global_state.get_global_attribute(name) for name in _KERAS_SEEDS}
    random.seed(seed)
    np.random.seed(seed)
    for name, value in zip(_KERAS_SEEDS, (seed, None), strict=True):
        global_state.set_global_attribute(name, value)
    try:
        yield
    finally:
        for name, value in keras_seeds.items():
            global_state.set_global_attribute(name, value)
        random.setstate(states[0])
        np.random.set_state(states[1])


def run(
    config: ml_collections.ConfigDict,
    images: ImageSpec,
    schedule: Schedule,
    devices: Sequence[jax.Device],
    given: GivenModel | None = None,
) -> JaxRun:
    """Builds the run that `devices` train.

    Raises:
      InputError: for fine-tuning, which is TensorFlow's.
    """
    if given is not None:
        raise InputError(
            "trees of Keras models train under KERAS_BACKEND=tensorflow only, got jax and "
            f"{config.model.keras.builder}"
        )
    for name in ("block_rates", "frozen_epochs", "frozen_norms", "trained_nodes"):
        if config.optimizer[name]:
            raise InputError(
                f"optimizer.{name} must not be set under KERAS_BACKEND=jax, "
                f"got {config.optimizer[name]}"
            )
    if config.training.start_from:
        raise InputError(
            "training.start_from must be empty under KERAS_BACKEND=jax, got "
            f"{config.training.start_from!r}"
        )
    return JaxRun(config, images, schedule, devices)


def keep_arithmetic(workdir: Workdir, report: Callable[[str], None]) -> None:
    """Records nothing: XLA's kernels depend on the machine alone."""
    del workdir, report


@contextlib.contextmanager
def events(folder: pathlib.Path) -> Iterator[Callable[[str, float, int], None]]:
    """Takes figures and drops them: TensorBoard's events are written by TensorFlow."""
    del folder
    yield lambda name, value, step: None
