"""A run's state as one `.npz` file, which any backend of Keras reads."""

import pathlib
import zipfile
import zlib
from collections.abc import Callable, Sequence

import keras
import numpy as np

from hne_tf.models import weights
from hne_tf.models.ensemble import Ensemble


class ArrayCheckpoint:
    """Weights by canonical name, and other variables by their place.

    It is written and read like a `tf.train.Checkpoint`, by `training.checkpoints`.

    Args:
      models: by the name that their weights begin with in the file.
      variables: lists of other variables, likewise.
    """

    # What ends the file's name.
    suffix = ".npz"

    def __init__(
        self,
        models: dict[str, Ensemble],
        variables: dict[str, Sequence[keras.Variable]] | None = None,
    ) -> None:
        self._models = models
        self._variables = variables or {}

    def write(self, path: str) -> None:
        """Writes `<path>.npz`."""
        arrays = {}
        for section, model in self._models.items():
            for name, value in weights.read(model).items():
                arrays[f"{section}/{name}"] = value
        for section, variables in self._variables.items():
            for index, variable in enumerate(variables):
                arrays[f"{section}/{index}"] = keras.ops.convert_to_numpy(variable)
        file = pathlib.Path(path + self.suffix)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **arrays)

    def read(self, path: str) -> "_ArraysRead":
        """Sets all variables to what `write` wrote.

        Raises:
          ValueError: if the file is damaged, or of a model with other weights; nothing is
            set then.
        """
        try:
            with np.load(path + self.suffix, allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        setters: list[Callable[[], None]] = []
        for section, model in self._models.items():
            own = _taken(arrays, section)
            _check_shapes(own, {name: value.shape for name, value in weights.read(model).items()})
            setters.append(lambda model=model, own=own: weights.load(model, own))
        for section, variables in self._variables.items():
            own = _taken(arrays, section)
            _check_shapes(own, {str(i): tuple(each.shape) for i, each in enumerate(variables)})
            for index, variable in enumerate(variables):
                setters.append(
                    lambda variable=variable, value=own[str(index)]: variable.assign(value)
                )
        for setter in setters:
            setter()
        return _ArraysRead(sorted(arrays))


class _ArraysRead:
    """What reading gives back, as TensorFlow's status does."""

    def __init__(self, left: list[str]) -> None:
        self._left = left

    def assert_existing_objects_matched(self) -> None:
        """Checked in reading."""

    def assert_consumed(self) -> None:
        """Raises `ValueError` if the file holds more than was asked for."""
        if self._left:
            raise ValueError(f"{len(self._left)} arrays are of no use, first {self._left[0]}")

    def expect_partial(self) -> None:
        """Nothing is checked later."""


def _taken(arrays: dict[str, np.ndarray], section: str) -> dict[str, np.ndarray]:
    """Takes the arrays of a section out, without its name."""
    names = [name for name in arrays if name.startswith(f"{section}/")]
    return {name.removeprefix(f"{section}/"): arrays.pop(name) for name in names}


def _check_shapes(arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> None:
    if odd := sorted(arrays.keys() ^ shapes.keys()):
        raise ValueError(f"{len(odd)} names differ from the model's, first {odd[0]}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(
                f"{name} has shapes {arrays[name].shape} and {shape}, which are incompatible"
            )
