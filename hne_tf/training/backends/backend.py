"""What the training loop asks of a backend."""

import pathlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import ml_collections

from hne_tf.image_spec import ImageSpec
from hne_tf.training.fine_tuning.given import GivenModel
from hne_tf.training.machines.cluster import Cluster
from hne_tf.training.schedule import Schedule
from hne_tf.training.workdir import Workdir


class BackendRun(Protocol):
    """A model, its optimiser and the steps that they take on some devices.

    Attributes:
      config: settings.
      schedule: the run's steps.
      sizes: ensemble sizes whose accuracies are measured.
    """

    config: ml_collections.ConfigDict
    schedule: Schedule
    sizes: tuple[int, ...]

    def start(self) -> None:
        """Sets the weights that a new run begins with, unless they are fresh ones."""

    def next_stop(self, step: int) -> int:
        """The step at which the host is needed next, after `step`."""

    def prepare(self, step: int) -> None:
        """Makes trainable what the steps from `step` to the next stop train."""

    def batches(self, data_set: Any, start_step: int) -> Iterator[Any]:
        """Global batches from `start_step` on."""

    def take_steps(self, batches: Iterator[Any], count: int) -> dict[str, float]:
        """Takes `count` steps; returns their mean loss and accuracies."""

    def validate(self, data_set: Any) -> dict[str, float]:
        """Figures of every size on the validation split, of averaged weights if there are."""

    def learning_rate(self) -> float:
        """Learning rate of the next step."""

    def save(self, workdir: Workdir, step: int) -> None:
        """Writes the checkpoint of `step`."""

    def restore(self, workdir: Workdir, report: Callable[[str], None]) -> int | None:
        """Restores the newest sound checkpoint; returns its step, None if there is none."""


class Backend(Protocol):
    """A module that trains on one of Keras's backends."""

    def prepare(self, config: ml_collections.ConfigDict) -> None:
        """Chooses threads and devices where a process fixes them once, for a command's own."""

    def accelerated(self) -> bool:
        """Whether this machine trains on accelerators."""

    def devices_of(self, config: ml_collections.ConfigDict, cluster: Cluster) -> Any:
        """The devices that take a run's steps.

        Raises:
          InputError: for settings that the backend or the machine does not have.
        """

    def seeded(self, seed: int, deterministic: bool) -> AbstractContextManager[None]:
        """Seeds all random numbers while the block runs."""

    def keep_arithmetic(self, workdir: Workdir, report: Callable[[str], None]) -> None:
        """Records how sums are rounded, where that depends on more than the settings."""

    def run(
        self,
        config: ml_collections.ConfigDict,
        images: ImageSpec,
        schedule: Schedule,
        devices: Any,
        given: GivenModel | None = None,
    ) -> BackendRun:
        """Builds the run that `devices` train, of the Keras model that it is cut from, if it is.

        Raises:
          InputError: for settings that the backend does not have.
        """

    def events(
        self, folder: pathlib.Path
    ) -> AbstractContextManager[Callable[[str, float, int], None]]:
        """What takes name, value and step of a figure, for TensorBoard."""
