"""The networks from outside that a config names as teachers."""

import pathlib
from collections.abc import Sequence

import keras

from hne_tf.errors import InputError
from hne_tf.models.functional import sources


def load(names: Sequence[str]) -> list[keras.Model]:
    """The networks that an objective's setting `models` names.

    Args:
      names: of each a `.keras` file, the workdir of a run, or the import path of a function
        that returns a model, `my_module:load_teacher`.

    Raises:
      InputError: for none, or what cannot be loaded.
    """
    if not names:
        raise InputError(
            "models of an objective must name .keras files, workdirs or functions that return a "
            "model, got none"
        )
    return [_one(name) for name in names]


def _one(name: str) -> keras.Model:
    if not pathlib.Path(name).is_dir():
        return sources.load(name, weights="")
    # They import what builds objectives.
    from hne_tf.training import trained
    from hne_tf.training.workdir import Workdir

    return trained.restore(Workdir(pathlib.Path(name))).model
